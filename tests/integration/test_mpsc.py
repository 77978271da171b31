"""The uplink with real processes: order, deaths of either side, and wake-ups."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from array import array
from collections import defaultdict
from ctypes import c_int64
from multiprocessing import sharedctypes
from pathlib import Path
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import mpsc
from ringcast.shm.mpsc import Receiver, Sender
from tests.conftest import Processes, eventually

from . import numbered
from .conftest import Victims
from .numbered import OrderChecker, numbered_message
from .test_wakeup import Watch, check, take_core

# ---- order ---------------------------------------------------------------------------------

LONG = 1000


def send_many(name: str, who: int, count: int, where: Path) -> None:
    """A process: send so many, and leave a list of the tickets got."""
    tickets = array("Q")
    with Sender.attach(name) as sender:
        for n in range(count):
            ticket = sender.try_send(numbered_message(who, n, LONG))
            tickets.append(
                sender.send(numbered_message(who, n, LONG)) if ticket is None else ticket
            )
        sender.flush()
    where.write_bytes(tickets.tobytes())


def check_order(
    name: str, processes: Processes, tmp_path: Path, total: int, lane_bytes: int, window: int
) -> None:
    """8 processes; the order received is the one that the tickets tell, and each sender's own."""
    senders, checker = 8, OrderChecker(LONG)
    received: dict[int, array[int]] = defaultdict(lambda: array("Q"))
    with Receiver.create(name, max_senders=senders, lane_bytes=lane_bytes) as receiver:
        receiver.limit_in_flight(window)
        for who in range(senders):
            processes.start(send_many, name, who, total // senders, tmp_path / str(who))
        end = numbered.deadline() + total / 10_000
        while checker.received < total:
            assert time.monotonic() < end, mpsc.status(name)
            message = receiver.read(timeout=1)
            for each in [message, *receiver.read_available()] if message is not None else []:
                received[checker.take(each)].append(each.ticket)
        processes.join()
        assert receiver.read_available() == []
        assert checker.ticket == total
        assert (receiver.voided, receiver.senders_evicted) == (0, 0)
        assert mpsc.status(name).senders == ()
    for who in range(senders):
        assert received[who].tobytes() == (tmp_path / str(who)).read_bytes()


@pytest.mark.parametrize(
    ("lane_bytes", "window", "total"),
    [(65536, 0, 120_000), (2048, 0, 60_000), (4096, 2, 20_000)],
    ids=["roomy", "tight", "window"],
)
def test_eight_senders(
    name: str, processes: Processes, tmp_path: Path, lane_bytes: int, window: int, total: int
) -> None:
    check_order(name, processes, tmp_path, total, lane_bytes, window)


@pytest.mark.stress
@pytest.mark.parametrize("lane_bytes", [1 << 16, 2048])
def test_eight_senders_for_long(
    name: str, processes: Processes, tmp_path: Path, lane_bytes: int
) -> None:
    check_order(name, processes, tmp_path, 3_000_000, lane_bytes, 0)


# ---- senders die ---------------------------------------------------------------------------

COMMITTED = (63, 64, 65)
VICTIM, SURVIVOR = 1, 2


def lanes(name: str) -> int:
    """How many are in use."""
    return len(mpsc.status(name).senders)


@pytest.mark.parametrize("step", [60, 61, 62, *COMMITTED])
def test_a_sender_dies_at_any_step(name: str, seed: int, victims: Victims, step: int) -> None:
    """What it had committed comes, the rest doesn't, nobody waits, and its lane is used again."""
    nth = random.Random(seed).randint(1, 20)
    checker = OrderChecker()
    with numbered.create(name) as receiver, Sender.attach(name) as survivor:
        victim = victims(step, nth, "send", name, VICTIM)
        victim.ready()
        survivor.send(numbered_message(SURVIVOR, 0), timeout=0)
        assert victim.dies() == nth - 1
        survivor.send(numbered_message(SURVIVOR, 1), timeout=0)
        checker.take_all(receiver)
        assert checker.expected[SURVIVOR] == 2
        assert checker.expected[VICTIM] == nth - (step not in COMMITTED)
        survivor.flush(timeout=0)
        eventually(lambda: receiver.read_available() or lanes(name) == 1, "its lane is free")
        with Sender.attach(name) as heir:
            assert heir.lane == 1
            for n in range(100):
                heir.send(numbered_message(3, n), timeout=0)
                survivor.send(numbered_message(SURVIVOR, 2 + n), timeout=0)
                checker.take_all(receiver)
            assert (checker.expected[3], checker.expected[SURVIVOR]) == (100, 102)
        assert (receiver.voided, receiver.senders_evicted) == (0, 0)


def kill_senders(name: str, processes: Processes, seed: int, rounds: int) -> None:
    """Three send; one of two is killed each round, and replaced. The third gets on in each."""
    rng = random.Random(seed)
    checker, numbers = OrderChecker(), iter(range(10, 1 << 30))
    with numbered.create(name) as receiver:
        processes.start(numbered.send_for_ever, name, SURVIVOR)
        doomed = [processes.start(numbered.send_for_ever, name, next(numbers)) for _ in range(2)]
        for _ in range(rounds):
            end = numbered.deadline()
            goal = checker.expected[SURVIVOR] + rng.randint(1, 300)
            while checker.expected[SURVIVOR] < goal:
                assert time.monotonic() < end, mpsc.status(name)
                checker.take_all(receiver)
            victim = doomed.pop(rng.randrange(2))
            processes.kill(victim)
            doomed.append(processes.start(numbered.send_for_ever, name, next(numbers)))
        newest = next(numbers) - 1
        eventually(
            lambda: checker.take_all(receiver) and checker.expected[newest], "the newest sends"
        )
        assert (receiver.voided, receiver.senders_evicted) == (0, 0)
        assert receiver.ticket == checker.received


def test_senders_are_killed_at_random(name: str, processes: Processes, seed: int) -> None:
    kill_senders(name, processes, seed, 20)


@pytest.mark.stress
def test_senders_are_killed_at_random_for_long(name: str, processes: Processes, seed: int) -> None:
    kill_senders(name, processes, seed, 300)


# ---- receivers die -------------------------------------------------------------------------


def unconfirmed(sender: Sender) -> int:
    """How many messages are unconfirmed; reported once."""
    try:
        sender.flush()
    except shm.SendUnconfirmed as error:
        sender.flush()
        return error.count
    return 0


@pytest.mark.parametrize("auto_ack", [True, False])
@pytest.mark.parametrize("step", [70, 71, 72, 73])
def test_a_receiver_dies_at_any_step(
    name: str, seed: int, victims: Victims, step: int, auto_ack: bool
) -> None:
    """Messages it had not taken come; one that it had taken is lost, and is reported."""
    nth = random.Random(seed).randint(1, 20)
    victim = victims(step, nth, "receive", name, "create", auto_ack)
    victim.ready()
    senders = [Sender.attach(name), Sender.attach(name)]
    for n in range(40):
        senders[n % 2].send(numbered_message(n % 2, n // 2), timeout=0)
    assert victim.dies() == nth - 1
    first = nth - (step == 70)
    with Receiver.resume(name) as receiver:
        assert (receiver.epoch, receiver.ticket) == (2, first)
        checker = OrderChecker()
        checker.expected.update({0: (first + 1) // 2, 1: first // 2})
        assert checker.take_all(receiver) == 40 - first
        reported = [unconfirmed(sender) for sender in senders]
        unacknowledged = first - (nth - 1) if auto_ack else first
        assert sum(reported) == unacknowledged
        receiver.limit_in_flight(1)
        for n in range(20, 120):
            for who, sender in enumerate(senders):
                sender.send(numbered_message(who, n), timeout=0)
                checker.take_all(receiver)
        assert checker.expected == {0: 120, 1: 120}
        assert [sender.pending for sender in senders] == [0, 0]
        assert (receiver.voided, receiver.senders_evicted) == (0, 0)
        for sender in senders:
            sender.close()
        assert lanes(name) == 0


def test_a_lane_is_not_lost_with_a_receiver(name: str, seed: int, victims: Victims) -> None:
    """Each dies after it took a message and before it freed its bytes."""
    sender = None
    for turn in range(6):
        victim = victims(72, 1, "receive", name, "resume" if turn else "create", "at once")
        victim.ready()
        sender = sender or Sender.attach(name)
        assert unconfirmed(sender) == (1 if turn else 0)
        sender.send(bytes(sender.max_message), timeout=0)
        assert victim.dies() == 0
    assert sender is not None
    with Receiver.resume(name) as receiver:
        assert unconfirmed(sender) == 1
        for _ in range(5):
            sender.send(bytes(sender.max_message), timeout=0)
            assert len(receiver.read_available()) == 1
        sender.close()
    print(seed)


def receive_for_ever(name: str, how: str, pipe: int) -> None:
    """A process: receive, and pass each on, until it is killed."""
    receiver = numbered.create(name) if how == "create" else Receiver.resume(name)
    while True:
        message = receiver.read()
        if message is not None:
            os.write(pipe, bytes([len(message.payload)]) + message.payload)


class Pipe:
    """What receivers pass on; each message whole, or not at all."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        os.set_blocking(self.ours, False)
        self.held = b""

    def drain(self, checker: OrderChecker) -> None:
        """Look at what has come."""
        try:
            self.held += os.read(self.ours, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(self.held) and at + self.held[at] < len(self.held):
            after = at + 1 + self.held[at]
            checker.take_payload(self.held[at + 1 : after], lossy=True)
            at = after
        self.held = self.held[at:]

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


def is_at(name: str, epoch: int) -> bool:
    """Has the receiver of this number begun?"""
    try:
        return mpsc.status(name).epoch == epoch
    except shm.RingNotFound:
        return False


def kill_receivers(name: str, processes: Processes, seed: int, rounds: int) -> None:
    """A chain of receivers takes what three senders send. Of each that is killed the message in
    hand is lost at most, and the one that it was about to pass on."""
    rng, checker, pipe = random.Random(seed), OrderChecker(), Pipe()

    def goes_on(least: int) -> bool:
        pipe.drain(checker)
        return checker.received >= least

    receiver = processes.start(receive_for_ever, name, "create", pipe.theirs)
    senders = [processes.start(numbered.send_for_ever, name, who) for who in range(3)]
    for epoch in range(1, rounds + 1):
        eventually(lambda epoch=epoch: is_at(name, epoch), "it has begun")  # type: ignore[misc]
        goal = checker.received + rng.randint(1, 2000)
        eventually(lambda goal=goal: goes_on(goal), "messages come")  # type: ignore[misc]
        processes.kill(receiver)
        receiver = processes.start(receive_for_ever, name, "resume", pipe.theirs)
    eventually(lambda: is_at(name, rounds + 1), "it has begun")
    eventually(lambda: goes_on(goal + 5000), "messages come")
    processes.kill(receiver)
    while select.select([pipe.ours], [], [], 0)[0]:
        pipe.drain(checker)
    with Receiver.resume(name) as last:
        assert last.epoch == rounds + 2
        for message in last.read_available():
            checker.take_payload(bytes(message), lossy=True)
        assert last.voided == 0
    processes.join(*senders)
    pipe.close()
    assert min(checker.expected[who] for who in range(3)) > 0
    assert checker.lost <= 2 * (rounds + 1)


def test_receivers_are_killed_at_random(name: str, processes: Processes, seed: int) -> None:
    kill_receivers(name, processes, seed, 20)


@pytest.mark.stress
def test_receivers_are_killed_at_random_for_long(
    name: str, processes: Processes, seed: int
) -> None:
    kill_receivers(name, processes, seed, 300)


# ---- wake-ups ------------------------------------------------------------------------------

SLICE_NS = 100_000_000
CROSSINGS = 10_000


def answer(name: str, crossings: int, answered: Any, slept_through: Any) -> None:
    """A process: receive, and note when it was done; counts the waits that it slept through."""
    take_core(1)
    with Receiver.resume(name, wait=shm.Blocking(spin_us=0)) as receiver:
        receiver.limit_in_flight(1)
        answered[0] = 1
        watch = Watch(SLICE_NS)
        for _ in range(crossings):
            watch.begin()
            message = receiver.read()
            assert message is not None
            answered[0] = time.monotonic_ns()
            watch.end(int.from_bytes(message.payload, "little"))
        slept_through[0] = watch.close()
        while receiver.read(timeout=0.01) is not None or mpsc.status(name).senders:
            pass


def cross(name: str, processes: Processes, how: str, crossings: int) -> None:
    """Both sides fall asleep at each message, at about the moment in which the other one acts."""
    rng = random.Random()
    answered: Any = sharedctypes.RawArray(c_int64, 1)
    slept_through: Any = sharedctypes.RawArray(c_int64, [-1])
    orphan(name)
    process = processes.start(answer, name, crossings, answered, slept_through)
    eventually(lambda: answered[0], "the receiver is there")
    watch = Watch(SLICE_NS)
    with Sender.attach(name) as sender:
        for _ in range(crossings):
            until = time.monotonic_ns() + rng.randrange(40_000)
            while time.monotonic_ns() < until:
                pass
            watch.begin()
            if how == "room":  # which there is when the one before is acknowledged
                sender.send(time.monotonic_ns().to_bytes(8, "little"))
            else:
                sender.send(time.monotonic_ns().to_bytes(8, "little"), timeout=0)
                sender.flush()
            watch.end(answered[0])
    processes.join(process)
    check(watch.close(), crossings)
    check(slept_through[0], crossings)


def orphan(name: str) -> None:
    """An uplink whose receiver has died."""
    child = os.fork()
    if child == 0:
        numbered.create(name)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("how", ["room", "flush"])
def test_no_wake_up_is_lost(name: str, processes: Processes, how: str) -> None:
    cross(name, processes, how, CROSSINGS)


@pytest.mark.stress
@pytest.mark.parametrize("how", ["room", "flush"])
def test_no_wake_up_is_lost_for_long(name: str, processes: Processes, how: str) -> None:
    cross(name, processes, how, 100 * CROSSINGS)
