"""Zero copy and lifetimes: a view stays valid while it lives, whatever becomes of its message
and of its member; nothing dangles."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.group import GroupMessage, Member
from tests.conftest import DEADLINE, eventually, reader_status
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import BALANCES, SLOTS, Join, collect, get, put, status_of, take, text

EXPORTS: dict[str, Callable[[GroupMessage], Any]] = {
    "payload": lambda message: message.payload,
    "memoryview": memoryview,
    "slice": lambda message: memoryview(message)[2:],
    "numpy": lambda message: np.frombuffer(memoryview(message), np.uint8),
}


def fill(writer: Writer) -> int:
    """Publish until there is no room; how many."""
    count = 0
    while writer.try_publish(text(writer.sequence)) is not None:
        count += 1
        assert count <= SLOTS, "nothing holds the ring"
    return count


@pytest.fixture
def no_automatic_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


# ---- after the acknowledgement -----------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("auto_ack", [True, False])
@pytest.mark.parametrize("how", EXPORTS)
def test_a_view_outlives_its_acknowledgement(
    writer: Writer, join: Join, balance: Any, auto_ack: bool, how: str
) -> None:
    member = join(balance=balance, auto_ack=auto_ack)
    fill(writer)
    message = get(member)
    kept = EXPORTS[how](message)
    before = bytes(kept)
    message.ack()
    del message
    status = status_of(writer)
    assert (status.in_flight, status.lag, status.holder) == (0, SLOTS, member.slot)
    assert not fill(writer), "the ring does not reuse it"
    for _ in range(SLOTS - 1):
        get(member).ack()
    assert not fill(writer)
    assert bytes(kept) == before
    del kept
    assert fill(writer) == SLOTS, "it is gone with the last view"


def test_without_a_view_it_takes_a_copy(writer: Writer, join: Join) -> None:
    """A message that is kept holds the ring no longer than to the next call that waits."""
    member = join(auto_ack=False)
    fill(writer)
    messages = [get(member) for _ in range(SLOTS)]
    member.ack(messages)
    assert member.read(timeout=0) is None
    assert fill(writer) == SLOTS
    assert [bytes(message) for message in messages] == [text(n) for n in range(SLOTS)]
    assert [message.text() for message in messages] == [text(n).decode() for n in range(SLOTS)]


def test_a_loop_variable_never_holds_a_writer_that_waits(writer: Writer, join: Join) -> None:
    member = join()

    def publish() -> None:
        for _ in range(20 * SLOTS):
            put(writer, 0, timeout=DEADLINE)
        writer.close()

    publishing = Background(publish)
    kept = [message for message in member if message.sequence % 100 == 0]
    publishing.result()
    assert [bytes(message) for message in kept] == [text(n) for n in range(0, 20 * SLOTS, 100)]


@pytest.mark.parametrize("balance", BALANCES)
def test_views_while_the_ring_wraps(writer: Writer, join: Join, balance: Any) -> None:
    """At any time a few views of messages that are done, and the ring goes round them."""
    members = [join(balance=balance) for _ in range(2)]
    rng = random.Random(5)
    kept: list[tuple[bytes, Any]] = []
    for _ in range(300):
        for _ in range(rng.randrange(12)):
            payload = rng.randbytes(rng.randrange(1, 200))
            if writer.try_publish(payload, key=rng.randrange(1, 9)) is None:
                break
        for member in rng.sample(members, 2):
            for message in member.read_available(limit=rng.randrange(1, 12)):
                if rng.random() < 0.3:
                    kept.append((bytes(message), rng.choice(list(EXPORTS.values())[:2])(message)))
        rng.shuffle(kept)
        del kept[rng.randrange(6) :]
        assert all(bytes(view) == payload for payload, view in kept)
    del kept
    assert writer.sequence > 10 * SLOTS


# ---- given back ------------------------------------------------------------------------------


def test_nack_while_a_view_lives_is_refused(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, 0)
    message = get(member)
    view = message.payload
    with pytest.raises(BufferError, match="a view of message 0 is still alive"):
        message.nack()
    view.release()
    message.nack()
    assert status_of(writer).returned == 1
    assert bytes(message) == text(0), "it has a copy"


def test_given_back_by_a_break_while_a_view_lives(writer: Writer, join: Join) -> None:
    """Then it goes back with the last view; here it can not come before that."""
    member, other = join(), join()
    put(writer, 0)
    views = []
    for message in member:
        views += [message.payload, memoryview(message)]
        break
    assert take(other) == []
    assert status_of(writer).in_flight == 1
    with pytest.raises(ValueError, match="was given back"):
        message.ack()
    views.pop().release()
    assert take(other) == []
    assert bytes(views[0]) == text(0)
    views.pop().release()
    ((_, again),) = collect([other], 1)
    assert (again.sequence, again.deliveries) == (0, 2)
    assert bytes(message) == text(0)


def test_a_dropped_message_whose_view_lives(writer: Writer, join: Join) -> None:
    """The view keeps the message; with the view both go."""
    member = join(auto_ack=False)
    put(writer, 0)
    view = get(member).payload
    gc.collect()
    assert status_of(writer).in_flight == 1
    assert bytes(view) == text(0)
    del view
    assert status_of(writer).returned == 1


@pytest.mark.usefixtures("no_automatic_gc")
def test_in_a_garbage_cycle(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, 0)
    cycle: list[Any] = [get(member)]
    cycle.append(cycle)
    del cycle
    assert status_of(writer).in_flight == 1
    gc.collect()
    assert status_of(writer).returned == 1


class TakesWhenFinalized:
    """A garbage cycle whose end takes from a member, in the midst of whatever else goes on."""

    def __init__(self, member: Member, seen: list[int]) -> None:
        self.me = self
        self.member = member
        self.seen = seen

    def __del__(self) -> None:
        for message in self.member.read_available(limit=1):
            self.seen.append(message.sequence)
            message.ack()


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("auto_ack", [True, False])
def test_a_finalizer_that_takes_in_the_midst_of_a_call(
    writer: Writer, join: Join, balance: Any, auto_ack: bool
) -> None:
    member = join(balance=balance, auto_ack=auto_ack)
    seen: list[int] = []
    before = gc.get_threshold()
    try:
        gc.set_threshold(1, 1, 1)
        for _ in range(20):
            put(writer, *range(1, 9), timeout=DEADLINE)
            while member.lag:
                TakesWhenFinalized(member, seen)
                for message in member.read_available(limit=3):
                    seen.append(message.sequence)
                    message.ack()
                TakesWhenFinalized(member, seen)
                with member.batch(limit=2, timeout=0) as batch:
                    seen += (batch.descriptors["seq1"].astype("i8") - 1).tolist()
                    batch.ack()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert sorted(seen) == list(range(160))


# ---- waiting for what is held here ---------------------------------------------------------------


def test_waiting_for_what_a_view_holds_is_refused(writer: Writer, join: Join) -> None:
    member = join()
    fill(writer)
    view = get(member).payload
    assert take(member) == list(range(1, SLOTS))
    assert writer.try_publish(b"") is None
    waits: tuple[Callable[[], object], ...] = (
        lambda: member.read(timeout=DEADLINE),
        lambda: member.batch(timeout=DEADLINE),
        lambda: next(member),
        lambda: list(member),
    )
    for wait in waits:
        with pytest.raises(shm.RingFull, match="a view or array is still alive"):
            wait()
    assert bytes(view) == text(0)
    view.release()
    assert take(member) == []
    assert fill(writer) == SLOTS


def test_a_sleeping_member_is_woken_to_be_refused(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, *[0] * SLOTS)
    view = get(member).payload
    assert take(member) == list(range(1, SLOTS))
    waiting = Background(member.read)
    wait_until_waiting(writer.name)
    assert writer.try_publish(b"") is None
    with pytest.raises(shm.RingFull):
        waiting.result()
    del view


@pytest.mark.usefixtures("no_automatic_gc")
def test_views_in_garbage_are_collected_before_it_is_refused(writer: Writer, join: Join) -> None:
    member = join()
    fill(writer)
    cycle: list[Any] = [get(member).payload]
    cycle.append(cycle)
    del cycle
    assert take(member) == list(range(1, SLOTS))
    assert writer.try_publish(b"") is None
    waiting = Background(lambda: next(member).sequence)
    eventually(lambda: put_if_there_is_room(writer), "the ring has room again")
    assert waiting.result() == SLOTS


def put_if_there_is_room(writer: Writer) -> bool:
    """One message; False: the ring is full."""
    return writer.try_publish(text(writer.sequence)) is not None


# ---- the end of the member -----------------------------------------------------------------------


@pytest.mark.parametrize("acked", [True, False])
@pytest.mark.parametrize("how", EXPORTS)
def test_close_refuses_while_a_view_is_alive(
    writer: Writer, join: Join, how: str, acked: bool
) -> None:
    member = join(auto_ack=False)
    put(writer, 0, 0, 0)
    messages = [get(member) for _ in range(3)]
    kept = EXPORTS[how](messages[1])
    if acked:
        messages[1].ack()
    with pytest.raises(BufferError, match="the oldest of message 1"):
        member.close()
    assert not member.closed
    put(writer, 0)
    messages.append(get(member))
    del kept
    member.close()
    assert member.closed
    assert reader_status(writer.name) is None
    assert [bytes(message) for message in messages] == [text(n) for n in range(4)]
    assert status_of(writer).returned == 4 - acked


@pytest.mark.parametrize("acked", [True, False])
def test_leaving_the_block_never_raises_and_the_view_stays_valid(
    writer: Writer, join: Join, acked: bool
) -> None:
    with Member.attach(writer.name, "g", auto_ack=False) as member:
        fill(writer)
        message = get(member)
        view = message.payload
        if acked:
            message.ack()
    assert member.closed
    other = join(auto_ack=False)
    for _ in range(SLOTS - 1):
        get(other).ack()
    assert other.read(timeout=0) is None
    assert not fill(writer)
    assert bytes(view) == text(0)
    del message
    view.release()
    if not acked:
        ((_, again),) = collect([other], 1)
        assert (again.sequence, again.deliveries) == (0, 2)
        again.ack()
        del again
    assert other.read(timeout=0) is None
    assert fill(writer) == SLOTS
    assert [reader.slot for reader in shm.status(writer.name).readers] == [other.slot]


def test_a_member_that_is_dropped_frees_its_slot(writer: Writer) -> None:
    member = Member.attach(writer.name, "g")
    put(writer, 0)
    message = get(member)
    del member
    gc.collect()
    assert reader_status(writer.name) is not None, "the message keeps it"
    assert bytes(message) == text(0)
    del message
    gc.collect()
    assert reader_status(writer.name) is None
    assert status_of(writer).members == ()


def test_a_view_outlives_member_writer_and_ring(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=1) as writer:
        member = Member.attach(name, "g")
        put(writer, 0)
        kept = np.frombuffer(memoryview(get(member)), np.uint8)
    del writer, member
    gc.collect()
    assert kept.tobytes() == text(0)


def test_messages_of_readers_and_members_in_one_process(writer: Writer, join: Join) -> None:
    """They are kept apart, also where memory is used again."""
    member = join()
    with Reader.attach(writer.name) as reader:
        for _ in range(200):
            put(writer, *[0] * 8)
            messages = [*reader.read_available(), *member.read_available()]
            assert [bytes(one) for one in messages[:8]] == [bytes(one) for one in messages[8:]]
            random.shuffle(messages)
            while messages:
                messages.pop()
            assert reader.read(timeout=0) is None
            assert member.read(timeout=0) is None
    gc.collect()


def test_nothing_can_be_written(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0)
    message = get(member)
    for view in (message.payload, memoryview(message)):
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1
