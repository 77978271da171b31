"""kill -9 of the manager and of workers under load; what a manager costs when nothing happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from ringcast import Config, Manager, Phase, attach, shm
from tests.conftest import DEADLINE, Processes, eventually

from .manager import Peer, describe, kill, listen, quick, sending, serving, url_of
from .traffic import cpu_seconds

LIVES: Final = 3
WORKERS: Final = 4
RING: Final = {"slots": 256, "capacity": 1 << 16}


class Counter:
    """A script: numbers messages up, over all its connections.

    Attributes:
        sent: how many were handed to a socket, whether they came through or not.
        firsts: the number that each connection began with.
        stopping: set to end with the next message, after which the server closes.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.firsts: list[int] = []
        self.stopping = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        self.firsts.append(self.sent)
        with contextlib.suppress(OSError):
            while not self.stopping.is_set() and not select.select([sock], [], [], 0)[0]:
                number, self.sent = self.sent, self.sent + 1
                peer.send(str(number))
        if self.stopping.is_set():
            peer.close(1000)


def take_all(name: str, pipe: Connection) -> None:
    """A process: a worker that tells everything it saw when the ring ends."""
    seen = []
    with attach(name, start="oldest", events=True) as feed:
        pipe.send(None)
        for message in feed:
            seen.append((message.sequence, message.gap, message.epoch, describe(message)))
        pipe.send((feed.lost, seen))


Seen = list[tuple[int, int, int, str]]


class Workers:
    """Processes that note all they see; attached when this returns."""

    def __init__(self, name: str, processes: Processes, number: int = WORKERS) -> None:
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        for _ in range(number):
            ours, theirs = Pipe()
            self.processes.append(processes.start(take_all, name, theirs))
            self.pipes.append(ours)
        for pipe in self.pipes:
            assert pipe.poll(DEADLINE)
            pipe.recv()

    def seen(self, number: int) -> Seen:
        """What one of them saw, without loss, to the end of the ring."""
        assert self.pipes[number].poll(DEADLINE), "a worker does not come to an end"
        lost, seen = self.pipes[number].recv()
        assert lost == 0
        assert [sequence for sequence, *_ in seen] == [*range(len(seen))]
        assert {gap for _, gap, *_ in seen} == {0}
        found: Seen = seen
        return found


def published(name: str, more: int) -> None:
    """Wait until so many more records are in the ring."""
    goal = shm.status(name).sequence + more
    eventually(lambda: shm.status(name).sequence > goal, "the manager publishes")


def connected(counter: Counter, times: int) -> None:
    """Wait until managers have connected so often."""
    eventually(lambda: len(counter.firsts) == times, "the manager connects")


def config(name: str, url: str) -> Config:
    return quick(name, url, drain_timeout=DEADLINE, **RING)


def test_a_manager_killed_under_load_is_followed_by_another(
    name: str, processes: Processes
) -> None:
    counter = Counter()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen())
        manager = stack.enter_context(Manager(config(name, url_of(listener))))
        workers = Workers(name, processes)
        stack.enter_context(serving(counter, listener=listener))
        for life in range(1, LIVES):
            published(name, 500)
            kill(manager)
            eventually(lambda: shm.status(name).state != "open", "its lock is released")
            manager = stack.enter_context(Manager(config(name, url_of(listener))))
            connected(counter, life + 1)
        published(name, 500)
        assert manager.pid is not None
        os.kill(manager.pid, signal.SIGTERM)
        seen = [workers.seen(number) for number in range(WORKERS)]
        assert manager.join(DEADLINE) == 0
        processes.join()
    assert all(other == seen[0] for other in seen)
    check_lives(seen[0], counter)


def check_lives(seen: Seen, counter: Counter) -> None:
    """Each life is: its records, then numbers without a hole from where its connection began."""
    lives = [[*life] for _, life in itertools.groupby(seen, key=lambda record: record[2])]
    assert len(lives) == len(counter.firsts) == LIVES
    assert [life[0][2] for life in lives] == [*range(1, LIVES + 1)]
    ends = [*counter.firsts[1:], counter.sent]
    for number, (life, first, end) in enumerate(zip(lives, counter.firsts, ends, strict=True)):
        records = [text for *_, text in life]
        if number == 0:
            assert records[:2] == ["connecting 1", "connected 1"]
        else:
            assert records[:3] == ["restarted", "connecting 1", "connected 1 after a gap"]
        numbers = [int(text.removeprefix("text ")) for text in records if text.startswith("text")]
        # All that is missing was sent between the last of one life and the first of the next.
        assert numbers == [*range(first, first + len(numbers))]
        assert 500 <= len(numbers) <= end - first
        events = 3 if number else 2
        assert records[events : events + len(numbers)] == [f"text {n}" for n in numbers]
        assert records[events + len(numbers) :] == (["stopped"] if number == LIVES - 1 else [])


def test_workers_killed_under_load_cost_the_others_nothing(name: str, processes: Processes) -> None:
    counter = Counter()
    listener = listen()
    with Manager(config(name, url_of(listener))) as manager:
        workers = Workers(name, processes)
        with serving(counter, listener=listener):
            for victim in workers.processes[::2]:
                published(name, 500)
                processes.kill(victim)
            published(name, 500)
            counter.stopping.set()
            # The server ends its stream, and the manager comes back: that it does is the mark.
            eventually(lambda: len(counter.firsts) > 1, "the manager has reconnected")
            assert manager.pid is not None
            os.kill(manager.pid, signal.SIGTERM)
            survivors = [workers.seen(1), workers.seen(3)]
            assert manager.join(DEADLINE) == 0
            processes.join(workers.processes[1], workers.processes[3])
    for seen in survivors:
        texts = [text for *_, text in seen if text.startswith("text")]
        assert texts == [f"text {n}" for n in range(counter.firsts[1])]


def test_an_idle_manager_uses_next_to_no_processor_time(name: str) -> None:
    with (
        serving(sending("hello")) as server,
        Manager(quick(name, server.url)) as manager,
        attach(name, start="oldest") as feed,
    ):
        message = feed.read(DEADLINE)
        assert message is not None
        assert feed.state.phase == Phase.OPEN
        used, began = cpu_seconds(manager.pid), time.monotonic()
        assert feed.read(2.0) is None
        used, wall = cpu_seconds(manager.pid) - used, time.monotonic() - began
    assert used < 0.01 * wall
