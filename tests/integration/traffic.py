"""Messages whose content follows from their sequence, and the two ends that send and check them.

Whoever knows the seed knows what message n must hold, so any reader can tell a lost, doubled,
misplaced or torn message by itself, and so can one that reads what several writers wrote in turn.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, Literal

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually

SLOTS: Final = 16
CAPACITY: Final = 4096  # a ring so small that it starts over every few messages

Policy = Literal["block", "lossy"]
Wait = shm.BusySpin | shm.Yielding | shm.Blocking

_PREFIX: Final = struct.Struct("<IQQ")  # crc32 of the rest, sequence, seed
_REPORT: Final = struct.Struct("<QQQ")
_VARIETY: Final = 1021  # a prime, so that sizes and places in the ring do not fall into step


class Payloads:
    """What message n of a seed holds: a checksum, n, the seed and noise, cut to a size of its own
    from 0 to `longest`."""

    def __init__(self, seed: int, longest: int) -> None:
        rng = random.Random(seed)
        sizes = [0, 1, longest - 1, longest, *(rng.randint(0, longest) for _ in range(_VARIETY))]
        sizes[8::3] = [rng.randint(0, min(64, longest)) for _ in sizes[8::3]]
        self._sizes = sizes[:_VARIETY]
        self._noise = rng.randbytes(longest + _VARIETY)
        self._seed = seed

    def __getitem__(self, sequence: int) -> bytes:
        """The whole payload of one message."""
        size = self._sizes[sequence % _VARIETY]
        start = sequence * 31 % _VARIETY
        noise = self._noise[start : start + max(0, size - _PREFIX.size)]
        crc = zlib.crc32(noise, sequence & 0xFFFFFFFF)
        return (_PREFIX.pack(crc, sequence, self._seed) + noise)[:size]

    def count(self, size: int) -> int:
        """How many messages from the first make up `size` bytes."""
        n = 0
        while size > 0:
            size -= self._sizes[n % _VARIETY]
            n += 1
        return n


# ---- the writer's side ---------------------------------------------------------------------

Sending = Callable[[Writer, Payloads, int], None]


def publish(writer: Writer, payloads: Payloads, count: int) -> None:
    """One at a time, some of them by try_publish."""
    for _ in range(count):
        data = payloads[writer.sequence]
        if len(data) % 2 or writer.try_publish(data) is None:
            writer.publish(data, timeout=DEADLINE)


def publish_many(writer: Writer, payloads: Payloads, count: int) -> None:
    """All with one call."""
    first = writer.sequence
    batch = [payloads[sequence] for sequence in range(first, first + count)]
    assert writer.publish_many(batch, timeout=DEADLINE) == range(first, first + count)


def reserve(writer: Writer, payloads: Payloads, count: int) -> None:
    """Written in place, with more room than is needed; some reservations are given up."""
    for _ in range(count):
        data = payloads[writer.sequence]
        room_size = min(len(data) + 24, writer.max_message)
        if len(data) % 5 == 0:
            with writer.reserve(room_size, timeout=DEADLINE) as room:
                room[:] = bytes(room_size)
        with writer.reserve(room_size, timeout=DEADLINE) as room:
            room[: len(data)] = data
            room.commit(len(data))


SENDINGS: Final[tuple[Sending, ...]] = (publish, publish_many, reserve)


def send(writer: Writer, payloads: Payloads, upto: int, rng: random.Random) -> None:
    """Publish up to sequence `upto` in every way there is."""
    while writer.sequence < upto:
        count = min(rng.randint(1, 40), upto - writer.sequence)
        rng.choice(SENDINGS)(writer, payloads, count)


# ---- the readers' side ---------------------------------------------------------------------


class Check:
    """Gets each message, and asserts that it is the next one and holds what it must."""

    def __init__(self, payloads: Payloads, first: int) -> None:
        self.payloads = payloads
        self.expected = first
        self.received = 0
        self.epoch = 0

    def __call__(self, sequence: int, gap: int, payload: memoryview, epoch: int) -> None:
        """Look at one message: `gap` others were missed just before it."""
        assert sequence == self.expected + gap, (sequence, self.expected, gap)
        assert payload == self.payloads[sequence], f"message {sequence} is not what was sent"
        assert epoch >= self.epoch
        self.expected = sequence + 1
        self.received += 1
        self.epoch = epoch


Taking = Callable[[Reader, int, Check], None]


def iterate(reader: Reader, limit: int, check: Check) -> None:
    """As a ``for`` loop does."""
    count = 0
    for message in itertools.islice(reader, limit):
        check(message.sequence, message.gap, message.payload, message.epoch)
        count += 1
    if count < limit:
        raise shm.RingClosed


def read_available(reader: Reader, limit: int, check: Check) -> None:
    """What is there, or one message if nothing is."""
    messages: list[Message | None] = [*reader.read_available(limit)] or [next(reader, None)]
    for message in messages:
        if message is None:
            raise shm.RingClosed
        check(message.sequence, message.gap, message.payload, message.epoch)


def batch(reader: Reader, limit: int, check: Check) -> None:
    """Many at once."""
    with reader.batch(limit, DEADLINE) as many:
        assert len(many), "nothing came"
        epochs = many.descriptors["epoch"].tolist()
        for i, epoch in enumerate(epochs):
            check(many.first + i, 0 if i else many.gap, many.payload(i), epoch)


TAKINGS: Final[tuple[Taking, ...]] = (iterate, read_available, batch)


@dataclass(frozen=True, slots=True)
class Report:
    """What a follower saw.

    Attributes:
        received, lost: messages it got and missed; each it got was checked.
        epoch: of the last one.
    """

    received: int
    lost: int
    epoch: int


def take_all(reader: Reader, check: Check, takings: Sequence[Taking], rng: random.Random) -> Report:
    """Read and check to the ring's end, in every way given."""
    try:
        while True:
            rng.choice(takings)(reader, rng.randint(1, 64), check)
    except shm.RingClosed:
        assert check.received + reader.lost == check.expected
        return Report(check.received, reader.lost, check.epoch)


