"""kill -9: whoever dies, and wherever, the others lose nothing and are not held up.

The steps at which a process can be made to die are the RC_FAULT points of broadcast.h. They exist
in a copy of the package that is built here for the purpose; victims run with it, survivors with
the package under test.
"""

from __future__ import annotations

import math
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually, reader_status

from .conftest import Victims
from .traffic import (
    CAPACITY,
    SENDINGS,
    SLOTS,
    TAKINGS,
    Followers,
    Payloads,
    Policy,
    Report,
    count_readers,
    cpu_seconds,
    create,
    follow,
    orphan,
    publish,
    send,
    stress_seconds,
)


def resume(name: str, seed: int, more: int) -> tuple[int, Report]:
    """Take over, publish `more` messages and end the ring. Returns the sequence found, and what a
    follower that loses nothing reports."""
    with Writer.resume(name) as writer:
        found = writer.sequence
        send(writer, Payloads(seed, writer.max_message), found + more, random.Random(seed))
        return found, Report(found + more, 0, writer.epoch)


def start_survivors(followers: Followers) -> None:
    """One follower of each policy, and one that takes many messages at once."""
    followers.start("block", wait=shm.Blocking(spin_us=0))
    followers.start("block", (TAKINGS[2],))
    followers.start("lossy")


def check_survivors(followers: Followers, whole: Report) -> None:
    """The lossless ones have it all; the lossy one knows what it missed."""
    first, second, lossy = followers.reports()
    assert first == second == whole
    assert lossy.received + lossy.lost == whole.received
    assert lossy.epoch == whole.epoch


# ---- writers -------------------------------------------------------------------------------

COPYING: Final = (0, 1)  # a message is copied in; not when it was written in place
DESCRIBING: Final = (2, 3)  # its descriptor is filled in: done at 3
RELEASING: Final = (10, 11, 20, 12)  # and made known, and sleepers woken
MAKING_ROOM: Final = (30, 31)
STEPS: Final = (*COPYING, *DESCRIBING, *RELEASING, *MAKING_ROOM)
COMMITTED: Final = (3, *RELEASING)  # the message at hand is one of the ring's
WAYS: Final = {"publish": 1, "publish_many": 7, "reserve": 1}


@pytest.mark.parametrize(
    ("way", "step"),
    [
        (way, step)
        for way in WAYS
        for step in STEPS
        if not (way == "reserve" and step in COPYING)  # its user writes it
    ],
)
def test_a_writer_dies_at_any_step_of_publish(
    name: str, seed: int, followers: Followers, victims: Victims, way: str, step: int
) -> None:
    """What it had committed is there, what it had not is not, and sequences go on from there."""
    count = WAYS[way]
    nth = random.Random(seed).randint(1, 20)
    victim = victims(step, nth, "write", name, seed, way, count, "create")
    victim.ready()
    start_survivors(followers)
    completed = victim.dies()
    assert shm.status(name).state == "orphaned"
    found, whole = resume(name, seed, more=100)
    assert whole.epoch == 2
    assert found >= completed + (step in COMMITTED)
    assert found <= completed + count - (step not in COMMITTED)
    if step < 10:
        assert found == nth - (step not in COMMITTED)
    check_survivors(followers, whole)


