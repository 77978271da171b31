"""The figures of `shm.status`: right, and read without disturbing anybody."""

from __future__ import annotations

import os
import time

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import reader_status
from tests.unit.conftest import (
    CAPACITY,
    MAX_MESSAGE,
    SLOTS,
    Background,
    control_path,
    data_path,
    fill,
    wait_until_waiting,
)


def one_reader(name: str) -> shm.ReaderStatus:
    """The status of the only reader."""
    (status,) = shm.status(name).readers
    return status


def test_of_a_new_ring(name: str) -> None:
    earliest = time.time_ns()
    with Writer.create(name, slots=8, capacity=1024, max_readers=2):
        status = shm.status(name)
        assert earliest <= status.created_ns <= status.writer_since_ns <= time.time_ns()
        assert status == shm.RingStatus(
            name=name,
            state="open",
            epoch=1,
            slots=8,
            capacity_bytes=1024,
            max_message=256,
            max_readers=2,
            used_slots=0,
            used_bytes=0,
            occupancy=0.0,
            sequence=0,
            oldest=0,
            writer_pid=os.getpid(),
            created_ns=status.created_ns,
            writer_since_ns=status.writer_since_ns,
            note=b"",
            readers=(),
            groups=(),
        )


def test_of_a_new_reader(writer: Writer) -> None:
    writer.publish(b"x")
    earliest = time.time_ns()
    with Reader.attach(writer.name, label="mine"):
        status = one_reader(writer.name)
        assert earliest <= status.joined_ns <= time.time_ns()
        assert status == shm.ReaderStatus(
            slot=0,
            pid=os.getpid(),
            label="mine",
            policy="block",
            state="active",
            cursor=1,
            lag=0,
            lag_bytes=0,
            received=0,
            skipped=0,
            lost=0,
            topics=None,
            others=False,
            waiting=False,
            gating=True,
            joined_ns=status.joined_ns,
            group=None,
        )
    assert shm.status(writer.name).readers == ()


def test_occupancy_in_messages(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        for count in range(1, SLOTS + 1):
            writer.publish(b"12345678")
            status = shm.status(writer.name)
            assert (status.used_slots, status.used_bytes) == (count, 8 * count)
            assert status.occupancy == count / SLOTS
        assert (one_reader(writer.name).lag, one_reader(writer.name).lag_bytes) == (8, 64)
        reader.read_available()
        reader.read_available()
        status = shm.status(writer.name)
        assert (status.used_slots, status.used_bytes, status.occupancy) == (0, 0, 0.0)


def test_occupancy_in_bytes(writer: Writer) -> None:
    with Reader.attach(writer.name):
        for count in range(1, 5):
            writer.publish(bytes(MAX_MESSAGE))
            status = shm.status(writer.name)
            assert (status.used_slots, status.used_bytes) == (count, count * MAX_MESSAGE)
            assert status.occupancy == count * MAX_MESSAGE / CAPACITY


def test_the_slowest_gating_reader_counts(writer: Writer) -> None:
    with (
        Reader.attach(writer.name) as slow,
        Reader.attach(writer.name) as fast,
        Reader.attach(writer.name, policy="lossy"),
    ):
        writer.publish_many([b"12345678"] * 6)
        assert slow.read(timeout=0) is not None
        slow.batch(limit=1).release()
        while fast.read(timeout=0) is not None:
            pass
        status = shm.status(writer.name)
        assert [reader.slot for reader in status.readers] == [0, 1, 2]
        assert [reader.lag for reader in status.readers] == [4, 0, 6]
        assert [reader.gating for reader in status.readers] == [True, True, False]
        assert [reader.policy for reader in status.readers] == ["block", "block", "lossy"]
        assert status.used_slots == 4


def test_what_was_received_and_lost(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy") as reader:
        writer.publish_many([b"x"] * 5)
        reader.read_available()
        reader.read_available()
        assert (one_reader(writer.name).received, one_reader(writer.name).lost) == (5, 0)
        for _ in range(100):
            writer.publish(b"x")
        received = 5 + len(reader.read_available())
        reader.read_available()
        status = one_reader(writer.name)
        assert (status.received, status.lost) == (received, 105 - received)
        assert status.cursor == 105


def test_the_lag_of_an_overrun_reader_is_at_most_the_ring(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy"):
        for _ in range(1000):
            writer.publish(b"x")
        status = one_reader(writer.name)
        assert (status.lag, status.lag_bytes) == (SLOTS, CAPACITY)
        assert shm.status(writer.name).occupancy == 0.0


def test_oldest(writer: Writer) -> None:
    for count in range(1, 100):
        writer.publish(b"x")
        oldest = shm.status(writer.name).oldest
        assert max(0, count - SLOTS) <= oldest <= count
        with Reader.attach(writer.name, start="oldest") as reader:
            assert reader.cursor == oldest


def test_waiting(writer: Writer) -> None:
    with Reader.attach(writer.name, wait=shm.Blocking(spin_us=0)) as reader:
        assert not one_reader(writer.name).waiting
        waiting = Background(reader.read)
        assert wait_until_waiting(writer.name).state == "active"
        writer.publish(b"x")
        waiting.result()
        assert not one_reader(writer.name).waiting


def test_demotion_and_eviction(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        writer.publish(b"x")
        view = reader.read_available()[0].payload
        writer.demote(0)
        status = one_reader(writer.name)
        assert (status.state, status.policy, status.gating) == ("demoting", "block", True)
        view.release()
        reader.read_available()
        status = one_reader(writer.name)
        assert (status.state, status.policy, status.gating) == ("demoted", "lossy", False)
        writer.evict(0)
        status = one_reader(writer.name)
        assert (status.state, status.gating) == ("evicted", False)
    assert reader_status(writer.name) is None


def test_states_of_a_ring(name: str) -> None:
    writer = Writer.create(name, slots=8, capacity=1024, max_readers=1)
    assert shm.status(name).state == "open"
    del writer
    assert shm.status(name).state == "orphaned"
    writer = Writer.resume(name)
    assert (shm.status(name).state, shm.status(name).epoch) == ("open", 2)
    writer.close()
    assert shm.status(name).state == "closed"
    writer.unlink()


def test_looking_disturbs_nothing(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        fill(writer)
        reader.read_available(limit=3)
        reader.read_available(limit=1)

        def contents() -> tuple[bytes, bytes]:
            return data_path(writer.name).read_bytes(), control_path(writer.name).read_bytes()

        before = contents()
        for _ in range(20):
            shm.status(writer.name)
            shm.list_rings()
        assert contents() == before
        assert writer.try_publish(b"x") is not None
        assert len(reader.read_available()) == SLOTS - 4 + 1


def test_looking_while_others_work(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        reading = Background(lambda: sum(1 for _ in reader))
        working = Background(lambda: [writer.publish(b"12345678") for _ in range(3000)])
        sequence = 0
        while working.running:
            status = shm.status(writer.name)
            assert status.sequence >= sequence
            assert 0 <= status.occupancy <= 1
            assert status.used_slots <= SLOTS
            assert status.used_bytes <= CAPACITY
            sequence = status.sequence
        working.result()
        writer.close()
        assert reading.result() == 3000


def test_of_what_is_no_ring(name: str) -> None:
    with pytest.raises(shm.RingNotFound):
        shm.status(name)
    data_path(name).touch()
    control_path(name).touch()
    try:
        with pytest.raises(shm.RingNotFound, match="not complete"):
            shm.status(name)
    finally:
        shm.unlink(name)
