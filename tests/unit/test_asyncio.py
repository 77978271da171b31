"""Readers in asyncio: waiting without polling, ends, cancellation, fairness, more than one loop."""

from __future__ import annotations

import asyncio
import gc
import selectors
import threading
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import BETWEEN_LOOKS, DEADLINE, eventually, reader_status
from tests.unit.conftest import SLOTS, Background, wait_until_waiting

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """asyncio.run with a deadline."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE):
            return await coroutine

    return asyncio.run(bounded())


async def sleeping(name: str, slot: int = 0) -> None:
    """Return when the reader in `slot` sleeps; other tasks run meanwhile."""
    async with asyncio.timeout(DEADLINE):
        while (status := reader_status(name, slot)) is None or not status.waiting:
            await asyncio.sleep(BETWEEN_LOOKS)


async def receive(reader: Reader, count: int) -> list[bytes]:
    """The next `count` payloads."""
    return [bytes(await anext(reader)) for _ in range(count)]


async def receive_all(reader: Reader) -> list[int]:
    """The sequences of all that comes until the end."""
    return [message.sequence async for message in reader]


def bridge_threads(name: str) -> int:
    """How many threads wait for readers of this ring on behalf of event loops."""
    return sum(thread.name.startswith(f"ringcast-{name}-") for thread in threading.enumerate())


# ---- receiving -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_what_is_there_and_what_comes(writer: Writer, policy: Any) -> None:
    async def main() -> list[bytes]:
        with Reader.attach(writer.name, policy=policy) as reader:
            writer.publish_many([b"0", b"1"])
            task = asyncio.create_task(receive(reader, 4))
            await sleeping(writer.name)
            writer.publish(b"2")
            await sleeping(writer.name)
            writer.publish(b"3")
            return await task

    assert run(main()) == [b"0", b"1", b"2", b"3"]


def test_messages_from_another_thread(writer: Writer) -> None:
    async def main() -> list[int]:
        with Reader.attach(writer.name) as reader:
            publishing = Background(publish_and_close)
            received = await receive_all(reader)
            publishing.result()
            return received

    def publish_and_close() -> None:
        for i in range(2000):
            writer.publish(b"%d" % i, timeout=DEADLINE)
        writer.close()

    assert run(main()) == list(range(2000))


@pytest.mark.parametrize("there", [0, 3])
def test_the_end_of_the_ring_ends_the_iteration(writer: Writer, there: int) -> None:
    async def main() -> list[int]:
        with Reader.attach(writer.name) as reader:
            writer.publish_many([b"x"] * there)
            task = asyncio.create_task(receive_all(reader))
            await sleeping(writer.name)
            writer.close()
            received = await task
            assert await receive_all(reader) == []
            return received

    assert run(main()) == list(range(there))


def test_a_ring_without_writer_and_name_ends(name: str) -> None:
    async def main() -> None:
        writer = Writer.create(name, slots=8, capacity=1024, max_readers=1)
        with Reader.attach(name) as reader:
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(name)
            del writer
            shm.unlink(name)
            with pytest.raises(shm.RingClosed, match="no writer and was removed"):
                await task

    run(main())


def test_an_overrun_lossy_reader_gets_a_message_with_a_gap(writer: Writer) -> None:
    async def main() -> Message:
        with Reader.attach(writer.name, policy="lossy") as reader:
            for _ in range(100):
                writer.publish(b"x")
            return await anext(reader)

    message = run(main())
    assert message.gap == message.sequence > 0


# ---- neither polling nor blocking --------------------------------------------------------------


class CountingSelector(selectors.DefaultSelector):
    """Remembers for how long the loop meant to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float | None] = []

    def select(self, timeout: float | None = None) -> Any:
        self.timeouts.append(timeout)
        return super().select(timeout)


def test_an_idle_loop_sleeps_without_a_timeout(writer: Writer) -> None:
    selector = CountingSelector()
    loop = asyncio.SelectorEventLoop(selector)

    def publish() -> int:
        wait_until_waiting(writer.name)
        eventually(lambda: selector.timeouts[-1:] == [None], "the loop sleeps")
        before = len(selector.timeouts)
        for _ in range(500):  # meanwhile the reader's thread looks around by itself
            reader_status(writer.name)
        assert len(selector.timeouts) == before
        writer.publish(b"x")
        return before

    try:
        with Reader.attach(writer.name) as reader:
            publishing = Background(publish)
            assert loop.run_until_complete(receive(reader, 1)) == [b"x"]
            assert len(selector.timeouts) - publishing.result() < 10
    finally:
        loop.close()


