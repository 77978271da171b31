"""kill -9 amid topics: whoever dies, and wherever, the others get what they want and nothing else.

The steps are the RC_FAULT points of broadcast.h and topics.h; see test_death.py.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm._topics import read_wishes
from ringcast.shm.blocks import open_ring
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually, reader_status

from .conftest import Victims
from .topical import (
    CHANGES,
    NAMES,
    TopicalReport,
    create,
    follow_topics,
    publish_topical,
    topic_of,
)
from .traffic import Policy, count_readers, stress_seconds

LISTS: Final[tuple[list[str], ...]] = ([], ["a", "ab"], ["*"], ["b*", "later"])


class Choosers:
    """Reader processes that choose, each with a list that it changes now and then."""

    def __init__(self, processes: Processes, name: str, seed: int) -> None:
        self._processes = processes
        self._name = name
        self._seed = seed
        self._pipes: list[Connection] = []
        self.started: list[BaseProcess] = []

    def start(self, policy: Policy, topics: list[str] | None, *, changing: bool = False) -> None:
        """Start one; it has joined when this returns."""
        ours, theirs = Pipe()
        joined = count_readers(self._name)
        process = self._processes.start(
            follow_topics, self._name, self._seed, policy, topics, changing, theirs
        )
        self._pipes.append(ours)
        self.started.append(process)
        eventually(lambda: count_readers(self._name) > joined, "a reader joins")

    def start_all(self) -> None:
        """One for each list, one that changes it, a lossy one, and one for everything."""
        for topics in LISTS:
            self.start("block", topics)
        self.start("block", ["a"], changing=True)
        self.start("lossy", ["*a*"], changing=True)
        self.start("block", None)

    def check(self, total: int | None = None) -> None:
        """Each has looked at every message, or all at equally many if it is not known how many
        there were; what it got it checked itself."""
        for pipe, process in zip(self._pipes, self.started, strict=True):
            assert pipe.poll(DEADLINE), "no report"
            report = TopicalReport.unpack(pipe.recv_bytes())
            self._processes.join(process)
            seen = report.received + report.skipped + report.lost
            total = seen if total is None else total
            assert seen == total
            assert report.lossy or report.lost == 0


@pytest.fixture
def choosers(processes: Processes, name: str, seed: int) -> Choosers:
    return Choosers(processes, name, seed)


def check_table(name: str, seed: int, total: int, deaths: int) -> None:
    """Rows are whole; of each dead writer one message at most is not counted."""
    rows = shm.list_topics(name)
    messages = [topic_of(seed, n) for n in range(total)]
    assert [row.name for row in rows] == list(dict.fromkeys(filter(None, messages)))
    uncounted = 0
    for row in rows:
        numbers = [n for n, topic in enumerate(messages) if topic == row.name]
        assert row.last_sequence == numbers[-1]
        assert row.key == shm.hash_key(row.name)
        assert row.messages <= len(numbers)
        uncounted += len(numbers) - row.messages
    assert uncounted <= deaths


# ---- writers -------------------------------------------------------------------------------

ADDING: Final = (80, 81)  # a row is filled in; and counted
COUNTING: Final = (3, 5, 4)  # a message is in the ring; it is the topic's newest; and counted
WAKING: Final = (10, 11, 20, 12)


@pytest.mark.parametrize("step", [*ADDING, *COUNTING, *WAKING])
def test_a_writer_dies_amid_topics(
    name: str, seed: int, choosers: Choosers, victims: Victims, step: int
) -> None:
    """A row is whole or absent, and nobody sleeps through what it wants."""
    nth = random.Random(seed).randint(1, len(NAMES) if step in ADDING else 20)
    victim = victims(step, nth, "write_topics", name, seed)
    victim.ready()
    choosers.start_all()
    completed = victim.dies()
    assert shm.status(name).state == "orphaned"
    rows = shm.list_topics(name)
    assert all(row.name in NAMES for row in rows)
    if step in ADDING:
        assert len(rows) == nth - (step == ADDING[0])
    with Writer.resume(name) as writer:
        assert writer.sequence >= completed
        publish_topical(writer, seed, writer.sequence + 300)
        total = writer.sequence
        check_table(name, seed, total, deaths=1)
        writer.close()
        choosers.check(total)


def test_a_chooser_is_not_forgotten_with_the_writer_that_was_to_wake_it(
    name: str, seed: int, victims: Victims, processes: Processes
) -> None:
    """The writer dies between taking its bit and posting: it finds the message by itself."""
    victim = victims(20, 1, "write_topics", name, seed)
    victim.ready()
    ours, theirs = Pipe()
    sleeper = processes.start(read_one, name, theirs)
    eventually(lambda: any(r.waiting for r in shm.status(name).readers), "the reader sleeps")
    assert victim.dies() == 0
    assert ours.poll(DEADLINE)
    assert ours.recv_bytes() == b"0"
    processes.join(sleeper)
    shm.unlink(name)


def read_one(name: str, pipe: Connection) -> None:
    """A process: sleep for one message of any topic, or of none, and pass on its number."""
    with Reader.attach(name, topics=["*"], others=True, wait=shm.Blocking(spin_us=0)) as reader:
        pipe.send_bytes(b"%d" % next(reader).sequence)


# ---- readers -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [53, 54, 55, 82, 50, 51, 52, 40, 41])
def test_a_chooser_dies(
    name: str, seed: int, choosers: Choosers, victims: Victims, step: int
) -> None:
    """While it sleeps, changes its list, joins or leaves: nobody is held up, nothing is lost, and
    the slot's next owner begins with an empty list."""
    with create(name) as writer:
        choosers.start_all()
        publish_topical(writer, seed, 50)
        slot = len(choosers.started)
        nth = 1
        if step == 82:  # a list is written when it joins, empty and then its own; then it changes
            nth = random.Random(seed).randint(1, 4)
        victim = victims(step, nth, "choose", name)
        victim.ready()
        victim.dies()
        left = reader_status(name, slot)
        assert left is None or left.state == "dead"
        assert wishes_in(name, slot) in (None, (), ("a", "b*"), ("a", "b*", "ab"))
        publish_topical(writer, seed, writer.sequence + 300)
        with Reader.attach(name, topics=[], start="latest") as reader:
            assert reader.slot == slot
            assert wishes_in(name, slot) == ()
            reader.subscribe("ab")
            assert wishes_in(name, slot) == ("ab",)
            first = writer.sequence
            for sequence in range(first, first + 30):
                publish_topical(writer, seed, sequence + 1)
                found = [message.sequence for message in reader.read_available()]
                assert found == ([sequence] if topic_of(seed, sequence) == "ab" else [])
        total = writer.sequence
        check_table(name, seed, total, deaths=0)
        writer.close()
        choosers.check(total)


