"""No wake-up is lost, and sleeping costs no processor time.

A lost wake-up does not hang: whoever sleeps looks around when its slice of time is over. So it
shows as a wait that lasted for the slice although what it waited for had come before. That is what
is counted here. Nothing is asserted about how long a wait takes otherwise.

It takes luck to lose one: one side must look for sleepers in the very moment in which the other
falls asleep. So both sides agree on that moment by the clock, and each adds a little random delay
that covers the difference between their paths through the code. And each has a core of its own:
the kernel likes to put one that is woken where its waker runs, and then they never meet.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import struct
import time
from collections.abc import Iterator
from multiprocessing import Pipe, sharedctypes
from multiprocessing.connection import Connection
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually

from .traffic import count_readers, cpu_seconds, stress_seconds

READER_SLICE_NS: Final = 100_000_000
WRITER_SLICE_NS: Final = 20_000_000
TICK_NS: Final = 40_000  # between two such moments; about as long as it takes to be woken up
JITTER_NS: Final = 2_000
CROSSINGS: Final = 100_000
BRIEFLY: Final = 2.0
"""Seconds of a default run; what wakes up once in ten thousand times too late shows in them."""
SLOTS: Final = 4
CORES: Final = sorted(os.sched_getaffinity(0))

_TIME: Final = struct.Struct("<q")


def meet(at_ns: int, rng: random.Random) -> None:
    """Wait for the moment in which the other side does its part."""
    until = at_ns + rng.randrange(JITTER_NS)
    while time.monotonic_ns() < until:
        pass


def take_core(number: int) -> None:
    """Stay on one of the cores."""
    os.sched_setaffinity(0, {CORES[number % len(CORES)]})


@pytest.fixture
def first_core() -> Iterator[None]:
    """Keep the test itself on the first core."""
    take_core(0)
    yield
    os.sched_setaffinity(0, CORES)


def next_tick_ns() -> int:
    """A moment to meet that both sides know."""
    return (time.monotonic_ns() // TICK_NS + 1) * TICK_NS


class Watch:
    """Counts the waits of this process that slept through what they waited for.

    Such a wait lasted for a whole slice, and for a quarter of it at least this process neither
    ran nor waited for a core, though there was no more to wait for.
    """

    def __init__(self, slice_ns: int) -> None:
        self.slice_ns = slice_ns
        self.slept_through = 0
        self._schedstat = os.open("/proc/self/schedstat", os.O_RDONLY)
        self._began = self._queued = 0

    def queued_ns(self) -> int:
        """How long this process was ready to run and did not, so far."""
        return int(os.pread(self._schedstat, 80, 0).split()[1])

    def begin(self) -> None:
        """The wait is about to begin."""
        self._queued = self.queued_ns()
        self._began = time.monotonic_ns()

    def end(self, there_ns: int) -> None:
        """The wait is over; what it waited for was there at `there_ns`, CLOCK_MONOTONIC."""
        now = time.monotonic_ns()
        if now - self._began >= self.slice_ns:
            idle = now - max(there_ns, self._began) - (self.queued_ns() - self._queued)
            self.slept_through += idle > self.slice_ns // 4

    def close(self) -> int:
        """How many waits slept through in all."""
        os.close(self._schedstat)
        return self.slept_through


def check(slept_through: int, crossings: int) -> None:
    """None is lost. But a virtual machine that is not let run for so long looks the same, so one in
    a million is let pass; a protocol that lacks a fence loses one in ten thousand."""
    print(f"{slept_through} of {crossings} slept through")
    assert slept_through <= 1 + crossings // 1_000_000


def attach(name: str) -> Reader:
    """A reader that sleeps whenever there is nothing to read."""
    return Reader.attach(name, wait=shm.Blocking(spin_us=0))


def create(name: str) -> Writer:
    """A writer that sleeps whenever there is no room."""
    return Writer.create(
        name, slots=SLOTS, capacity=4096, max_readers=4, wait=shm.Blocking(spin_us=0)
    )


def send_time(writer: Writer) -> None:
    """Publish what time it is."""
    writer.publish(_TIME.pack(time.monotonic_ns()), timeout=DEADLINE)


def time_in(message: Message) -> int:
    """When a message was sent."""
    sent: int = _TIME.unpack(message)[0]
    return sent


def report(pipe: Connection, slept_through: int) -> None:
    """Tell the test how many waits slept through."""
    pipe.send_bytes(slept_through.to_bytes(8, "little"))


def result(pipe: Connection) -> int:
    """What a process reports."""
    assert pipe.poll(DEADLINE)
    return int.from_bytes(pipe.recv_bytes(), "little")


# ---- readers -------------------------------------------------------------------------------


def answers(reader: Reader, writer: Writer, watch: Watch, rng: random.Random) -> Iterator[int]:
    """Answer each message of one ring in another at the moment in which its sender falls asleep:
    two ticks after it was sent. Yields how many were received."""
    asleep_ns = 0
    while True:
        watch.begin()
        meet(asleep_ns, rng)
        message = next(reader, None)
        if message is None:
            return
        sent_ns = time_in(message)
        watch.end(sent_ns)
        yield message.sequence + 1
        meet(sent_ns + 2 * TICK_NS, rng)
        asleep_ns = time.monotonic_ns() + 2 * TICK_NS
        send_time(writer)


def pong(name: str, back: str, seed: int, pipe: Connection) -> None:
    """A process: one side of the game."""
    take_core(1)
    watch = Watch(READER_SLICE_NS)
    with attach(name) as reader, create(back) as writer:
        pipe.send_bytes(b"")
        for _ in answers(reader, writer, watch, random.Random(seed)):
            pass
    report(pipe, watch.close())


def ping_pong(
    name: str, back: str, seed: int, processes: Processes, crossings: float, seconds: float
) -> tuple[int, int]:
    """Messages to and fro. Returns how many waits slept through, and how many there were."""
    ours, theirs = Pipe()
    watch = Watch(READER_SLICE_NS)
    end = time.monotonic() + seconds
    received = 0
    with create(name) as writer:
        player = processes.start(pong, name, back, seed, theirs)
        assert ours.poll(DEADLINE)
        ours.recv_bytes()
        with attach(back) as reader:
            send_time(writer)
            for received in answers(reader, writer, watch, random.Random(seed + 1)):
                if 2 * received >= crossings or time.monotonic() > end:
                    break
    slept_through = watch.close() + result(ours)
    processes.join(player)
    return slept_through, 2 * received


@pytest.mark.usefixtures("first_core")
def test_no_wake_up_of_a_reader_is_lost(
    name: str, other: str, seed: int, processes: Processes
) -> None:
    """Ping-pong over two rings: each message meets a reader that falls asleep."""
    check(*ping_pong(name, other, seed, processes, CROSSINGS, BRIEFLY))


@pytest.mark.stress
@pytest.mark.usefixtures("first_core")
def test_no_wake_up_of_a_reader_is_lost_in_millions(
    name: str, other: str, seed: int, processes: Processes
) -> None:
    """The same, for as long as there is time."""
    check(*ping_pong(name, other, seed, processes, math.inf, stress_seconds()))


# ---- reader and writer ---------------------------------------------------------------------


class Stream:
    """Messages one way, through a ring of four slots that is full for a while and then empty for a
    while: here the writer falls asleep as the reader makes room, there the reader does as the
    writer publishes a burst."""

    def __init__(self, name: str, seed: int, messages: int) -> None:
        self.name = name
        self.seed = seed
        self.messages = messages
        # When the reader took each message, for the writer to see.
        self.taken = sharedctypes.RawArray(ctypes.c_int64, messages)

    @staticmethod
    def is_full(sequence: int) -> bool:
        """Is it a time at which the ring is to be full?"""
        return sequence % 2000 < 1000

    def read(self, pipe: Connection) -> None:
        """A process: take every message."""
        take_core(1)
        rng = random.Random(self.seed)
        watch = Watch(READER_SLICE_NS)
        with attach(self.name) as reader:
            while True:
                watch.begin()
                if self.is_full(reader.cursor) or not reader.lag:
                    meet(next_tick_ns(), rng)
                message = next(reader, None)
                if message is None:
                    break
                self.taken[message.sequence] = time.monotonic_ns()
                watch.end(time_in(message))
                del message  # else the next call would make room for one less
        report(pipe, watch.close())

    def write(self, writer: Writer, seconds: float) -> int:
        """Publish it all; how many waits for room slept through."""
        rng = random.Random(self.seed + 1)
        watch = Watch(WRITER_SLICE_NS)
        end = time.monotonic() + seconds
        for sequence in range(self.messages):
            # A reader makes room for this one as it goes on from the fourth before it.
            enabling = max(0, sequence - SLOTS + 1)
            watch.begin()
            full = self.is_full(sequence)
            if (full and not self.taken[enabling]) or (not full and rng.random() < 0.5):
                meet(next_tick_ns(), rng)
            send_time(writer)
            if self.taken[enabling]:
                watch.end(self.taken[enabling])
            if time.monotonic() > end:
                break
        return watch.close()

    def run(self, processes: Processes, seconds: float) -> tuple[int, int, int]:
        """How many waits of the reader slept through, how many of the writer's, of how many."""
        ours, theirs = Pipe()
        with create(self.name) as writer:
            reader = processes.start(self.read, theirs)
            eventually(lambda: count_readers(self.name) == 1, "it joins")
            room = self.write(writer, seconds)
            sent = writer.sequence
        messages = result(ours)
        processes.join(reader)
        return messages, room, sent