def test_other_tasks_run_while_one_waits(writer: Writer) -> None:
    async def main() -> int:
        with Reader.attach(writer.name) as reader:
            task = asyncio.create_task(receive(reader, 1))
            turns = 0
            while turns < 1000:
                await asyncio.sleep(0)
                turns += 1
            assert not task.done()
            writer.publish(b"x")
            assert await task == [b"x"]
            return turns

    assert run(main()) == 1000


def test_a_flood_does_not_starve_other_tasks(name: str) -> None:
    async def main() -> list[int]:
        with (
            Writer.create(name, slots=4096, capacity=1 << 16, max_readers=1) as writer,
            Reader.attach(name) as reader,
        ):
            writer.publish_many([b"x"] * 4096)
            seen_at: list[int] = []
            count = 0

            async def other() -> None:
                while count < 4096:
                    seen_at.append(count)
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            for _ in range(4096):
                await anext(reader)
                count += 1
            await task
            return seen_at

    seen_at = run(main())
    assert len(seen_at) >= 8
    gaps = [b - a for a, b in pairwise(seen_at)]
    assert max(gaps) <= 1024


def test_a_loop_variable_never_holds_the_ring(writer: Writer) -> None:
    async def main() -> None:
        with Reader.attach(writer.name) as reader:
            for _ in range(3):
                writer.publish_many([b"12345678"] * SLOTS, timeout=0)
                task = asyncio.create_task(keep_the_last(reader))
                await sleeping(writer.name)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    async def keep_the_last(reader: Reader) -> None:
        kept = []
        async for message in reader:
            kept.append(message)

    run(main())


def test_holding_all_and_waiting_is_refused(writer: Writer) -> None:
    async def main() -> None:
        with Reader.attach(writer.name) as reader:
            writer.publish_many([b"x"] * SLOTS)
            views = [(await anext(reader)).payload for _ in range(SLOTS)]
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(writer.name)
            assert writer.try_publish(b"x") is None
            with pytest.raises(shm.RingFull, match="waits for message 0"):
                await task
            del views

    run(main())


# ---- cancelling and closing --------------------------------------------------------------------


def test_a_cancelled_wait_loses_nothing(writer: Writer) -> None:
    async def main() -> list[bytes]:
        with Reader.attach(writer.name) as reader:
            for _ in range(20):
                task = asyncio.create_task(receive(reader, 1))
                await sleeping(writer.name)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            writer.publish_many([b"a", b"b"])
            return await receive(reader, 2)

    assert run(main()) == [b"a", b"b"]


def test_a_timeout_on_a_wait(writer: Writer) -> None:
    async def main() -> bytes:
        with Reader.attach(writer.name) as reader:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(reader), 0.01)
            writer.publish(b"x")
            return bytes(await anext(reader))

    assert run(main()) == b"x"


@pytest.mark.parametrize("tasks", [1, 3])
def test_close_wakes_the_tasks_that_wait(writer: Writer, tasks: int) -> None:
    async def main() -> None:
        reader = Reader.attach(writer.name)
        waiting = [asyncio.create_task(receive(reader, 1)) for _ in range(tasks)]
        await sleeping(writer.name)
        reader.close()
        for task in waiting:
            with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
                await task
        with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
            await anext(reader)

    run(main())
    assert reader_status(writer.name) is None


def test_an_eviction_wakes_a_task_that_waits(writer: Writer) -> None:
    async def main() -> None:
        with Reader.attach(writer.name) as reader:
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(writer.name)
            writer.evict(reader.slot)
            with pytest.raises(shm.Evicted):
                await task

    run(main())


def test_a_task_that_waits_steps_down(writer: Writer) -> None:
    async def main() -> None:
        with Reader.attach(writer.name) as reader:
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(writer.name)
            writer.demote(reader.slot)
            while reader.policy == "block":
                await asyncio.sleep(0)
            writer.publish(b"x")
            assert await task == [b"x"]

    run(main())


# ---- more than one task, loop, iteration -------------------------------------------------------


