"""A member that threads share: each message goes to one of them, and those of a key never to two at
a time."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from functools import partial
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import Member
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import BALANCES, SLOTS, Join, collect, get, put, status_of, take

WAITS = [shm.Blocking(), shm.Blocking(spin_us=0), shm.Yielding(), shm.BusySpin()]


@pytest.mark.parametrize("wait", WAITS, ids=repr)
@pytest.mark.parametrize("balance", BALANCES)
def test_each_message_goes_to_one_thread(
    writer: Writer, join: Join, balance: Any, wait: shm.WaitStrategy
) -> None:
    member = join(balance=balance, wait=wait)
    threads = [Background(lambda: [m.sequence for m in member]) for _ in range(3)]
    count = 600
    for n in range(count):
        put(writer, n % 20, timeout=DEADLINE)
    writer.close()
    seen = [thread.result() for thread in threads]
    assert sorted(itertools.chain(*seen)) == list(range(count))


class Keys:
    """What threads do with the messages of each key: never two at a time, and in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.at_work: dict[int, int] = {}
        self.seen: dict[int, list[int]] = defaultdict(list)
        self.most = 0

    def begin(self, key: int, sequence: int) -> None:
        with self._lock:
            assert key not in self.at_work, f"{sequence} of key {key} while {self.at_work[key]}"
            self.at_work[key] = sequence
            self.most = max(self.most, len(self.at_work))
            self.seen[key].append(sequence)

    def end(self, key: int) -> None:
        with self._lock:
            del self.at_work[key]


@pytest.mark.parametrize("auto_ack", [True, False])
@pytest.mark.parametrize("members", [1, 2])
def test_a_key_is_never_with_two_threads(
    writer: Writer, join: Join, auto_ack: bool, members: int
) -> None:
    keys = Keys()
    joined = [join(balance="key", auto_ack=auto_ack) for _ in range(members)]
    count, number = 1500, 7

    def work(member: Member) -> None:
        for message in member:
            keys.begin(message.key, message.sequence)
            sum(range(message.sequence % 97))  # others get their turn now and then
            keys.end(message.key)
            if not auto_ack:
                message.ack()

    threads = [Background(partial(work, member)) for member in joined for _ in range(3)]
    for n in range(count):
        put(writer, 1 + n * n % number, timeout=DEADLINE)
    writer.close()
    for thread in threads:
        thread.result()
    assert sorted(itertools.chain(*keys.seen.values())) == list(range(count))
    assert all(seen == sorted(seen) for seen in keys.seen.values())


def test_a_thread_that_waits_for_a_key_in_hand_elsewhere(writer: Writer, join: Join) -> None:
    """It sleeps, and is woken when the other has done with it."""
    member = join(balance="key", auto_ack=False)
    put(writer, 1, 1)
    held = get(member)
    waiting = Background(lambda: member.read(DEADLINE).sequence)  # type: ignore[union-attr]
    wait_until_waiting(writer.name, member.slot)
    assert waiting.running
    held.ack()
    assert waiting.result() == 1


def test_a_thread_goes_on_with_a_key_that_it_has(writer: Writer, join: Join) -> None:
    """Without auto_ack the same thread may have several of a key; others may not."""
    member = join(balance="key", auto_ack=False)
    put(writer, 1, 1, 1)
    held = [get(member), get(member)]
    assert Background(lambda: member.read(timeout=0)).result() is None
    held.append(get(member))
    member.ack(held)
    assert member.read(timeout=0) is None
    assert status_of(writer).lag == 0


def test_what_another_thread_gives_back(writer: Writer, join: Join) -> None:
    member = join(balance="key", auto_ack=False)
    put(writer, 1, 1)
    held = get(member)
    waiting = Background(lambda: [member.read(DEADLINE), member.read(DEADLINE)])
    wait_until_waiting(writer.name, member.slot)
    held.nack()
    found = waiting.result()
    assert [(m.sequence, m.deliveries) for m in found] == [(0, 2), (1, 1)]


@pytest.mark.parametrize("waiters", [1, 3])
def test_close_wakes_the_threads_that_wait(writer: Writer, waiters: int) -> None:
    member = Member.attach(writer.name, "g")
    waiting = [Background(member.read) for _ in range(waiters)]
    wait_until_waiting(writer.name, member.slot)
    member.close()
    for one in waiting:
        with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
            one.result()
    assert status_of(writer).members == ()


def test_close_while_other_threads_have_messages(writer: Writer) -> None:
    """They go back; what the threads say of them afterwards counts nothing."""
    member = Member.attach(writer.name, "g")
    put(writer, *[0] * 3)
    meet = threading.Barrier(2, timeout=DEADLINE)

    def work() -> Any:
        message = get(member)
        meet.wait()
        meet.wait()
        with pytest.raises((ValueError, shm.RingClosed)):
            message.ack()
        return bytes(message)

    thread = Background(work)
    meet.wait()
    member.close()
    meet.wait()
    assert thread.result() == b"00000000"
    with Member.attach(writer.name, "g") as other:
        found = collect([other], 3)
        assert [(m.sequence, m.deliveries) for _, m in found] == [(0, 2), (1, 1), (2, 1)]


def test_threads_that_come_and_go(writer: Writer, join: Join) -> None:
    """Each ends with one message that it has not done: it comes again, to the next."""
    member = join(max_deliveries=200)
    put(writer, *[0] * 20)
    done = 0
    for n in range(20):

        def work() -> list[tuple[int, int]]:
            return [(m.sequence, m.deliveries) for m in (get(member), get(member))]

        if n == 19:
            break
        first, second = Background(work).result()
        eventually(lambda: status_of(writer).returned == 1, "it is given back")
        assert first == (n, 2 if n else 1)
        assert second == (n + 1, 1)
        done += 1
    assert status_of(writer).redelivered == done - 1
    assert take(member) == [19]


def test_an_iterator_that_threads_share(writer: Writer, join: Join) -> None:
    """Each step is one of the thread that makes it."""
    member = join()
    put(writer, *[0] * SLOTS)
    writer.close()
    iterator = iter(member)
    lock = threading.Lock()
    seen: list[int] = []

    def work() -> None:
        while True:
            with lock:
                try:
                    seen.append(next(iterator).sequence)
                except StopIteration:
                    return

    for thread in [Background(work) for _ in range(3)]:
        thread.result()
    assert set(seen) == set(range(SLOTS))
