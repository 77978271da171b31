"""Between real processes every message arrives once, in order and whole. What a lossy reader misses
is reported, what a lossless reader holds stays as it is, and forks share nothing by accident."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import random
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually, reader_status

from .traffic import (
    CAPACITY,
    SENDINGS,
    SLOTS,
    TAKINGS,
    Check,
    Followers,
    Payloads,
    Report,
    Sending,
    Taking,
    Wait,
    create,
    iterate,
    orphan,
    read_available,
    send,
    take_all,
)

# ---- order, content, completeness ----------------------------------------------------------


@pytest.mark.parametrize(("readers", "rounds"), [(1, 5000), (4, 4000), (16, 2000)])
def test_every_reader_gets_every_message(
    name: str, seed: int, followers: Followers, readers: int, rounds: int
) -> None:
    """Through a ring that starts over thousands of times, with every way to write and to read."""
    ways = [*((taking,) for taking in TAKINGS), TAKINGS]
    waits: list[Wait] = [shm.Blocking(), shm.Blocking(spin_us=0), shm.Yielding()]
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        for i in range(readers):
            wait = waits[i % len(waits)] if readers < 16 else waits[1]
            followers.start(takings=ways[i % len(ways)], wait=wait)
        total = payloads.count(rounds * CAPACITY)
        send(writer, payloads, total, random.Random(seed))
    assert followers.reports() == [Report(total, 0, 1)] * readers


@pytest.mark.parametrize("sending", SENDINGS)
@pytest.mark.parametrize("taking", TAKINGS)
def test_each_way_to_write_meets_each_way_to_read(
    name: str, seed: int, followers: Followers, sending: Sending, taking: Taking
) -> None:
    """One way at a time, so that none hides behind another."""
    with create(name) as writer:
        followers.start(takings=(taking,))
        payloads = Payloads(seed, writer.max_message)
        for _ in range(100):
            sending(writer, payloads, 17)
    assert followers.reports() == [Report(1700, 0, 1)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_attaches_however_it_was_started(
    name: str, seed: int, followers: Followers, method: str
) -> None:
    """The writer's own children, too: a forked one carries the writer's descriptors away."""
    with create(name) as writer:
        followers.start(method=method)
        followers.start(method=method)
        send(writer, Payloads(seed, writer.max_message), 2000, random.Random(seed))
    assert followers.reports() == [Report(2000, 0, 1)] * 2


# ---- lossy readers -------------------------------------------------------------------------


def write_freely(name: str, seed: int, total: int) -> None:
    """A process: a writer that nobody holds up."""
    with Writer.resume(name) as writer:
        send(writer, Payloads(seed, writer.max_message), total, random.Random(seed))


@pytest.mark.parametrize("taking", TAKINGS)
def test_a_lapped_reader_is_told_exactly_what_it_missed(
    name: str, seed: int, processes: Processes, taking: Taking
) -> None:
    """It gets correct messages only, each with the gap before it, and received and
    lost add up to what was published."""
    total = 200_000
    orphan(name)
    with Reader.attach(name, policy="lossy", start=0) as reader:
        writer = processes.start(write_freely, name, seed, total)
        check = Check(Payloads(seed, CAPACITY // 4), 0)
        rng = random.Random(seed)
        with contextlib.suppress(shm.RingClosed):
            fall_behind(reader, total)
            while True:  # now lapped while it reads, now before it does
                taking(reader, rng.randint(1, 8), check)
                if rng.random() < 0.05:
                    fall_behind(reader, total)
        assert check.received + reader.lost == total
        assert reader.lost > SLOTS
        assert check.received > 0
    processes.join(writer)


def fall_behind(reader: Reader, total: int) -> None:
    """Wait until the writer has come round twice, or has nothing more to write."""
    eventually(
        lambda: reader.lag > 2 * SLOTS or reader.cursor + reader.lag == total,
        "the writer laps the reader",
    )


def test_lossy_readers_beside_lossless_ones(name: str, seed: int, followers: Followers) -> None:
    """Lossless readers get all of it, lossy ones learn what they missed."""
    with create(name) as writer:
        for taking in TAKINGS:
            followers.start("lossy", (taking,))
        followers.start()
        send(writer, Payloads(seed, writer.max_message), 20_000, random.Random(seed))
    *lossy, lossless = followers.reports()
    assert lossless == Report(20_000, 0, 1)
    assert [report.received + report.lost for report in lossy] == [20_000] * len(TAKINGS)


def test_what_was_published_before_the_ring_was_removed_is_read(
    name: str, seed: int, followers: Followers
) -> None:
    """A sleeping reader that comes round only after the ring's end and removal has lost nothing:
    it is stopped meanwhile, for longer than it goes without looking for the writer."""
    with create(name) as writer:
        pid = followers.start(takings=(iterate,)).pid
        assert pid is not None
        eventually(lambda: shm.status(name).readers[0].waiting, "the reader sleeps")
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        eventually(lambda: time.monotonic() > stopped + 0.2, "200 ms pass")
        send(writer, Payloads(seed, writer.max_message), 5, random.Random(seed))
    os.kill(pid, signal.SIGCONT)
    assert followers.reports() == [Report(5, 0, 1)]


# ---- what a lossless reader holds ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["message", "batch"])
def test_what_is_held_is_never_overwritten(
    name: str, seed: int, processes: Processes, followers: Followers, kind: str
) -> None:
    """The ring fills, the writer waits; when the views are released everything flows on."""
    total = 5000
    orphan(name)
    followers.start()
    with Reader.attach(name, start=0) as reader:
        payloads = Payloads(seed, CAPACITY // 4)
        check = Check(payloads, 0)
        writer = processes.start(write_freely, name, seed, total)
        iterate(reader, 1000, check)
        held = list(hold(reader, check, kind))
        first = check.expected - len(held)
        with pytest.raises(shm.RingFull, match=f"message {first},"):  # it would wait for ever
            take_all(reader, check, (iterate,), random.Random(seed))
        full_at = shm.status(name).sequence
        for _ in range(1000):
            assert [bytes(view) for view in held] == [payloads[first + i] for i in range(len(held))]
            assert reader.read_available() == []
        assert shm.status(name).sequence == full_at <= first + SLOTS
        assert writer.is_alive()
        del held
        assert take_all(reader, check, TAKINGS, random.Random(seed)) == Report(total, 0, 2)
    assert followers.reports() == [Report(total, 0, 2)]


def hold(reader: Reader, check: Check, kind: str) -> Iterator[memoryview]:
    """Take some messages and keep views of them."""
    if kind == "message":
        for message in reader.read_available(3) or [next(reader)]:
            check(message.sequence, message.gap, message.payload, message.epoch)
            yield message.payload
        return
    with reader.batch(3, DEADLINE) as many:
        for i in range(len(many)):
            check(many.first + i, 0, many.payload(i), 2)
            yield many.payload(i)


# ---- the mapping ---------------------------------------------------------------------------


def mappings(name: str) -> dict[int, str]:
    """Address and permissions of every mapping this process has of a ring's data segment."""
    found = {}
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == f"/dev/shm/rc.{name}.d":
            found[int(fields[0].partition("-")[0], 16)] = fields[1]
    return found