def test_each_message_goes_to_one_task(writer: Writer) -> None:
    async def main() -> list[list[int]]:
        with Reader.attach(writer.name) as reader:
            tasks = [asyncio.create_task(receive_all(reader)) for _ in range(3)]
            for _ in range(50):
                await sleeping(writer.name)
                writer.publish_many([b"x"] * 3)
            writer.close()
            return [await task for task in tasks]

    seen = run(main())
    assert sorted(sequence for one in seen for sequence in one) == list(range(150))
    assert all(one == sorted(one) for one in seen)


def test_two_readers_in_one_loop(writer: Writer) -> None:
    async def main() -> tuple[list[bytes], list[bytes]]:
        with Reader.attach(writer.name) as one, Reader.attach(writer.name) as other:
            both = asyncio.gather(receive(one, 2), receive(other, 2))
            await sleeping(writer.name, 0)
            await sleeping(writer.name, 1)
            writer.publish_many([b"a", b"b"])
            first, second = await both
            return first, second

    assert run(main()) == ([b"a", b"b"], [b"a", b"b"])


def test_one_loop_after_another(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        for i in range(5):

            async def main() -> list[bytes]:
                task = asyncio.create_task(receive(reader, 1))
                await sleeping(writer.name)
                writer.publish(b"%d" % i)  # noqa: B023 - it runs at once
                return await task

            assert run(main()) == [b"%d" % i]


def test_a_loop_that_ended_while_a_task_waited(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:

        async def wait() -> None:
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(writer.name)
            assert not task.done()  # asyncio.run cancels it

        async def go_on() -> list[bytes]:
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(writer.name)
            writer.publish(b"x")
            return await task

        for _ in range(3):
            run(wait())
            assert run(go_on()) == [b"x"]


def test_another_loop_at_the_same_time_is_refused(writer: Writer) -> None:
    async def main() -> None:
        with Reader.attach(writer.name) as reader:
            task = asyncio.create_task(receive(reader, 1))
            await sleeping(writer.name)
            elsewhere = Background(lambda: asyncio.run(receive(reader, 1)))
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(elsewhere.result)
            writer.publish(b"x")
            assert await task == [b"x"]

    run(main())


def test_a_thread_and_a_task_wait_in_one_reader(writer: Writer) -> None:
    async def main() -> list[bytes]:
        with Reader.attach(writer.name) as reader:
            thread = Background(reader.read)
            await sleeping(writer.name)
            task = asyncio.create_task(receive(reader, 1))
            await asyncio.sleep(0)
            writer.publish_many([b"a", b"b"])
            by_thread = await asyncio.to_thread(thread.result)
            return [*await task, bytes(by_thread)]

    assert sorted(run(main())) == [b"a", b"b"]


def test_iterations_share_one_thread(writer: Writer) -> None:
    async def main() -> None:
        with Reader.attach(writer.name) as reader:
            for _ in range(20):
                task = asyncio.create_task(take_one_and_leave(reader))
                await sleeping(writer.name)
                writer.publish(b"x")
                assert await task == b"x"
            assert bridge_threads(writer.name) == 1

    async def take_one_and_leave(reader: Reader) -> bytes:
        async for message in reader:
            return bytes(message)
        return b""

    run(main())


def test_a_dropped_reader_ends_its_thread_and_frees_its_slot(writer: Writer) -> None:
    async def main() -> None:
        reader = Reader.attach(writer.name)
        task = asyncio.create_task(receive(reader, 1))
        await sleeping(writer.name)
        writer.publish(b"x")
        assert await task == [b"x"]

    run(main())
    gc.collect()
    eventually(lambda: bridge_threads(writer.name) == 0, "its thread ends")
    eventually(lambda: reader_status(writer.name) is None, "its slot is free")


def test_a_reader_dropped_while_its_thread_sleeps(writer: Writer) -> None:
    async def main() -> None:
        reader = Reader.attach(writer.name)
        task = asyncio.create_task(receive(reader, 1))
        await sleeping(writer.name)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    gc.collect()
    writer.publish(b"x")  # the thread wakes, and finds nobody
    eventually(lambda: bridge_threads(writer.name) == 0, "its thread ends")
    eventually(lambda: reader_status(writer.name) is None, "its slot is free")