def test_a_sleeper_is_not_forgotten_with_the_writer_that_was_to_wake_it(
    name: str, seed: int, victims: Victims, processes: Processes
) -> None:
    """A writer that dies between taking a waiter's bit and posting has published: the waiter finds
    the message without anybody's help."""
    ours, theirs = Pipe()
    victim = victims(20, 1, "write", name, seed, "publish", 1, "create")
    victim.ready()
    sleeper = processes.start(read_one, name, theirs)
    eventually(lambda: any(r.waiting for r in shm.status(name).readers), "the reader sleeps")
    assert victim.dies() == 0
    assert ours.poll(DEADLINE)
    assert ours.recv_bytes() == Payloads(seed, CAPACITY // 4)[0]
    processes.join(sleeper)
    shm.unlink(name)


def read_one(name: str, pipe: Connection) -> None:
    """A process: sleep for one message and pass it on."""
    with Reader.attach(name, wait=shm.Blocking(spin_us=0)) as reader:
        pipe.send_bytes(bytes(next(reader)))


def test_a_chain_of_writers_each_dies_in_what_the_one_before_left(
    name: str, seed: int, followers: Followers, victims: Victims
) -> None:
    """Ten deaths, each at a step picked at random."""
    rng = random.Random(seed)
    orphan(name)
    start_survivors(followers)
    for epoch in range(2, 12):
        way = rng.choice(list(WAYS))
        step = rng.choice(DESCRIBING + RELEASING + MAKING_ROOM)
        before = shm.status(name).sequence
        victim = victims(step, rng.randint(1, 20), "write", name, seed, way, WAYS[way], "resume")
        victim.ready()
        completed = victim.dies()
        status = shm.status(name)
        assert (status.epoch, status.state) == (epoch, "orphaned")
        assert status.sequence >= before + completed
    _, whole = resume(name, seed, more=100)
    assert whole.epoch == 12
    check_survivors(followers, whole)


# ---- joiners and reapers -------------------------------------------------------------------


@pytest.mark.parametrize("cleaner", ["writer", "successor", "joiner"])
@pytest.mark.parametrize(
    ("policy", "step"), [("block", 50), ("block", 51), ("block", 52), ("lossy", 50), ("lossy", 52)]
)
def test_a_reader_dies_while_it_joins(
    name: str,
    seed: int,
    followers: Followers,
    victims: Victims,
    policy: Policy,
    step: int,
    cleaner: str,
) -> None:
    """It wanted messages that are long gone. Its slot holds nobody up, whoever finds it: the
    writer, its successor or the next reader."""
    orphan(name, seed, messages=100)
    followers.start()
    early = Writer.resume(name) if cleaner == "writer" else None
    victim = victims(step, 1, "attach", name, policy)
    victim.ready()
    victim.dies()
    dead = reader_status(name, 1)
    assert dead is not None
    assert dead.state == "dead"
    if cleaner == "joiner":
        followers.start()
        assert reader_status(name, 2) is None
    writer = early or Writer.resume(name)
    with writer:
        send(writer, Payloads(seed, writer.max_message), 300, random.Random(seed))
        assert not any(r.gating and r.state == "dead" for r in shm.status(name).readers)
    for report in followers.reports():
        assert report.received + report.lost == 300
        assert report.received >= 200


def die_holding(name: str) -> None:
    """A process: a reader that dies holding the ring."""
    reader = Reader.attach(name)
    os.kill(os.getpid(), signal.SIGKILL)
    reader.close()


def leave_a_dead_reader(name: str, processes: Processes) -> None:
    """A slot with a reader that has died in it."""
    process = processes.start(die_holding, name)
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    assert any(reader.state == "dead" for reader in shm.status(name).readers)


@pytest.mark.parametrize("reaper", ["writer", "successor", "joiner", "leaver"])
@pytest.mark.parametrize("step", [40, 41])
def test_whoever_frees_a_slot_dies_of_it(
    name: str,
    seed: int,
    followers: Followers,
    victims: Victims,
    processes: Processes,
    step: int,
    reaper: str,
) -> None:
    """A slot that was freed by halves is freed again by the next to come."""
    orphan(name, seed, messages=100)
    followers.start()
    if reaper in ("joiner", "successor"):
        leave_a_dead_reader(name, processes)
    if reaper in ("joiner", "leaver"):
        victim = victims(step, 1, "attach", name, "block")
    else:
        victim = victims(step, 1, "write", name, seed, "publish", 1, "resume")
    if reaper != "successor":  # which dies before it is ready
        victim.ready()
    if reaper == "writer":
        leave_a_dead_reader(name, processes)
    victim.dies()
    with Writer.resume(name) as writer:
        assert [reader.slot for reader in shm.status(name).readers] == [0]
        total = writer.sequence + 100
        send(writer, Payloads(seed, writer.max_message), total, random.Random(seed))
    (report,) = followers.reports()
    assert report.received + report.lost == total
    assert report.received >= 100


# ---- readers -------------------------------------------------------------------------------


def sleep_in_ring(name: str, ready: Connection) -> None:
    """A process: a reader that sleeps for a message."""
    with Reader.attach(name, wait=shm.Blocking(spin_us=0)) as reader:
        ready.send_bytes(b"")
        reader.read()


def spin_in_ring(name: str, ready: Connection) -> None:
    """A process: a reader that spins for a message."""
    with Reader.attach(name, wait=shm.BusySpin()) as reader:
        ready.send_bytes(b"")
        reader.read()


def hold_a_batch(name: str, ready: Connection) -> None:
    """A process: a reader in the midst of a batch."""
    with Reader.attach(name, start="oldest") as reader, reader.batch(3):
        ready.send_bytes(b"")
        signal.pause()


def hold_views(name: str, ready: Connection) -> None:
    """A process: a reader that holds views."""
    with Reader.attach(name, start="oldest") as reader:
        views = [message.payload for message in reader.read_available(3)]
        ready.send_bytes(b"" if views else b"nothing was there")
        signal.pause()


def read_nothing(name: str, ready: Connection) -> None:
    """A process: a reader that never comes to read."""
    with Reader.attach(name):
        ready.send_bytes(b"")
        signal.pause()


Doomed = Callable[[str, Connection], None]


def is_asleep(name: str, pid: int | None) -> bool:
    """Does the reader of this process sleep on its semaphore?"""
    return any(reader.waiting for reader in shm.status(name).readers if reader.pid == pid)


def start_doomed(processes: Processes, name: str, doomed: Doomed) -> BaseProcess:
    """Start a reader and wait until it is where it is to die; it will not read on from there."""
    ours, theirs = Pipe()
    process = processes.start(doomed, name, theirs)
    assert process.pid is not None
    assert ours.poll(DEADLINE)
    assert ours.recv_bytes() == b""
    if doomed is sleep_in_ring:
        eventually(lambda: is_asleep(name, process.pid), "it sleeps")
    if doomed is spin_in_ring:
        used = cpu_seconds(process.pid)
        eventually(lambda: cpu_seconds(process.pid) > used + 0.02, "it spins")
    if doomed in (sleep_in_ring, spin_in_ring):
        os.kill(process.pid, signal.SIGSTOP)
    return process


def fill(writer: Writer, payloads: Payloads, pid: int | None) -> None:
    """Publish until the reader process `pid`, and no other, holds the ring full."""

    def held_by_it() -> bool:
        others = [reader for reader in shm.status(writer.name).readers if reader.pid != pid]
        caught_up = all(reader.cursor == writer.sequence for reader in others)
        return writer.try_publish(payloads[writer.sequence]) is None and caught_up

    eventually(held_by_it, "the ring is full")


def seconds_to_recover(
    writer: Writer, payloads: Payloads, victim: BaseProcess, wait: float
) -> float:
    """Kill the reader that holds the ring full `wait` seconds after the writer begins to wait for
    room; how long the writer waits from then."""
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        victim.kill()

    killer = threading.Timer(wait, kill)
    killer.start()
    writer.publish(payloads[writer.sequence], timeout=DEADLINE)
    going = time.monotonic()
    killer.join()
    victim.join(DEADLINE)
    assert going > killed[0], "the writer did not wait for room"
    return going - killed[0]


@pytest.mark.parametrize(
    "doomed", [sleep_in_ring, spin_in_ring, hold_a_batch, hold_views, read_nothing]
)
def test_a_dead_reader_lets_a_blocked_writer_go(
    name: str, seed: int, followers: Followers, processes: Processes, doomed: Doomed
) -> None:
    """Within 100 ms of the death, measured from the kill; and the other readers lose nothing."""
    rng = random.Random(seed)
    took = []
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        start_survivors(followers)
        publish(writer, payloads, 5)
        for _ in range(9):
            victim = start_doomed(processes, name, doomed)
            fill(writer, payloads, victim.pid)
            took.append(seconds_to_recover(writer, payloads, victim, wait=rng.random() * 0.04))
            assert len(shm.status(name).readers) == 3
        total = writer.sequence
    ms = [round(seconds * 1000, 1) for seconds in took]
    print(f"{doomed.__name__}: the writer goes on after {statistics.median(ms)} ms (median), {ms}")
    assert statistics.median(took) < 0.1
    check_survivors(followers, Report(total, 0, 1))


def test_a_stopped_reader_is_not_taken_for_dead(name: str, seed: int, followers: Followers) -> None:
    """The writer waits for it; when it goes on it has lost nothing."""
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        stopped = followers.start()
        followers.start()
        assert stopped.pid is not None
        for _ in range(3):
            send(writer, payloads, writer.sequence + 50, random.Random(seed))
            os.kill(stopped.pid, signal.SIGSTOP)
            fill(writer, payloads, stopped.pid)
            with pytest.raises(shm.RingFull, match=f"process {stopped.pid}"):
                writer.publish(payloads[writer.sequence], timeout=0.5)
            assert count_readers(name) == 2
            os.kill(stopped.pid, signal.SIGCONT)
            send(writer, payloads, writer.sequence + 50, random.Random(seed))
        total = writer.sequence
    assert followers.reports() == [Report(total, 0, 1)] * 2


# ---- anyone, at any time -------------------------------------------------------------------


def write_on(name: str, seed: int, stop: Connection) -> None:
    """A process: resume the ring and publish until a message asks it to end the ring."""
    with Writer.resume(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        rng = random.Random(seed + writer.epoch)
        while not stop.poll(0):
            rng.choice(SENDINGS)(writer, payloads, rng.randint(1, 20))


def come_and_go(name: str) -> None:
    """A process: join, look, leave, and again."""
    while True:
        with Reader.attach(name, start="oldest") as reader:
            reader.read_available(3)


class Crowd:
    """A writer and readers of one ring, killed at random and replaced."""

    def __init__(self, processes: Processes, name: str, seed: int) -> None:
        self.processes = processes
        self.name = name
        self.seed = seed
        self.rng = random.Random(seed)
        self.stop, self.stop_end = Pipe()
        self.epoch = 1
        self.writer = self.start_writer()

    def readers(self, pipe: Connection) -> list[tuple[Callable[..., None], tuple[object, ...]]]:
        """Readers that are to be killed. Nobody reads what they write to the pipe."""
        return [
            (come_and_go, (self.name,)),
            (follow, (self.name, self.seed, "block", TAKINGS, pipe)),
            (follow, (self.name, self.seed, "lossy", TAKINGS, pipe)),
            *((doomed, (self.name, pipe)) for doomed in (hold_a_batch, hold_views, spin_in_ring)),
        ]

    def start_writer(self) -> BaseProcess:
        """A process that takes over; it is at work when this returns."""
        self.epoch += 1
        process = self.processes.start(write_on, self.name, self.seed, self.stop_end)
        eventually(lambda: shm.status(self.name).epoch == self.epoch, "a writer takes over")
        return process

    def kill_someone(self, survivor: BaseProcess) -> str:
        """Kill the writer or a reader, or stop a survivor for a moment; who it was."""
        pipe = Pipe()
        target, arguments = self.rng.choice(self.readers(pipe[1]))
        reader = self.processes.start(target, *arguments)
        who = self.rng.choice(["writer", "reader", "reader and writer", "stopped"])
        self.pause()
        if who == "stopped":
            assert survivor.pid is not None
            os.kill(survivor.pid, signal.SIGSTOP)
            self.pause()
            os.kill(survivor.pid, signal.SIGCONT)
        if "writer" in who:
            self.writer.kill()
        self.processes.kill(reader)
        if "writer" in who:
            self.processes.kill(self.writer)
            self.writer = self.start_writer()
        return f"{who}, {target.__name__}"

    def pause(self) -> None:
        """Let things happen for up to 20 ms: when the blow falls is to be any time."""
        time.sleep(self.rng.random() * 0.02)

    def end(self) -> None:
        """Let the writer end the ring."""
        self.stop.send_bytes(b"")
        self.processes.join(self.writer)


def await_progress(name: str, what: str) -> None:
    """The ring goes on: it comes round twice."""
    reached = shm.status(name).sequence + 2 * SLOTS
    eventually(lambda: shm.status(name).sequence > reached, f"the ring goes on after {what}")


def kill_at_random(
    name: str, seed: int, processes: Processes, followers: Followers, rounds: float, seconds: float
) -> None:
    """So many rounds, or as many as there is time for: after each the ring must go on."""
    end = time.monotonic() + seconds
    orphan(name)
    start_survivors(followers)
    crowd = Crowd(processes, name, seed)
    done = 0
    while done < rounds and time.monotonic() < end:
        what = crowd.kill_someone(crowd.rng.choice(followers.started))
        await_progress(name, what)
        done += 1
    crowd.end()
    print(f"{done} rounds, {crowd.epoch} writers")
    first, second, lossy = followers.reports()
    assert first == second == Report(first.received, 0, crowd.epoch)
    assert lossy.received + lossy.lost == first.received


def test_killing_at_random(
    name: str, seed: int, processes: Processes, followers: Followers
) -> None:
    """Readers that survive have every message, in order and whole."""
    kill_at_random(name, seed, processes, followers, rounds=60, seconds=20)


@pytest.mark.stress
def test_killing_at_random_for_long(
    name: str, seed: int, processes: Processes, followers: Followers
) -> None:
    """The same, for as long as there is time."""
    kill_at_random(name, seed, processes, followers, rounds=math.inf, seconds=stress_seconds())