def follow(
    name: str,
    seed: int,
    policy: Policy,
    takings: Sequence[Taking],
    pipe: Connection,
    wait: Wait | None = None,
) -> None:
    """A process: read a ring from its first message to its end, check all, and report."""
    payloads = Payloads(seed, shm.status(name).max_message)
    with Reader.attach(name, policy=policy, start=0, wait=wait, label="follower") as reader:
        report = take_all(reader, Check(payloads, 0), takings, random.Random(seed))
    pipe.send_bytes(_REPORT.pack(report.received, report.lost, report.epoch))


class Followers:
    """Reader processes that follow a ring, and what they report."""

    def __init__(self, processes: Processes, name: str, seed: int) -> None:
        self._processes = processes
        self._name = name
        self._seed = seed
        self._pipes: list[Connection] = []
        self.started: list[BaseProcess] = []

    def start(
        self,
        policy: Policy = "block",
        takings: Sequence[Taking] = TAKINGS,
        wait: Wait | None = None,
        method: str = "fork",
    ) -> BaseProcess:
        """Start one; it has joined when this returns."""
        ours, theirs = multiprocessing.Pipe()
        joined = count_readers(self._name)
        process = self._processes.start(
            follow, self._name, self._seed, policy, takings, theirs, wait, method=method
        )
        self._pipes.append(ours)
        self.started.append(process)
        eventually(lambda: count_readers(self._name) > joined, "a reader joins")
        return process

    def reports(self) -> list[Report]:
        """What each saw, to the ring's end; waits for them."""
        found = []
        for pipe, process in zip(self._pipes, self.started, strict=True):
            assert pipe.poll(DEADLINE), "no report"
            found.append(Report(*_REPORT.unpack(pipe.recv_bytes())))
            self._processes.join(process)
        return found


def count_readers(name: str) -> int:
    """How many living readers have joined a ring."""
    return sum(reader.state == "active" for reader in shm.status(name).readers)


# ---- rings ---------------------------------------------------------------------------------


def create(name: str) -> Writer:
    """A small ring."""
    return Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=20)


def orphan(name: str, seed: int = 0, messages: int = 0) -> None:
    """Leave a small ring that holds some messages and whose writer is dead."""
    child = os.fork()
    if child == 0:
        try:
            writer = create(name)
            publish(writer, Payloads(seed, writer.max_message), messages)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


# ---- measuring -----------------------------------------------------------------------------


def cpu_seconds(pid: int | None) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stress_seconds() -> float:
    """How long a test marked `stress` may take."""
    return float(os.environ.get("RINGCAST_STRESS_SECONDS", "120"))
