"""What the tests of workers' ends share: ways to read one to its end, and a connection's state."""

from __future__ import annotations

import asyncio
from typing import Final

from ringcast import ConnectionState, Feed, Phase, shm
from ringcast.broker.worker.queue_feed import QueueFeed
from tests.conftest import DEADLINE

AnyFeed = Feed | QueueFeed

STATE: Final = ConnectionState(
    phase=Phase.OPEN,
    url="wss://example.org/stream",
    since_ns=1_700_000_000_000_000_000,
    epoch=1,
    rtt_ns=None,
    received=7,
    sent=3,
    reconnects=1,
    last_error="the server said “no”",
)


def iterate(feed: AnyFeed) -> list[bytes]:
    return [bytes(message) for message in feed]


def read_all(feed: AnyFeed) -> list[bytes]:
    payloads = []
    try:
        while (message := feed.read(DEADLINE)) is not None:
            payloads.append(bytes(message))
    except shm.RingClosed:
        return payloads
    raise AssertionError("it has not ended")


def poll_all(feed: AnyFeed) -> list[bytes]:
    payloads: list[bytes] = []
    try:
        while True:
            payloads += [bytes(message) for message in feed.read_available(7)]
    except shm.RingClosed:
        return payloads


def iterate_async(feed: AnyFeed) -> list[bytes]:
    async def main() -> list[bytes]:
        async with asyncio.timeout(DEADLINE):
            return [bytes(message) async for message in feed]

    return asyncio.run(main())


EVERY_WAY: Final = [iterate, read_all, poll_all, iterate_async]
