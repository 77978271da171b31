"""Batches: descriptors and payloads as arrays, where they end, and how long they are valid."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Batch, Reader, Writer
from tests.unit.conftest import (
    CAPACITY,
    DATA_HEADER,
    MAX_MESSAGE,
    SLOTS,
    Background,
    data_path,
    fill,
    wait_until_waiting,
)

POINT = np.dtype([("x", "<i4"), ("y", "<i4")])


@pytest.fixture
def lossy(writer: Writer) -> Reader:
    """A lossy reader from the first message on."""
    return Reader.attach(writer.name, policy="lossy")


def payloads(batch: Batch) -> list[bytes]:
    """Every payload, copied."""
    return [bytes(batch.payload(i)) for i in range(len(batch))]


# ---- what is in it -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_descriptors(writer: Writer, policy: str) -> None:
    with Reader.attach(writer.name, policy=policy) as reader:  # type: ignore[arg-type]
        for i in range(5):
            writer.publish(b"x" * i, topic=10 + i, kind=shm.Kind.TEXT)
        with reader.batch() as batch:
            table = batch.descriptors
            assert table.dtype == shm.DESCRIPTOR
            assert table.shape == (len(batch),) == (5,)
            assert table["seq1"].tolist() == [1, 2, 3, 4, 5]
            assert table["length"].tolist() == [0, 1, 2, 3, 4]
            assert table["topic"].tolist() == [10, 11, 12, 13, 14]
            assert table["kind"].tolist() == [1] * 5
            assert table["epoch"].tolist() == [1] * 5
            assert (np.diff(table["time_ns"].astype("i8")) >= 0).all()
            assert batch.first == 0
            assert batch.gap == 0
            assert payloads(batch) == [b"x" * i for i in range(5)]
            del table


def test_nothing_in_it_can_be_written(writer: Writer, reader: Reader) -> None:
    writer.publish(bytes(8))
    with reader.batch() as batch:
        with pytest.raises(ValueError, match="read-only"):
            batch.descriptors["topic"] = 1
        with pytest.raises(ValueError, match="read-only"):
            batch.records("u8")[0] = 1
        with pytest.raises(TypeError, match="read-only"):
            batch.payload(0)[0] = 1


def test_payload_by_index(writer: Writer, reader: Reader) -> None:
    writer.publish_many([b"a", b"bb", b"ccc"])
    with reader.batch() as batch:
        assert bytes(batch.payload(-1)) == b"ccc"
        assert bytes(batch.payload(-3)) == b"a"
        for index in (3, -4, 2**40):
            with pytest.raises(IndexError, match="the batch has 3 messages"):
                batch.payload(index)
        with pytest.raises(TypeError):
            batch.payload("0")  # type: ignore[arg-type]


def test_repr(writer: Writer, reader: Reader) -> None:
    writer.publish_many([b"a", b"b"])
    with reader.batch() as batch:
        assert repr(batch) == "<Batch of 2 messages from 0>"


def test_limit(writer: Writer, reader: Reader) -> None:
    writer.publish_many([b"m"] * 5)
    with reader.batch(limit=2) as batch:
        assert (batch.first, len(batch)) == (0, 2)
    with reader.batch(limit=1) as batch:
        assert (batch.first, len(batch)) == (2, 1)
    with reader.batch(limit=2**40) as batch:
        assert (batch.first, len(batch)) == (3, 2)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(reader: Reader, limit: int) -> None:
    with pytest.raises(ValueError, match="limit is a number of messages, 1 or more"):
        reader.batch(limit=limit)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_negative_timeout_is_refused(reader: Reader, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is seconds, 0 or more"):
        reader.batch(timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_an_empty_batch(reader: Reader, timeout: float) -> None:
    with reader.batch(timeout=timeout) as batch:
        assert len(batch) == 0
        assert batch.first == 0
        assert batch.descriptors.shape == (0,)
        assert batch.records(POINT).shape == (0,)
        with pytest.raises(IndexError):
            batch.payload(0)


def test_a_batch_waits_for_its_first_message(writer: Writer, reader: Reader) -> None:
    waiting = Background(reader.batch)
    wait_until_waiting(writer.name)
    writer.publish(b"at last")
    batch = waiting.result()
    assert payloads(batch) == [b"at last"]
    batch.release()


def test_a_batch_at_the_end_of_the_ring(writer: Writer, reader: Reader) -> None:
    writer.publish(b"last")
    writer.close()
    with reader.batch() as batch:
        assert payloads(batch) == [b"last"]
    with pytest.raises(shm.RingClosed, match="has ended"):
        reader.batch(timeout=0)


# ---- where it ends -------------------------------------------------------------------------


def test_a_batch_stops_at_the_end_of_the_descriptors(writer: Writer, reader: Reader) -> None:
    writer.publish_many([b""] * 5)
    reader.read_available()
    reader.read_available()
    writer.publish_many([b"%d" % i for i in range(5, 12)])
    sizes = []
    while reader.lag:
        with reader.batch() as batch:
            sizes.append(len(batch))
            assert payloads(batch) == [
                b"%d" % i for i in range(batch.first, batch.first + len(batch))
            ]
    assert sizes == [SLOTS - 5, 4]


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_a_batch_stops_at_the_end_of_the_arena(writer: Writer, policy: str) -> None:
    reader = Reader.attach(writer.name, policy=policy)  # type: ignore[arg-type]
    for first in range(0, 60, 2):
        writer.publish_many([bytes([i]) * 200 for i in (first, first + 1)], timeout=0)
        while reader.cursor < first + 2:
            with reader.batch(timeout=0) as batch:
                start = batch.first
                positions = batch.descriptors["position"] % writer.capacity
                assert (np.diff(positions.astype("i8")) > 0).all()
                assert payloads(batch) == [bytes([start + i]) * 200 for i in range(len(batch))]
        assert reader.read(timeout=0) is None
    assert reader.lost == 0


def test_batches_and_single_reads_mix(writer: Writer, reader: Reader) -> None:
    seen: list[int] = []
    for start in range(0, 60, 6):
        writer.publish_many([struct.pack("<q", i) for i in range(start, start + 6)], timeout=0)
        message = reader.read(timeout=0)
        assert message is not None
        seen.append(message.sequence)
        while reader.lag:
            with reader.batch(limit=4, timeout=0) as batch:
                seen.extend((batch.descriptors["seq1"].astype("i8") - 1).tolist())
                assert batch.records("<i8").tolist() == seen[-len(batch) :]
        assert reader.read(timeout=0) is None
    assert seen == list(range(60))


# ---- records -------------------------------------------------------------------------------


def publish_points(writer: Writer, count: int = 4) -> None:
    """Messages that each hold one point."""
    writer.publish_many([struct.pack("<ii", i, -i) for i in range(count)])


def test_records(writer: Writer, reader: Reader) -> None:
    publish_points(writer)
    with reader.batch() as batch:
        records = batch.records(POINT)
        assert records.dtype == POINT
        assert records["x"].tolist() == [0, 1, 2, 3]
        assert records["y"].tolist() == [0, -1, -2, -3]
        for i in range(4):
            assert np.shares_memory(records, np.frombuffer(batch.payload(i), np.uint8))
        assert not records.flags.owndata
        assert not records.flags.writeable
        del records


def test_records_with_padding_between_them(writer: Writer, reader: Reader) -> None:
    writer.publish_many([bytes([i] * 5) for i in range(4)])
    with reader.batch() as batch:
        records = batch.records("5u1")
        assert records.tolist() == [[i] * 5 for i in range(4)]
        assert np.shares_memory(records, np.frombuffer(batch.payload(2), np.uint8))
        del records


def test_records_of_a_lossy_reader(writer: Writer, lossy: Reader) -> None:
    publish_points(writer)
    with lossy.batch() as batch:
        records = batch.records(POINT)
        for _ in range(10):
            publish_points(writer)
        assert records["x"].tolist() == [0, 1, 2, 3]
        assert np.shares_memory(records, np.frombuffer(batch.payload(3), np.uint8))
        del records


def test_one_record_and_records_of_no_bytes(writer: Writer, reader: Reader) -> None:
    publish_points(writer, 1)
    with reader.batch() as batch:
        assert batch.records(POINT)["y"].tolist() == [0]
    writer.publish_many([b"", b""])
    with reader.batch() as batch:
        assert batch.records("V0").shape == (2,)


def test_records_of_another_size_are_refused(writer: Writer, reader: Reader) -> None:
    writer.publish_many([bytes(8), bytes(8), bytes(9)])
    with reader.batch() as batch:
        with pytest.raises(ValueError, match=r"8 bytes, the dtype's size, but message 2 has 9"):
            batch.records("u8")
        with pytest.raises(ValueError, match=r"4 bytes, the dtype's size, but message 0 has 8"):
            batch.records("u4")
        with pytest.raises(TypeError, match="not understood"):
            batch.records("no dtype")


def test_records_of_python_objects_are_refused(writer: Writer, reader: Reader) -> None:
    writer.publish(bytes(8))
    with reader.batch() as batch:
        for dtype in ("O", np.dtype([("a", "O")])):
            with pytest.raises(TypeError, match="never Python objects"):
                batch.records(dtype)


def test_records_that_are_not_evenly_spaced_are_refused(writer: Writer, reader: Reader) -> None:
    for reserved in (8, 8, 64, 8):
        with writer.reserve(reserved) as room:
            room.commit(8)
    writer.publish_many([bytes(8)] * 2)
    with writer.reserve(32) as room:
        room[:] = bytes(32)
    with reader.batch() as batch:
        assert batch.records("u8").shape == (6,)  # what is reserved and not committed is not used


def test_records_from_a_hostile_table_are_refused(writer: Writer, reader: Reader) -> None:
    writer.publish_many([bytes(8)] * 4)
    with data_path(writer.name).open("r+b") as segment:
        segment.seek(DATA_HEADER + 8)  # the position of message 0
        segment.write((64).to_bytes(8, "little"))
    with warnings.catch_warnings(), reader.batch() as batch:
        warnings.simplefilter("error")
        with pytest.raises((shm.RingCorrupt, ValueError)):
            batch.records("u8")


@pytest.mark.parametrize(
    "positions", [[64], [i * CAPACITY for i in range(4)], [i << 62 for i in range(4)]]
)
def test_records_from_a_table_that_turns_hostile_are_refused(
    writer: Writer, reader: Reader, positions: list[int]
) -> None:
    writer.publish_many([bytes(8)] * 4)
    with warnings.catch_warnings(), reader.batch() as batch:
        warnings.simplefilter("error")
        with data_path(writer.name).open("r+b") as segment:
            for i, position in enumerate(positions):
                segment.seek(DATA_HEADER + 64 * i + 8)  # of message i
                segment.write(position.to_bytes(8, "little"))
        with pytest.raises((shm.RingCorrupt, ValueError)):
            batch.records("u8")


# ---- how long it is valid --------------------------------------------------------------------


def test_a_batch_is_over_after_its_block(writer: Writer, reader: Reader) -> None:
    publish_points(writer)
    with reader.batch() as batch:
        pass
    for use in (lambda: batch.descriptors, lambda: batch.payload(0), lambda: batch.records(POINT)):
        with pytest.raises(ValueError, match="the batch is over"):
            use()
    batch.release()  # again: nothing happens
    assert len(batch) == 4


def test_an_open_batch_holds_the_ring(writer: Writer, reader: Reader) -> None:
    fill(writer)
    batch = reader.batch()
    assert writer.try_publish(b"x") is None
    batch.release()
    assert writer.try_publish(b"x") is not None


@pytest.mark.parametrize("make", ["descriptors", "payload", "records"])
def test_what_is_kept_of_a_batch_holds_the_ring(writer: Writer, reader: Reader, make: str) -> None:
    fill(writer)
    with reader.batch() as batch:
        makers: dict[str, Callable[[], Any]] = {
            "descriptors": lambda: batch.descriptors,
            "payload": lambda: batch.payload(3),
            "records": lambda: batch.records("S8"),
        }
        kept = makers[make]()
        before = bytes(kept)
    reader.read_available()
    assert writer.try_publish(b"overwritten?") is None
    assert bytes(kept) == before
    with pytest.raises(BufferError, match="the oldest of message 0"):
        reader.close()
    del kept
    reader.read_available()
    assert writer.try_publish(b"x") is not None


def test_a_lossy_batch_holds_nothing(writer: Writer, lossy: Reader) -> None:
    writer.publish_many([b"%08d" % i for i in range(4)])
    batch = lossy.batch()
    for i in range(100):
        assert writer.try_publish(b"%08d" % i) is not None
    assert payloads(batch) == [b"%08d" % i for i in range(4)]
    batch.release()


def test_a_lossy_batch_after_an_overrun_tells_the_gap(writer: Writer, lossy: Reader) -> None:
    for i in range(100):
        writer.publish(b"%08d" % i)
    total = 0
    while total + lossy.lost < 100:
        with lossy.batch(timeout=0) as batch:
            assert batch.gap == (lossy.lost if total == 0 else 0)
            assert payloads(batch) == [
                b"%08d" % i for i in range(batch.first, batch.first + len(batch))
            ]
            total += len(batch)
    assert lossy.lost > 0
    assert lossy.cursor == 100


def test_a_lossy_batch_may_hold_the_longest_message(writer: Writer, lossy: Reader) -> None:
    longest = b"m" * MAX_MESSAGE
    writer.publish(longest)
    with lossy.batch() as batch:
        assert payloads(batch) == [longest]


def test_an_evicted_reader_s_batch_raises(writer: Writer, reader: Reader) -> None:
    publish_points(writer)
    with reader.batch() as batch:
        writer.evict(reader.slot)
        for use in (lambda: batch.descriptors, lambda: batch.payload(0)):
            with pytest.raises(shm.Evicted):
                use()