def store_into_ring(name: str) -> None:
    """A process: a reader with a stray pointer."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = Reader.attach(name)
    (address, permissions), *more = mappings(name).items()
    if more or permissions != "r--s":
        os._exit(1)
    if ctypes.string_at(address, 8) == bytes(8):
        os._exit(2)
    ctypes.memset(address, 0, 8)
    os._exit(reader.cursor)


def test_a_reader_cannot_store_into_the_data_segment(name: str, processes: Processes) -> None:
    """Its mapping has no write permission, so a stray store kills the reader, not the ring. It is
    spawned: a forked one would inherit the writer's mapping."""
    with create(name) as writer:
        assert set(mappings(name).values()) == {"rw-s"}
        child = processes.start(store_into_ring, name, method="spawn")
        child.join(DEADLINE)
        assert child.exitcode == -signal.SIGSEGV
        for i in range(3 * SLOTS):
            assert writer.publish(b"x", timeout=DEADLINE) == i


# ---- forks ---------------------------------------------------------------------------------


def refuses(*uses: Callable[[], object]) -> None:
    """Assert that each of these raises RingClosed."""
    for use in uses:
        with pytest.raises(shm.RingClosed):
            use()


def misuse(reader: Reader, writer: Writer, held: list[Message]) -> None:
    """Try to use what belongs to the parent, then end it."""
    refuses(
        lambda: reader.read(0),
        reader.read_available,
        lambda: reader.batch(timeout=0),
        lambda: next(reader),
        lambda: reader.lag,
        lambda: bytes(held[0]),
        lambda: memoryview(held[0]),
        held[0].text,
        lambda: writer.publish(b""),
        lambda: writer.reserve(1),
    )
    assert held[0].sequence == 0
    assert reader.closed
    assert writer.closed
    with reader:
        pass
    writer.close()


