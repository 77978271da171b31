"""Readers that choose, in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import BETWEEN_LOOKS, DEADLINE, reader_status

from .conftest import SLOTS, publish


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """asyncio.run with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await coroutine

    asyncio.run(bounded())


async def sleeping(name: str) -> None:
    """Return when the reader in slot 0 sleeps."""
    while (status := reader_status(name)) is None or not status.waiting:
        await asyncio.sleep(BETWEEN_LOOKS)


async def next_name(reader: Reader) -> str | None:
    return (await anext(reader)).topic_name


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_a_waiter_is_woken_by_what_it_wants(writer: Writer, policy: Any) -> None:
    async def main() -> None:
        publish(writer, "a", "b")
        with Reader.attach(writer.name, policy=policy, topics=["a", "new*"]) as reader:
            for topic in ("a", "new1", "new2", "a"):
                task = asyncio.create_task(next_name(reader))
                await sleeping(writer.name)
                publish(writer, "b", None, "c")
                await sleeping(writer.name)
                assert not task.done()
                publish(writer, topic)
                assert await task == topic
            assert reader.skipped == 12

    run(main())


def test_subscribing_wakes_a_waiter(writer: Writer) -> None:
    async def main() -> None:
        publish(writer, "a")
        with Reader.attach(writer.name, topics=[]) as reader:
            task = asyncio.create_task(next_name(reader))
            await sleeping(writer.name)
            reader.subscribe("a")
            publish(writer, "a")
            assert await task == "a"

            task = asyncio.create_task(next_name(reader))
            await sleeping(writer.name)
            await asyncio.to_thread(reader.subscribe, "later")
            await asyncio.to_thread(reader.unsubscribe, "a")
            publish(writer, "a", "later")
            assert await task == "later"

    run(main())


def test_a_waiter_for_nothing_lets_the_ring_go_and_sees_its_end(writer: Writer) -> None:
    async def main() -> None:
        topic = writer.topic("a")
        with Reader.attach(writer.name, topics=["zz"]) as reader:
            task = asyncio.create_task(anext(reader, None))
            await sleeping(writer.name)
            for _ in range(10 * SLOTS):
                while writer.try_publish(b"12345678", topic=topic) is None:
                    await asyncio.sleep(0)
            writer.close()
            assert await task is None
            assert (reader.received, reader.skipped, reader.lost) == (0, 10 * SLOTS, 0)

    run(main())
