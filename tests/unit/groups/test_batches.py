"""Batches: claimed and acknowledged as one; what is in them, where they end, and how long they are
valid."""

from __future__ import annotations

import gc
import itertools
import struct
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupBatch, Member
from tests.conftest import DEADLINE
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import BALANCES, CAPACITY, SLOTS, Join, collect, put, status_of, take, text

POINT = np.dtype([("x", "<i4"), ("y", "<i4")])


def sequences(batch: GroupBatch) -> list[int]:
    """Of all in it; each holds its own."""
    found: list[int] = (batch.descriptors["seq1"].astype("i8") - 1).tolist()
    assert [bytes(batch.payload(i)) for i in range(len(batch))] == [text(s) for s in found]
    return found


def figures(writer: Writer) -> tuple[int, int, int]:
    """In hand, waiting to be delivered again, and not done in all."""
    status = status_of(writer)
    return status.in_flight, status.returned, status.lag


class Failed(Exception):
    """What a program raises while it handles a batch."""


# ---- what is in it -------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_descriptors(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    for n in range(5):
        writer.publish(b"x" * n, topic=10 + n, key=20 + n, kind=shm.Kind.TEXT)
    with member.batch(timeout=0) as batch:
        table = batch.descriptors
        assert table.dtype == shm.DESCRIPTOR
        assert table.shape == (len(batch),) == (5,)
        assert table["seq1"].tolist() == [1, 2, 3, 4, 5]
        assert table["length"].tolist() == [0, 1, 2, 3, 4]
        assert table["topic"].tolist() == [10, 11, 12, 13, 14]
        assert table["key"].tolist() == [20, 21, 22, 23, 24]
        assert table["kind"].tolist() == [1] * 5
        assert (batch.first, batch.gap, batch.deliveries) == (0, 0, 1)
        assert [bytes(batch.payload(i)) for i in range(-5, 0)] == [b"x" * n for n in range(5)]
        with pytest.raises(IndexError, match="the batch has 5 messages"):
            batch.payload(5)
        with pytest.raises(ValueError, match="read-only"):
            table["topic"] = 1
        del table


def test_repr(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0, 0)
    with member.batch(timeout=0) as batch:
        assert repr(batch) == "<GroupBatch of 2 messages from 0>"