def wishes_in(name: str, slot: int) -> tuple[str, ...] | None:
    """The list that stands in a slot, whosever it is; None if it is half-written."""
    opened = open_ring(name)
    try:
        wishes = read_wishes(opened.segments, slot)
    finally:
        opened.endpoint.close()
    return wishes and wishes.topics


# ---- anyone, at any time -------------------------------------------------------------------


def write_on(name: str, seed: int, stop: Connection) -> None:
    """A process: resume the ring and publish until a message asks it to end the ring."""
    with Writer.resume(name) as writer:
        while not stop.poll(0):
            publish_topical(writer, seed, writer.sequence + 20)
        check_table(name, seed, writer.sequence, deaths=writer.epoch - 1)


def change_and_read(name: str, seed: int) -> None:
    """A process: a reader that changes its list as often as it can."""
    rng = random.Random(seed)
    with Reader.attach(name, topics=["a"]) as reader:
        while True:
            rng.choice((reader.subscribe, reader.unsubscribe))(*rng.choices(CHANGES, k=3))
            reader.read_available(3)


def create_and_die(name: str) -> None:
    """A process: leave a ring whose writer is dead."""
    create(name)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_random(
    name: str, seed: int, processes: Processes, choosers: Choosers, rounds: float, seconds: float
) -> None:
    """Writers and readers are killed, so many times or for so long: after each the ring goes on."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    processes.start(create_and_die, name).join(DEADLINE)
    stop, stop_end = Pipe()
    choosers.start_all()
    epoch, done = 2, 0
    writer = processes.start(write_on, name, seed, stop_end)
    while done < rounds and time.monotonic() < end:
        eventually(lambda: shm.status(name).epoch == epoch, "a writer takes over")  # noqa: B023
        victim = processes.start(change_and_read, name, rng.getrandbits(32))
        reached = shm.status(name).sequence + rng.randint(1, 200)
        eventually(lambda: shm.status(name).sequence > reached, "the ring goes on")  # noqa: B023
        if rng.random() < 0.5:
            processes.kill(writer)
            writer = processes.start(write_on, name, seed, stop_end)
            epoch += 1
        processes.kill(victim)
        done += 1
    print(f"{done} rounds, {epoch} writers")
    stop.send_bytes(b"")
    choosers.check()
    processes.join(writer)


def test_killing_at_random(name: str, seed: int, processes: Processes, choosers: Choosers) -> None:
    kill_at_random(name, seed, processes, choosers, rounds=25, seconds=5)


@pytest.mark.stress
def test_killing_at_random_for_long(
    name: str, seed: int, processes: Processes, choosers: Choosers
) -> None:
    kill_at_random(name, seed, processes, choosers, rounds=math.inf, seconds=stress_seconds())
