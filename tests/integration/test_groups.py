"""Work groups among real processes: members that die, stop, join and leave, and writers that
die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, Processes, eventually

from .members import CAPACITY, SLOTS, Members, judge, publish_keys

BALANCES: Final[tuple[group.Balance, ...]] = ("any", "key", "round-robin")
MEMBERS: Final = 8
KEYS: Final = 50
NAME: Final = "pricing"


@pytest.fixture
def ring(name: str) -> Iterator[str]:
    """A ring without a writer, to be resumed; removed after the test. It stands before
    `processes`."""
    Writer.create(name, slots=SLOTS, capacity=CAPACITY).abandon()
    yield name
    with contextlib.suppress(shm.RingNotFound):
        shm.unlink(name)


@contextlib.contextmanager
def woken(processes: Processes) -> Iterator[None]:
    """No process of the test stays stopped: it could not be ended."""
    try:
        yield
    finally:
        for process in processes.started:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGCONT)


def make(ring: str, **options: Any) -> None:
    """The group, before the first message, without members."""
    group.Member.attach(ring, NAME, start="oldest", **options).close()


class Commotion:
    """What happens to a group at work, round by round, at random."""

    def __init__(self, members: Members, processes: Processes, rng: random.Random) -> None:
        self._members = members
        self._processes = processes
        self._rng = rng
        self._stopped: list[BaseProcess] = []

    def round(self) -> None:
        """One member is killed, stopped, started or leaves; some that are stopped go on."""
        what = self._rng.choice([self._kill, self._leave, self._stop, self._join])
        what()
        while len(self._stopped) > 2 or (self._stopped and self._rng.random() < 0.5):
            self._go_on(self._stopped[0])

    def end(self) -> None:
        for process in [*self._stopped]:
            self._go_on(process)

    def _go_on(self, process: BaseProcess) -> None:
        self._stopped.remove(process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)

    def _any_member(self) -> BaseProcess | None:
        """One to lose, if that leaves some."""
        if len(self._members.alive) < MEMBERS // 2:
            return None
        process = self._rng.choice(self._members.alive)
        if process in self._stopped:
            self._stopped.remove(process)
        return process

    def _kill(self) -> None:
        process = self._any_member()
        if process is not None:
            self._members.kill(process)

    def _leave(self) -> None:
        process = self._any_member()
        if process is not None:
            self._members.leave(process)

    def _stop(self) -> None:
        process = self._rng.choice(self._members.alive)
        if process not in self._stopped and process.pid is not None:
            os.kill(process.pid, signal.SIGSTOP)
            self._stopped.append(process)

    def _join(self) -> None:
        if len(self._members.alive) < 2 * MEMBERS:
            self._members.start()


def run(processes: Processes, members: Members, count: int, rounds: int, seed: int) -> int:
    """Publish at least `count` messages to members that come and go for so many rounds, the writer
    killed and resumed among them. Returns how many there were."""
    rng = random.Random(seed)
    may_end = members.folder / "may-end"
    commotion = Commotion(members, processes, rng)

    def start_writer() -> BaseProcess:
        return processes.start(
            publish_keys, members.ring, count, KEYS, rng.getrandbits(32), may_end
        )

    for _ in range(MEMBERS):
        members.start()
    members.wait_for(MEMBERS)
    with woken(processes):
        writer = start_writer()
        for n in range(rounds):
            time.sleep(rng.uniform(0, 0.02))  # not to wait for anything: rounds come at random
            commotion.round()
            if n % 20 == 19:
                processes.kill(writer)
                writer = start_writer()
        commotion.end()
        may_end.touch()
        processes.join(writer, *members.alive)
    return shm.status(members.ring).sequence


def check(members: Members, count: int, *, ordered_keys: bool) -> int:
    status = members.status()
    assert (status.floor, status.lag, status.in_flight, status.lost) == (count, 0, 0, 0)
    assert status.set_aside == 0
    assert status.voided == 0
    return judge(members.logs(), range(count), ordered_keys=ordered_keys)


@pytest.mark.parametrize("balance", BALANCES)
def test_members_that_die_stop_join_and_leave(
    balance: group.Balance, ring: str, processes: Processes, tmp_path: Path, seed: int
) -> None:
    """Every message is done, once unless its holder died or left; keys in their order, one by
    one."""
    make(ring, balance=balance)
    members = Members(processes, tmp_path, ring, NAME, 120_000, balance=balance)
    count = run(processes, members, 30_000, 25, seed)
    check(members, count, ordered_keys=balance == "key")


@pytest.mark.stress
@pytest.mark.parametrize("balance", BALANCES)
def test_a_million_messages_in_200_rounds(
    balance: group.Balance, ring: str, processes: Processes, tmp_path: Path, seed: int
) -> None:
    """The same, longer."""
    make(ring, balance=balance)
    members = Members(processes, tmp_path, ring, NAME, 1_200_000, balance=balance)
    count = run(processes, members, 1_000_000, 200, seed)
    assert count >= 1_000_000
    check(members, count, ordered_keys=balance == "key")


def count_sequences(ring: str, balance: str, path: str, batched: bool) -> None:
    """A member that counts how often it gets each sequence, and nothing else."""
    import numpy

    counts = numpy.memmap(path, numpy.uint8, "r+")
    with group.Member.attach(ring, NAME, balance=balance) as member:  # type: ignore[arg-type]
        if not batched:
            for message in member:
                counts[message.sequence] += 1
                assert message.deliveries == 1
            return
        with contextlib.suppress(shm.RingClosed):
            while True:
                with member.batch(limit=100) as batch:
                    counts[batch.descriptors["seq1"] - 1] += 1
                    assert batch.deliveries == 1


def publish_plainly(ring: str, count: int) -> None:
    """A writer without pauses."""
    writer = Writer.resume(ring)
    payload = bytes(16)
    for first in range(0, count, 50):
        writer.publish_many([payload] * min(50, count - first), key=first)
    writer.close()


def exactly_once(
    processes: Processes, ring: str, balance: group.Balance, folder: Path, count: int
) -> None:
    """Without deaths: each message once, none again."""
    import numpy

    make(ring, balance=balance)
    paths = [folder / f"{n}.counts" for n in range(4)]
    for n, path in enumerate(paths):
        numpy.zeros(count, numpy.uint8).tofile(path)
        processes.start(count_sequences, ring, balance, str(path), n % 2 == 1)
    eventually(lambda: len(group.list_groups(ring)[0].members) == len(paths), "all have joined")
    processes.start(publish_plainly, ring, count)
    for process in processes.started:
        process.join(20 * DEADLINE)
    processes.join()
    total = numpy.sum([numpy.fromfile(path, numpy.uint8) for path in paths], axis=0)
    assert (total == 1).all()
    status = group.list_groups(ring)[0]
    assert (status.floor, status.redelivered, status.voided) == (count, 0, 0)


@pytest.mark.parametrize("balance", BALANCES)
def test_without_deaths_exactly_once(
    balance: group.Balance, ring: str, processes: Processes, tmp_path: Path
) -> None:
    """Members one by one and in batches."""
    exactly_once(processes, ring, balance, tmp_path, 200_000)


@pytest.mark.stress
@pytest.mark.parametrize("balance", BALANCES)
def test_without_deaths_exactly_once_in_ten_million(
    balance: group.Balance, ring: str, processes: Processes, tmp_path: Path
) -> None:
    """The same, longer."""
    exactly_once(processes, ring, balance, tmp_path, 10_000_000)


def test_a_long_message_holds_up_nobody_else(
    ring: str, processes: Processes, tmp_path: Path
) -> None:
    """Balance any: while one member is at work on one message, the others do all the rest, up to
    what the ring holds."""
    make(ring, balance="any")
    members = Members(processes, tmp_path, ring, NAME, 2 * SLOTS, balance="any")
    with group.Member.attach(ring, NAME) as slow, Writer.resume(ring) as writer:
        writer.publish(b"long")
        held = slow.read(DEADLINE)
        assert held is not None
        for _ in range(3):
            members.start()
        for n in range(1, SLOTS - 1):
            writer.publish(n.to_bytes(8, "little"), timeout=DEADLINE)
        eventually(lambda: sum(map(len, members.logs())) == SLOTS - 2, "the others do the rest")
        assert members.status().floor == 0
        assert members.status().holder == slow.slot
        held.ack()
        writer.publish(b"more", timeout=DEADLINE)
        eventually(lambda: members.status().floor == SLOTS, "the floor moves")
        slow.close()
        writer.close()
        processes.join(*members.alive)
    judge(members.logs(), range(1, SLOTS), ordered_keys=False)


@pytest.mark.parametrize("balance", BALANCES)
def test_what_a_dead_member_held_goes_to_another(
    balance: group.Balance, ring: str, processes: Processes, tmp_path: Path
) -> None:
    """Noticed by its lock, with nothing new published."""
    make(ring, balance=balance)
    members = Members(processes, tmp_path, ring, NAME, 100, balance=balance)
    victim = members.start(work_s=DEADLINE)
    members.wait_for(1)
    with Writer.resume(ring) as writer:
        writer.publish(b"held", key=7)
        eventually(lambda: members.status().in_flight == 1, "the victim has it")
        with group.Member.attach(ring, NAME, balance=balance) as survivor:
            assert survivor.read(0) is None
            members.kill(victim)
            message = survivor.read(DEADLINE)
            assert message is not None
            assert (bytes(message), message.deliveries) == (b"held", 2)
            message.ack()
            eventually(lambda: members.status().floor == 1, "it is done")


@pytest.mark.parametrize("balance", ["any", "round-robin"])
def test_a_stopped_sleeper_that_is_chosen(
    balance: group.Balance, ring: str, processes: Processes, tmp_path: Path
) -> None:
    """Another takes the message all the same; with round-robin it takes the others of its turn."""
    make(ring, balance=balance)
    members = Members(processes, tmp_path, ring, NAME, 100, balance=balance)
    stopped = members.start()
    members.wait_for(1)
    with Writer.resume(ring) as writer, woken(processes):
        eventually(lambda: shm.status(ring).readers[0].waiting, "it sleeps")
        assert stopped.pid is not None
        os.kill(stopped.pid, signal.SIGSTOP)
        with group.Member.attach(ring, NAME, balance=balance) as other:
            for n in range(6):
                writer.publish(bytes([n]))
            got = [other.read(DEADLINE) for _ in range(6 if balance == "any" else 3)]
            assert all(got)
            assert members.status().floor < 6 or balance == "any"
            os.kill(stopped.pid, signal.SIGCONT)
            other.ack([message for message in got if message is not None])
            assert other.read(0) is None  # and so lets go of those that `got` keeps
            eventually(lambda: members.status().floor == 6, "all is done")
        members.leave(stopped)


def test_the_group_outlives_everybody(ring: str, processes: Processes, tmp_path: Path) -> None:
    """Members and writer are killed; those that come find what is not done, and nothing else."""
    make(ring, balance="key")
    members = Members(processes, tmp_path, ring, NAME, 1000, balance="key")
    workers = [members.start(work_s=0.001) for _ in range(3)]
    members.wait_for(3)
    writer = Writer.resume(ring)
    for n in range(300):
        writer.publish(n.to_bytes(8, "little"), key=1 + n % 7)
    eventually(lambda: sum(map(len, members.logs())) >= 20, "they are at work")
    for worker in workers:
        members.kill(worker)
    writer.abandon()
    assert group.list_groups(ring)[0].lag > 0
    for _ in range(2):
        members.start()
    with Writer.resume(ring):
        eventually(lambda: members.status().floor == 300, "all is done")
        for worker in [*members.alive]:
            members.leave(worker)
    judge(members.logs(), range(300), ordered_keys=True)
