"""Members of a work group as processes that write down what they do, and an observer that judges
it.

Each member has a log of its own, a file that it maps: for each message its sequence, when it began
and when it had done with it, and how often it had been delivered. A log survives kill -9. The
observer reads all logs and asserts what a group promises.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import signal
import time
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import numpy

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, Processes, eventually

SLOTS: Final = 1024
CAPACITY: Final = 1 << 20

RECORD: Final = numpy.dtype(
    [("sequence", "u8"), ("began_ns", "i8"), ("done_ns", "i8"), ("key", "u8"), ("deliveries", "u8")]
)
_HEAD: Final = 64  # bytes before the first record: how many there are


class Log:
    """What one member does, in a mapped file of `room` records."""

    def __init__(self, path: Path, room: int, *, create: bool = False) -> None:
        size = _HEAD + room * RECORD.itemsize
        with path.open("w+b" if create else "r+b") as file:
            if create:
                file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._count = numpy.frombuffer(self._map, "u8", 1)
        self._records = numpy.frombuffer(self._map, RECORD, room, _HEAD)
        self._room = room

    def begin(self, message: group.GroupMessage) -> None:
        """The member was handed this message."""
        n = int(self._count[0])
        assert n < self._room, "the log is full: give it more room"
        self._records[n] = (
            message.sequence,
            time.monotonic_ns(),
            0,
            message.key,
            message.deliveries,
        )
        self._count[0] = n + 1

    def done(self) -> None:
        """The member has done with the message that it began last."""
        self._records["done_ns"][int(self._count[0]) - 1] = time.monotonic_ns()

    def records(self) -> Any:
        """A copy of what was written."""
        return self._records[: int(self._count[0])].copy()


class Stop(Exception):
    """The member is to leave."""


def handle(
    ring: str, name: str, options: dict[str, Any], path: str, room: int, work_s: float
) -> None:
    """A member: handles messages until the ring ends, or SIGTERM tells it to leave. One that is
    evicted comes again, as a new member with the same log."""
    log = Log(Path(path), room)

    def stop(_signal: int, _frame: object) -> None:
        raise Stop

    signal.signal(signal.SIGTERM, stop)
    while True:
        try:
            with group.Member.attach(ring, name, **options) as member:
                for message in member:
                    log.begin(message)
                    if work_s:
                        time.sleep(work_s)
                    log.done()
        except shm.Evicted:
            continue
        except Stop:
            pass
        return


class Members:
    """Member processes of one group, each with its log."""

    def __init__(
        self, processes: Processes, folder: Path, ring: str, name: str, room: int, **options: Any
    ) -> None:
        self._processes = processes
        self.folder = folder
        self.ring = ring
        self.name = name
        self._room = room
        self._options = options
        self._numbers = itertools.count()
        self.alive: list[BaseProcess] = []
        self._logs: list[Log] = []

    def start(self, work_s: float = 0.0) -> BaseProcess:
        """Start one; it has joined, or had been about to, when this returns."""
        path = self.folder / f"{self.name}-{next(self._numbers)}.log"
        self._logs.append(Log(path, self._room, create=True))
        process = self._processes.start(
            handle, self.ring, self.name, self._options, str(path), self._room, work_s
        )
        self.alive.append(process)
        return process

    def kill(self, process: BaseProcess) -> None:
        self.alive.remove(process)
        self._processes.kill(process)

    def leave(self, process: BaseProcess) -> None:
        """Have one leave in order."""
        self.alive.remove(process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        process.join(DEADLINE)
        assert process.exitcode is not None

    def wait_for(self, count: int) -> None:
        eventually(lambda: len(self.status().members) == count, f"{count} members have joined")

    def status(self) -> group.GroupStatus:
        return next(g for g in group.list_groups(self.ring) if g.name == self.name)

    def logs(self) -> list[Any]:
        """What each member has written, one after the other."""
        return [log.records() for log in self._logs]


def judge(
    logs: Iterable[Any], wanted: Iterable[int], *, ordered_keys: bool, evicted: bool = False
) -> int:
    """Assert what a group promises of these messages; how many were delivered more than once.

    * Each is done at least once.
    * It is delivered again only after the member that had it last has died, left or was evicted:
      then it is that member's last record, or (`evicted`) the last one before it came again.
    * With `ordered_keys`: the messages of a key come in order, and one begins when the other is
      done.
    """
    everything = []
    for number, records in enumerate(logs):
        for place, record in enumerate(records):
            everything.append((record, number, place == len(records) - 1))
    by_sequence: dict[int, list[Any]] = {}
    for entry in everything:
        by_sequence.setdefault(int(entry[0]["sequence"]), []).append(entry)
    redelivered = 0
    for sequence in wanted:
        entries = sorted(by_sequence.pop(sequence, []), key=lambda entry: entry[0]["deliveries"])
        assert any(record["done_ns"] for record, _, _ in entries), f"{sequence} was never done"
        redelivered += len(entries) > 1
        for record, member, is_last in entries[:-1]:
            assert is_last or evicted, (
                f"{sequence} was taken from member {member} at work: {record}"
            )
        deliveries = [int(record["deliveries"]) for record, _, _ in entries]
        assert deliveries == sorted(set(deliveries)), f"{sequence} came as {deliveries}"
    assert not by_sequence, f"nobody wants {sorted(by_sequence)[:5]}"
    if ordered_keys:
        judge_keys([record for record, _, _ in everything])
    return redelivered


def judge_keys(records: list[Any]) -> None:
    """The messages of each key were handled in their order, and never two at a time."""
    by_key: dict[int, list[Any]] = {}
    for record in records:
        by_key.setdefault(int(record["key"]), []).append(record)
    for key, of_key in by_key.items():
        of_key.sort(key=lambda record: int(record["began_ns"]))
        for before, after in itertools.pairwise(of_key):
            same = before["sequence"] == after["sequence"]
            assert same or before["sequence"] < after["sequence"], f"key {key}: {before}, {after}"
            assert same or before["done_ns"], f"key {key}: {after} before {before} was done"
            assert before["done_ns"] <= after["began_ns"], f"key {key}: {before}, {after} overlap"


def publish_keys(name: str, count: int, keys: int, seed: int, may_end: Path) -> None:
    """A writer that goes on with a ring: publishes messages, each with one of so many keys, as fast
    as it can up to sequence `count`, then slowly until the file `may_end` is there; then it ends
    the ring."""
    writer = Writer.resume(name)
    rng = random.Random(seed)
    while writer.sequence < count or not may_end.exists():
        if writer.sequence >= count:
            time.sleep(0.001)
        writer.publish(writer.sequence.to_bytes(8, "little"), key=1 + rng.randrange(keys))
    writer.close()
