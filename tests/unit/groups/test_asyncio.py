"""Members in asyncio: tasks are hands of their own; waiting, ends, cancellation."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import Member
from tests.conftest import BETWEEN_LOOKS, DEADLINE, eventually
from tests.unit.conftest import Background
from tests.unit.test_asyncio import bridge_threads, run, sleeping

from .conftest import BALANCES, SLOTS, Join, get, put, status_of, take


async def receive(member: Member, count: int) -> list[int]:
    """The sequences of the next `count` messages."""
    return [(await anext(member)).sequence for _ in range(count)]


async def receive_all(member: Member) -> list[int]:
    """The sequences of all that comes until the end."""
    return [message.sequence async for message in member]


async def until(condition: Any) -> None:
    """Return when this is so; other tasks run meanwhile."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(BETWEEN_LOOKS)


@pytest.mark.parametrize("balance", BALANCES)
def test_what_is_there_and_what_comes(writer: Writer, join: Join, balance: Any) -> None:
    async def main() -> list[int]:
        member = join(balance=balance)
        put(writer, 1, 1)
        task = asyncio.create_task(receive(member, 4))
        await sleeping(writer.name)
        put(writer, 1)
        await sleeping(writer.name)
        put(writer, 1)
        return await task

    assert run(main()) == [0, 1, 2, 3]
    gc.collect()
    assert status_of(writer).returned == 1, "the last one went back with the task"


@pytest.mark.parametrize("balance", BALANCES)
def test_each_message_goes_to_one_task(writer: Writer, join: Join, balance: Any) -> None:
    async def main() -> list[list[int]]:
        members = [join(balance=balance) for _ in range(2)]
        tasks = [asyncio.create_task(receive_all(member)) for member in members * 3]
        for _ in range(30):
            put(writer, *range(1, 9), timeout=DEADLINE)
            await until(lambda: members[0].lag == 0)
        writer.close()
        return [await task for task in tasks]

    seen = run(main())
    assert sorted(sequence for one in seen for sequence in one) == list(range(240))


def test_messages_from_another_thread(writer: Writer, join: Join) -> None:
    def publish() -> None:
        for _ in range(2000):
            put(writer, 0, timeout=DEADLINE)
        writer.close()

    async def main() -> list[int]:
        member = join()
        publishing = Background(publish)
        received = await receive_all(member)
        publishing.result()
        return received

    assert run(main()) == list(range(2000))


def test_a_key_is_never_with_two_tasks(writer: Writer, join: Join) -> None:
    async def main() -> None:
        member = join(balance="key")
        at_work: set[int] = set()
        seen: list[int] = []

        async def work() -> None:
            async for message in member:
                assert message.key not in at_work
                at_work.add(message.key)
                for _ in range(message.sequence % 5):
                    await asyncio.sleep(0)
                at_work.discard(message.key)
                seen.append(message.sequence)

        tasks = [asyncio.create_task(work()) for _ in range(4)]
        for n in range(20):
            put(writer, *[1 + n % 3, 1, 2, 3, 1, 2], timeout=0)
            await until(lambda: member.lag == 0)
        writer.close()
        for task in tasks:
            await task
        assert sorted(seen) == list(range(120))

    run(main())


def test_asking_says_that_the_last_of_the_same_task_is_done(writer: Writer, join: Join) -> None:
    async def main() -> None:
        member = join()
        put(writer, *[0] * 5)
        taken, go_on = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            await anext(member)
            taken.set()
            await go_on.wait()
            assert (await anext(member)).sequence == 3

        assert (await anext(member)).sequence == 0
        task = asyncio.create_task(other())
        await taken.wait()
        assert status_of(writer).in_flight == 2
        assert (await anext(member)).sequence == 2
        assert status_of(writer).in_flight == 2
        go_on.set()
        await task
        del task
        gc.collect()
        await until(lambda: status_of(writer).returned == 1)
        assert (await anext(member)).sequence == 3
        assert (await anext(member)).sequence == 4

    run(main())


def test_break_gives_back(writer: Writer, join: Join) -> None:
    async def main() -> None:
        member = join()
        put(writer, *[0] * 3)
        async for message in member:
            if message.sequence == 1:
                break
        assert status_of(writer).returned == 1
        again = await anext(member)
        assert (again.sequence, again.deliveries) == (1, 2)

    run(main())


class Failed(Exception):
    """What a program raises while it handles a message."""


def test_an_exception_gives_back(writer: Writer, join: Join) -> None:
    async def main() -> None:
        member = join()
        put(writer, *[0] * 3)

        async def work() -> None:
            async for message in member:
                if message.sequence == 1:
                    raise Failed

        with pytest.raises(Failed):
            await work()
        assert status_of(writer).returned == 1
        task = asyncio.create_task(work())
        with pytest.raises(Failed):
            await task
        del task
        gc.collect()
        await until(lambda: status_of(writer).returned == 1)
        again = await anext(member)
        assert (again.sequence, again.deliveries) == (1, 3)

    run(main())


