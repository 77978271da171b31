"""ringcast as a receiver: the manager's process and the workers'.

Why one worker exists twice, as `check_messages` and `handle_messages`: see the package.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Final

import ringcast
from ringcast import shm
from ringcast.broker.config import Config
from ringcast.broker.manager import Manager

from ..processes import Channel
from .checking import BATCH_MESSAGES, PayloadHandler, StreamChecker
from .frames import SAMPLE_EVERY
from .server import Address

CAPACITY_BYTES: Final = 16 << 20
"""Size of a ring's arena: what 65,536 such messages need."""
_EVENTS_BEFORE: Final = 2
"""Records in the ring before the first message: connecting, connected."""
_MESSAGES_PER_LOOK: Final = 16384
"""Messages that a worker lets gather before it reads again: a quarter of the ring."""
_PAUSE_S_FIRST: Final = 0.001
_PAUSE_S_MOST: Final = 0.02


class _EventTimes(logging.Handler):
    """Notes when the manager logs each event: CPU time, s, and time of day, ns."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: dict[str, float] = {}
        self.time_ns: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note both."""
        self.cpu_s[getattr(record, "event", "")] = time.process_time()
        self.time_ns[getattr(record, "event", "")] = time.time_ns()


def run_manager(
    channel: Channel,
    address: Address,
    name: str,
    capacity: int = CAPACITY_BYTES,
    topic: Sequence[str] = (),
) -> None:
    """Run a manager, which finds topics by these patterns.

    It sends when workers can attach, and connects once it receives that they have. At the end it
    reports the CPU time between the beginning and the end of the connection, and the times of both.
    """
    times = _EventTimes()
    log = logging.getLogger("ringcast")
    log.setLevel(logging.INFO)
    log.addHandler(times)

    def wait_for_workers() -> None:
        channel.send()
        channel.receive()

    ca = address.certificate.chain if address.certificate is not None else None
    config = Config(
        name=name,
        url=address.url,
        ca=ca,
        reconnect=False,
        ping_interval=None,
        drain_timeout=channel.deadline_s,
        capacity=capacity,
        topic=topic,
    )
    Manager(config).run(on_ready=wait_for_workers)
    channel.send(
        {
            "cpu": times.cpu_s["disconnected"] - times.cpu_s["connected"],
            "connected_ns": times.time_ns["connected"],
            "disconnected_ns": times.time_ns["disconnected"],
        }
    )


def check_messages(channel: Channel, name: str) -> None:
    """Be a worker that takes the memoryview of each message."""
    checker = StreamChecker()
    count = 0
    with ringcast.attach(name) as feed:
        channel.send()
        for message in feed:
            payload = message.payload
            last = payload[-1]
            if last != count % SAMPLE_EVERY:
                checker.end(payload, count)
                break
            if not last:
                checker.check_whole(payload, count)
            count += 1
    checker.report(channel)


def handle_messages(channel: Channel, name: str, handle: PayloadHandler) -> None:
    """Be a worker that takes the memoryview of each message."""
    with ringcast.attach(name) as feed:
        channel.send()
        for message in feed:
            if not handle(message.payload):
                return


def check_batches(channel: Channel, name: str) -> None:
    """Be a worker that reads what is there, in place, whenever there is something."""
    checker = StreamChecker()
    with ringcast.attach(name) as feed:
        channel.send()
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(BATCH_MESSAGES) as batch:
                    checker.check_batch(batch)
    checker.report(channel)


def _check_available(checker: StreamChecker, feed: ringcast.Feed) -> bool:
    """Check a batch, if there is one. Returns whether there may be more."""
    with feed.batch(BATCH_MESSAGES, timeout=0) as batch:
        if batch:
            checker.check_batch(batch)
        return len(batch) == BATCH_MESSAGES


def check_batches_rarely(channel: Channel, name: str) -> None:
    """Be a worker that lets messages gather, and then checks all of them in batches."""
    checker = StreamChecker()
    pause = _PAUSE_S_FIRST
    with ringcast.attach(name) as feed:
        channel.send()
        with contextlib.suppress(shm.RingClosed):
            while True:
                before = checker.count
                while _check_available(checker, feed):
                    pass
                if found := checker.count - before:
                    pause = min(pause * min(2.0, _MESSAGES_PER_LOOK / found), _PAUSE_S_MOST)
                time.sleep(pause)
    checker.report(channel)


def check_remainder(channel: Channel, name: str) -> None:
    """Be a worker that checks, once the manager has ended, what the ring still holds. It reports
    when the last message was received, and its number."""
    checker = StreamChecker()
    with ringcast.attach(name, policy="lossy", start="oldest") as feed:
        channel.send()
        channel.receive()  # the manager has ended
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(BATCH_MESSAGES) as batch:
                    if not checker.count:
                        checker.count = batch.first - _EVENTS_BEFORE
                    checker.check_batch(batch)
                    checker.ended_ns = int(batch.descriptors["time_ns"][-1])
    checker.report(channel)