@pytest.mark.parametrize("balance", ["any", "key"])
def test_records(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    for n in range(4):
        writer.publish(struct.pack("<ii", n, -n), key=1)
    with member.batch(timeout=0) as batch:
        records = batch.records(POINT)
        assert records["x"].tolist() == [0, 1, 2, 3]
        assert records["y"].tolist() == [0, -1, -2, -3]
        assert np.shares_memory(records, np.frombuffer(batch.payload(3), np.uint8))
        assert not records.flags.writeable
        del records


def test_records_that_are_not_evenly_spaced(writer: Writer, join: Join) -> None:
    """What lies between them went to others."""
    member = join(balance="key")
    others = [join(balance="key") for _ in range(2)]
    for key in range(1, 40):
        writer.publish(struct.pack("<ii", key, -key), key=key)
    with member.batch(timeout=0) as batch:
        assert len({b - a for a, b in itertools.pairwise(batch.descriptors["seq1"].tolist())}) > 1
        with pytest.raises(ValueError, match="not evenly spaced"):
            batch.records(POINT)
        keys = [struct.unpack("<ii", batch.payload(i))[0] for i in range(len(batch))]
        assert keys == batch.descriptors["key"].tolist()
    assert len(collect(others, 39 - len(keys))) == 39 - len(keys)


def test_records_with_gaps_of_others(writer: Writer, join: Join) -> None:
    member, other = join(balance="round-robin"), join(balance="round-robin")
    for n in range(7):
        writer.publish(struct.pack("<ii", n, -n))
    with member.batch(timeout=0) as batch:
        assert batch.records(POINT)["x"].tolist() == [0, 2, 4, 6], "evenly spaced"
    with other.batch(timeout=0) as batch:
        assert batch.records(POINT)["x"].tolist() == [1, 3, 5]


def test_limits(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, *[0] * 10)
    for limit, expected in [(1, [0]), (3, [1, 2, 3]), (2**40, [4, 5, 6, 7, 8, 9])]:
        with member.batch(limit=limit, timeout=0) as batch:
            assert sequences(batch) == expected
            assert batch.first == expected[0]
    for bad in (0, -1):
        with pytest.raises(ValueError, match="limit is a number of messages, 1 or more"):
            member.batch(limit=bad)
        with pytest.raises(ValueError, match="limit is a number of messages, 1 or more"):
            member.read_available(limit=bad)
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout is seconds, 0 or more"):
            member.batch(timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_an_empty_batch(writer: Writer, join: Join, timeout: float) -> None:
    member = join()
    put(writer, 0)
    assert take(member) == [0]
    with member.batch(timeout=timeout) as batch:
        assert (len(batch), batch.first, batch.gap, batch.deliveries) == (0, 1, 0, 0)
        assert batch.descriptors.shape == (0,)
        assert batch.records(POINT).shape == (0,)
        batch.ack()
        batch.nack()
    with pytest.raises(ValueError, match="the batch is over"):
        batch.descriptors  # noqa: B018


def test_a_batch_waits_for_its_first_message(writer: Writer, join: Join) -> None:
    member = join()

    def wait() -> list[int]:
        with member.batch(timeout=DEADLINE) as batch:
            return sequences(batch)

    waiting = Background(wait)
    wait_until_waiting(writer.name)
    put(writer, 0)
    assert waiting.result() == [0]


@pytest.mark.parametrize("balance", BALANCES)
def test_many_batches_get_everything(writer: Writer, join: Join, balance: Any) -> None:
    """Over the ends of the descriptors and of the arena, which they do not cross."""
    member = join(balance=balance)
    seen = []
    for _ in range(30):
        for key in range(7):
            sequence = writer.sequence
            writer.publish(struct.pack("<q", sequence) + bytes(sequence * 37 % 500), key=key)
        while member.lag:
            with member.batch(limit=5, timeout=0) as batch:
                seen += (batch.descriptors["seq1"].astype("i8") - 1).tolist()
                for index, sequence in enumerate(seen[len(seen) - len(batch) :]):
                    payload = batch.payload(index)
                    assert bytes(payload[:8]) == struct.pack("<q", sequence)
                    assert len(payload) == 8 + sequence * 37 % 500
                    payload.release()
                places = batch.descriptors["position"]
                assert len(set((places // CAPACITY).tolist())) == 1, "one round of the arena"
                del places
    assert seen == list(range(210))


def test_at_the_end_of_the_ring(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0)
    writer.close()
    with member.batch() as batch:
        assert sequences(batch) == [0]
    with pytest.raises(shm.RingClosed, match="has ended"):
        member.batch(timeout=0)
    with pytest.raises(shm.RingClosed, match="has ended"):
        member.read_available()


# ---- done, or given back ---------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_the_end_of_the_block_acknowledges(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    put(writer, *[1, 2] * 5)
    with member.batch(timeout=0):
        assert figures(writer)[:2] == (10, 0)
    assert figures(writer)[:2] == (0, 0)
    assert take(member) == []
    assert figures(writer) == (0, 0, 0)


@pytest.mark.parametrize("balance", BALANCES)
def test_an_exception_gives_all_back(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    put(writer, *[1, 2] * 5)
    with pytest.raises(Failed), member.batch(timeout=0):
        raise Failed
    assert figures(writer)[:2] == (0, 10)
    with member.batch(timeout=DEADLINE) as batch:
        assert (sequences(batch), batch.deliveries) == ([0], 2), "singly"
    messages = member.read_available()
    assert [(m.sequence, m.deliveries) for m in messages] == [(1, 2)], "alone"
    del messages
    assert take(member) == list(range(2, 10))
    assert figures(writer) == (0, 0, 0)
    assert status_of(writer).redelivered == 10


@pytest.mark.parametrize("end", ["release", "drop"])
def test_without_its_block(writer: Writer, join: Join, end: str) -> None:
    """`release` gives back what was not acknowledged; one that is dropped is still in hand."""
    member = join()
    put(writer, *[0] * 4)
    batch = member.batch(timeout=0)
    if end == "release":
        batch.release()
        assert figures(writer)[:2] == (0, 4)
        batch.release()
        assert figures(writer)[:2] == (0, 4)
        return
    del batch
    gc.collect()
    assert figures(writer)[:2] == (4, 0)
    assert member.read(timeout=0) is None
    assert figures(writer) == (0, 0, 0)


def test_without_auto_ack(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, *[0] * 9)
    with member.batch(limit=3, timeout=0) as batch:
        batch.ack()
        assert figures(writer)[:2] == (0, 0)
        assert sequences(batch) == [0, 1, 2]
        batch.ack()
        batch.nack()
    with member.batch(limit=3, timeout=0):
        pass
    assert figures(writer)[:2] == (0, 3)
    with member.batch(limit=3, timeout=0) as batch:
        assert (sequences(batch), batch.deliveries) == ([3], 2)
        batch.ack()
    assert figures(writer)[:2] == (0, 2)
    batch = member.batch(limit=3, timeout=0)
    assert sequences(batch) == [4]
    del batch
    gc.collect()
    assert figures(writer)[:2] == (0, 2), "dropped: given back"


def test_ack_and_nack_in_its_block(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, *[0] * 6)
    with member.batch(limit=3, timeout=0) as batch:
        batch.ack()
        assert figures(writer)[:2] == (0, 0)
    with member.batch(limit=3, timeout=0) as batch:
        batch.nack()
        assert figures(writer)[:2] == (0, 3)
        batch.nack()
    assert figures(writer)[:2] == (0, 3)
    found = collect([member], 3)
    assert sorted((m.sequence, m.deliveries) for _, m in found) == [(3, 2), (4, 2), (5, 2)]


def test_a_batch_that_was_given_back_can_not_be_acknowledged(writer: Writer, join: Join) -> None:
    """As with a message: whoever has it next acknowledges it."""
    member = join(auto_ack=False)
    put(writer, 0, 0)
    with member.batch(timeout=0) as batch:
        batch.nack()
        with pytest.raises(ValueError, match="given back"):
            batch.ack()


def test_batches_and_messages_in_one_hand(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    auto = join("auto")
    put(writer, *[0] * 9)
    for one in (member, auto):
        messages = one.read_available(limit=2)
        with one.batch(limit=3, timeout=0) as batch:
            assert batch.first == 2
            if one is member:
                batch.ack()
        if one is member:
            one.ack(messages)
        assert [m.sequence for m in one.read_available()] == [5, 6, 7, 8]
    assert figures(writer)[1] == 4, "those of the member without auto_ack went with the list"
    assert status_of(writer, "auto").in_flight == 4


# ---- valid as long as a view lives -----------------------------------------------------------


def fill(writer: Writer) -> int:
    """Publish until there is no room; how many."""
    count = 0
    while writer.try_publish(text(writer.sequence)) is not None:
        count += 1
        assert count <= SLOTS, "nothing holds the ring"
    return count


@pytest.mark.parametrize("what", ["payload", "descriptors", "records"])
@pytest.mark.parametrize("balance", BALANCES)
def test_views_outlive_the_block(writer: Writer, join: Join, balance: Any, what: str) -> None:
    """The messages are done, but the ring does not reuse their bytes."""
    member = join(balance=balance)
    put(writer, *[1] * 8)
    with member.batch(timeout=0) as batch:
        kept: Any = None
        if what == "payload":
            kept = [batch.payload(i) for i in range(8)]
        else:
            kept = batch.descriptors if what == "descriptors" else batch.records("S8")
        before = [bytes(one) for one in kept]
    with pytest.raises(ValueError, match="the batch is over"):
        batch.payload(0)
    assert figures(writer) == (0, 0, 8), "nothing is in hand, but the floor stays"
    assert fill(writer) == SLOTS - 8
    assert take(member) == list(range(8, SLOTS))
    assert not fill(writer)
    assert [bytes(one) for one in kept] == before
    del kept
    gc.collect()
    assert take(member) == []
    assert fill(writer) == SLOTS
    del batch


def test_given_back_while_a_view_lives(writer: Writer, join: Join) -> None:
    """Then it goes back with the last view."""
    member = join()
    put(writer, *[0] * 4)
    views = []

    def fail() -> None:
        with member.batch(timeout=0) as batch:
            views.append(batch.payload(3))
            raise Failed

    with pytest.raises(Failed):
        fail()
    view = views.pop()
    assert figures(writer)[:2] == (4, 0)
    assert take(member) == []
    assert figures(writer)[:2] == (4, 0)
    assert bytes(view) == text(3)
    view.release()
    assert figures(writer)[:2] == (0, 4)


def test_nack_while_a_view_lives_is_refused(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, *[0] * 4)
    with member.batch(timeout=0) as batch:
        view = batch.payload(0)
        with pytest.raises(BufferError, match="array or view of this batch is still alive"):
            batch.nack()
        view.release()
        batch.nack()
    assert figures(writer)[:2] == (0, 4)


def test_close_with_an_open_batch(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, *[0] * 4)
    with member.batch(timeout=0) as batch:
        with pytest.raises(BufferError, match="the oldest of message 0"):
            member.close()
        array = batch.records("S8")
    with pytest.raises(BufferError, match="the oldest of message 0"):
        member.close()
    assert not member.closed
    put(writer, 0)
    assert take(member) == [4]
    del array
    member.close()
    assert member.closed
    assert status_of(writer).members == ()


def test_an_array_outlives_batch_member_and_ring(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=1) as writer:
        member = Member.attach(name, "g")
        put(writer, 0, 0)
        with member.batch(timeout=0) as batch:
            array = batch.records("S8")
        del batch, member
    del writer
    gc.collect()
    assert array.tolist() == [text(0), text(1)]


@pytest.mark.parametrize("end", ["release", "drop"])
def test_left_open_by_a_member_that_ends(writer: Writer, end: str) -> None:
    """It is still readable, and goes back with its end."""
    with Member.attach(writer.name, "g") as member:
        put(writer, *[0] * 4)
        batch = member.batch(timeout=0)
    assert sequences(batch) == [0, 1, 2, 3]
    with Member.attach(writer.name, "g") as other:
        assert take(other) == []
        if end == "release":
            batch.release()
        else:
            del batch
            gc.collect()
        found = collect([other], 4)
        assert [(m.sequence, m.deliveries) for _, m in found] == [(n, 2) for n in range(4)]


def test_a_finished_batch_holds_nothing(writer: Writer, join: Join) -> None:
    member = join()
    batches = []
    for _ in range(10):
        put(writer, *[0] * SLOTS)
        with member.batch(timeout=0) as batch:
            assert len(batch) == SLOTS
        batches.append(batch)
        assert not take(member)
    assert all(len(batch) == SLOTS for batch in batches)


def test_waiting_for_what_a_view_holds_is_refused(writer: Writer, join: Join) -> None:
    """The ring is full, the writer waits, and only a view here keeps it from going on."""
    member = join()
    put(writer, *[0] * 4)
    with member.batch(timeout=0) as batch:
        array = batch.records("S8")
    fill(writer)
    assert len(take(member)) == SLOTS - 4
    assert writer.try_publish(b"") is None
    with pytest.raises(shm.RingFull, match="a view or array is still alive"):
        member.read(timeout=0.5)
    assert array.tolist() == [text(n) for n in range(4)]
    del array
    assert take(member) == []
    assert fill(writer) == SLOTS


# ---- read_available --------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_read_available(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    assert member.read_available() == []
    put(writer, *[1] * 10)
    assert [m.sequence for m in member.read_available(limit=3)] == [0, 1, 2]
    messages = member.read_available()
    assert [m.sequence for m in messages] == list(range(3, 10))
    assert figures(writer)[:2] == (7, 0), "those three are done"
    assert member.read_available() == []
    assert figures(writer) == (0, 0, 0)
    assert [bytes(m) for m in messages] == [text(n) for n in range(3, 10)]


def test_read_available_gets_all_there_is(writer: Writer, join: Join) -> None:
    """Also where the arena begins anew."""
    member = join()
    for _ in range(50):
        for n in range(7):
            writer.publish(bytes(100 + n * 10))
        assert len(member.read_available()) == 7


def test_a_keyed_batch_has_several_of_a_key_in_order(writer: Writer, join: Join) -> None:
    member, other = join(balance="key"), join(balance="key")
    put(writer, *[1, 2, 3, 4, 5, 6, 7, 8] * 4)
    found = []
    for one in (member, other):
        with one.batch(timeout=0) as batch:
            found.append(sequences(batch))
            assert found[-1] == sorted(found[-1])
    assert sorted(itertools.chain(*found)) == list(range(32))
    assert {s % 8 for s in found[0]}.isdisjoint(s % 8 for s in found[1])