def test_a_cancelled_task_gives_back(writer: Writer, join: Join) -> None:
    """What it had in hand, and nothing else."""

    async def main() -> None:
        member, other = join(), join()
        put(writer, 0)

        async def work() -> None:
            async for _message in member:
                await asyncio.sleep(DEADLINE)

        task = asyncio.create_task(work())
        await until(lambda: status_of(writer).in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        await until(lambda: status_of(writer).returned == 1)
        again = await anext(other)
        assert (again.sequence, again.deliveries) == (0, 2)

    run(main())


def test_a_cancelled_wait_loses_nothing(writer: Writer, join: Join) -> None:
    async def main() -> list[int]:
        member = join()
        for _ in range(10):
            task = asyncio.create_task(receive(member, 1))
            await sleeping(writer.name)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        put(writer, 0, 0)
        return await receive(member, 2)

    assert run(main()) == [0, 1]


def test_without_auto_ack(writer: Writer, join: Join) -> None:
    async def main() -> None:
        member = join(auto_ack=False)
        put(writer, *[0] * 4)
        first = await anext(member)
        second = await anext(member)
        first.ack()
        second.nack()
        async for message in member:
            message.ack()
            if message.sequence == 1:
                assert message.deliveries == 2
                break
        await until(lambda: acknowledge_all(member))

    def acknowledge_all(member: Member) -> bool:
        for message in member.read_available():
            message.ack()
        return member.lag == 0

    run(main())
    assert status_of(writer).in_flight == 0


@pytest.mark.parametrize("there", [0, 3])
def test_the_end_of_the_ring_ends_the_iteration(writer: Writer, join: Join, there: int) -> None:
    async def main() -> list[int]:
        member = join()
        put(writer, *[0] * there)
        task = asyncio.create_task(receive_all(member))
        await sleeping(writer.name)
        writer.close()
        received = await task
        assert await receive_all(member) == []
        with pytest.raises(StopAsyncIteration):
            await anext(member)
        return received

    assert run(main()) == list(range(there))


@pytest.mark.parametrize("tasks", [1, 3])
def test_close_wakes_the_tasks_that_wait(writer: Writer, tasks: int) -> None:
    async def main() -> None:
        member = Member.attach(writer.name, "g")
        waiting = [asyncio.create_task(receive(member, 1)) for _ in range(tasks)]
        await sleeping(writer.name)
        member.close()
        for task in waiting:
            with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
                await task

    run(main())
    assert status_of(writer).members == ()


@pytest.mark.parametrize("how", ["evict", "demote_group"])
def test_an_eviction_wakes_a_task_that_waits(writer: Writer, join: Join, how: str) -> None:
    async def main() -> None:
        member = join()
        task = asyncio.create_task(receive(member, 1))
        await sleeping(writer.name)
        if how == "evict":
            writer.evict(member.slot)
        else:
            writer.demote_group("g")
        with pytest.raises(shm.Evicted):
            await task

    run(main())


def test_what_a_fellow_leaves_wakes_a_task_that_waits(writer: Writer, join: Join) -> None:
    async def main() -> None:
        fellow = Member.attach(writer.name, "g")
        put(writer, 0)
        assert (await anext(fellow)).sequence == 0
        member = join()
        task = asyncio.create_task(anext(member))
        await sleeping(writer.name, member.slot)
        fellow.close()
        message = await task
        assert (message.sequence, message.deliveries) == (0, 2)

    run(main())


def test_waiting_for_what_a_view_holds_is_refused(writer: Writer, join: Join) -> None:
    async def main() -> None:
        member = join(auto_ack=False)
        put(writer, *[0] * SLOTS)
        views = []
        for _ in range(SLOTS):
            message = await anext(member)
            views.append(message.payload)
            message.ack()
        del message
        assert writer.try_publish(b"x") is None
        with pytest.raises(shm.RingFull, match="a view or array is still alive"):
            await anext(member)
        del views

    run(main())


def test_a_flood_does_not_starve_other_tasks(writer: Writer, join: Join) -> None:
    async def main() -> int:
        member = join()
        turns = 0
        done = False

        async def other() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        count = 0
        put(writer, *[0] * (SLOTS - 8))
        async for _message in member:
            count += 1
            if count == 20 * SLOTS:
                break
            put(writer, 0, timeout=DEADLINE)
        done = True
        await task
        return turns

    assert run(main()) >= 8


def test_a_thread_and_a_task_in_one_member(writer: Writer, join: Join) -> None:
    async def main() -> list[int]:
        member = join()
        thread = Background(lambda: ack_one(member))
        await sleeping(writer.name)
        task = asyncio.create_task(receive(member, 1))
        await asyncio.sleep(0)
        put(writer, 0, 0)
        return sorted([*await task, await asyncio.to_thread(thread.result)])

    def ack_one(member: Member) -> int:
        message = member.read(DEADLINE)
        assert message is not None
        message.ack()
        return message.sequence

    assert run(main()) == [0, 1]


def test_one_loop_after_another(writer: Writer, join: Join) -> None:
    member = join()
    for n in range(5):

        async def main() -> int:
            task = asyncio.create_task(anext(member))
            await sleeping(writer.name)
            put(writer, 0)
            message = await task
            message.ack()
            return message.sequence

        assert run(main()) == n
    assert take(member) == []
    assert status_of(writer).lag == 0


def test_a_dropped_member_ends_its_thread(writer: Writer) -> None:
    async def main() -> None:
        member = Member.attach(writer.name, "g")
        task = asyncio.create_task(receive(member, 1))
        await sleeping(writer.name)
        put(writer, 0)
        assert await task == [0]

    run(main())
    gc.collect()
    eventually(lambda: bridge_threads(writer.name) == 0, "its thread ends")
    eventually(lambda: status_of(writer).members == (), "its slot is free")


def test_calls_that_do_not_wait(writer: Writer, join: Join) -> None:
    """They may be made by a task, too; what they hand out is in its thread's hand."""

    async def main() -> None:
        member = join()
        put(writer, 0, 0)
        assert (await anext(member)).sequence == 0
        assert get(member).sequence == 1
        assert status_of(writer).in_flight == 2

    run(main())