@pytest.mark.usefixtures("first_core")
def test_no_wake_up_of_a_blocked_writer_is_lost(name: str, seed: int, processes: Processes) -> None:
    """Nor of the reader, in bursts."""
    messages, room, sent = Stream(name, seed, 2 * CROSSINGS).run(processes, BRIEFLY)
    check(messages, sent)
    check(room, sent)


@pytest.mark.stress
@pytest.mark.usefixtures("first_core")
def test_no_wake_up_of_a_blocked_writer_is_lost_in_millions(
    name: str, seed: int, processes: Processes
) -> None:
    """The same, for as long as there is time."""
    stream = Stream(name, seed, int(100_000 * stress_seconds()))  # more than it can send
    messages, room, sent = stream.run(processes, stress_seconds())
    check(messages, sent)
    check(room, sent)


# ---- idling --------------------------------------------------------------------------------


def wait_for_messages(name: str) -> None:
    """A process: a reader that has nothing to read."""
    with Reader.attach(name) as reader:
        next(reader, None)


def wait_for_room(name: str) -> None:
    """A process: a writer whose ring is full."""
    with Writer.create(name, slots=SLOTS, capacity=4096) as writer:
        eventually(lambda: count_readers(name) == 1, "a reader comes")
        while True:
            writer.publish(b"")


def test_idle_readers_and_writers_use_no_processor_time(
    name: str, other: str, processes: Processes
) -> None:
    """Less than a hundredth of a core each, over two seconds: a reader without messages, and a
    writer without room."""
    with Writer.create(name, slots=SLOTS, capacity=4096):
        idle = [processes.start(wait_for_messages, name), processes.start(wait_for_room, other)]
        with eventually(lambda: attach_if_there(other), "the other ring is made") as reader:
            eventually(lambda: reader.lag == SLOTS, "it is full")
            eventually(lambda: any(r.waiting for r in shm.status(name).readers), "one sleeps")
            used = [cpu_seconds(process.pid) for process in idle]
            began = time.monotonic()
            time.sleep(BRIEFLY)
            passed = time.monotonic() - began
            shares = [
                (cpu_seconds(process.pid) - before) / passed
                for process, before in zip(idle, used, strict=True)
            ]
            processes.kill(idle[1])
    processes.join(idle[0])
    print(f"share of a core: {shares}")
    assert max(shares) < 0.01


def attach_if_there(name: str) -> Reader | None:
    """A reader, or None while the ring is being made."""
    try:
        return Reader.attach(name)
    except shm.RingError:
        return None