def fork_child(
    name: str, readers: list[Reader], writers: list[Writer], held: list[Message]
) -> None:
    """A process: use what was inherited wrongly, drop it, then attach rightly."""
    misuse(readers[0], writers[0], held)
    held.clear()
    readers.clear()
    writers.clear()
    gc.collect()
    with Reader.attach(name, start="oldest") as own:
        message = own.read(DEADLINE)
        assert message is not None
        assert message.sequence == 0


def test_a_forked_child_cannot_use_or_disturb_what_it_inherits(
    name: str, seed: int, processes: Processes
) -> None:
    """The parent reads on, and its views hold, whatever the child does with its copies."""
    with create(name) as writer, Reader.attach(name) as reader:
        payloads = Payloads(seed, writer.max_message)
        check = Check(payloads, 0)
        send(writer, payloads, 5, random.Random(seed))
        held = reader.read_available(2)
        view = held[0].payload
        child = processes.start(fork_child, name, [reader], [writer], held)
        processes.join(child)
        for message in held:
            check(message.sequence, message.gap, memoryview(message), message.epoch)
        status = reader_status(name, reader.slot)
        assert status is not None
        assert (status.state, status.pid, status.gating) == ("active", os.getpid(), True)
        while writer.try_publish(payloads[writer.sequence]) is not None:
            pass
        assert view == payloads[0]
        view.release()
        del held, message
        read_available(reader, SLOTS, check)
        assert check.expected == writer.sequence


def parent_to_be_killed(name: str, wakes: tuple[int, int], pipe: Connection) -> None:
    """A process that attaches, reads, forks a child that lives on, and waits to be killed."""
    wake, other = wakes
    os.close(other)
    reader = Reader.attach(name, start=0)
    held = reader.read_available(3)
    views = [message.payload for message in held]
    if os.fork():
        signal.pause()
    os.set_inheritable(wake, False)
    try:
        refuses(lambda: reader.read(0), lambda: bytes(held[0]))
        pipe.send_bytes(len(views).to_bytes(1, "little"))
        select.select([wake], [], [], DEADLINE)
        refuses(reader.read_available)
        pipe.send_bytes(b"done")
    finally:
        os._exit(0)


def test_a_forked_child_does_not_keep_a_dead_parent_alive(
    name: str, seed: int, processes: Processes
) -> None:
    """The parent is killed, its child lives on with all it inherited: the slot is reaped."""
    ours, theirs = multiprocessing.Pipe()
    wakes = os.pipe()
    with create(name) as writer, contextlib.ExitStack() as ends:
        ends.callback(os.close, wakes[0])
        payloads = Payloads(seed, writer.max_message)
        send(writer, payloads, 3, random.Random(seed))
        parent = processes.start(parent_to_be_killed, name, wakes, theirs)
        with contextlib.closing(os.fdopen(wakes[1], "wb")):  # its end ends the grandchild
            assert ours.poll(DEADLINE)
            assert ours.recv_bytes() == b"\3"
            parent.kill()  # not joined: the grandchild holds the pipe that tells of its end
            eventually(lambda: parent.exitcode is not None, "the parent dies")
            send(writer, payloads, 5 * SLOTS, random.Random(seed))
            assert not shm.status(name).readers
        assert ours.poll(DEADLINE)
        assert ours.recv_bytes() == b"done"
