"""Workers with random, changing, overlapping topics against a flood of messages through a manager:
each gets exactly its own, in order, none lost, none else's, whoever dies."""

from __future__ import annotations

import contextlib
import ctypes
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from multiprocessing import sharedctypes
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import Manager, attach, shm
from tests.conftest import DEADLINE, Processes, eventually
from tests.frames import TEXT, frame
from tests.native.conftest import against_interface
from tests.native.toolchain import Build, Toolchain

from .choosers import WAYS, Published, choose, number_in, text_of
from .manager import Peer, kill, listen, quick, serving, url_of
from .traffic import stress_seconds

WORKERS: Final = 8
IN_C: Final = 2
C_TOPICS: Final = ("a1", "*2", "g*", "h4", "b*", "*")
RING: Final = {"slots": 256, "capacity": 1 << 16, "max_topics": 32}
"""So small that it is full at times, and with fewer topics than the server sends."""
QUICK: Final = Build("quick", ("-O0",), 0)
"""For a program that takes longer to compile than to run."""
BRIEFLY: Final = 1.0
"""Seconds of flood in a default run."""
_TURN: Final = 0.1
"""Seconds between two looks at how full the ring is, and two deaths, about."""


class Flood:
    """A script: messages with random topics, numbered over all connections."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._number = 0
        self.stopping = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        while not self.stopping.is_set():
            frames = []
            for _ in range(self._rng.randint(1, 200)):
                frames.append(frame(TEXT, text_of(self._rng, self._number).encode()))
                self._number += 1
            sock.sendall(b"".join(frames))
        peer.answer_until_end()


class Recorder:
    """A worker, in a thread, that gets everything.

    Attributes:
        messages: topic and number of each message of the flood, by sequence.
        next: sequence of the message that comes next.
    """

    def __init__(self, name: str) -> None:
        self._feed = attach(name, events=True)
        self.messages: dict[int, tuple[str | None, int]] = {}
        self.next = self._feed.cursor
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._feed as feed:
                for m in feed:
                    assert m.sequence == self.next
                    self.next += 1
                    if m.kind != shm.Kind.EVENT:
                        self.messages[m.sequence] = (m.topic_name, number_in(bytes(m)))
        except BaseException as error:
            self._failures.append(error)

    def has_all(self) -> bool:
        """Has it all that is published?"""
        return self.next == shm.status(self._feed.name).sequence

    def end(self) -> None:
        """The ring has ended."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self._failures:
            raise self._failures[0]


class Crowd:
    """Workers that are killed and replaced; each has a diary of its own."""

    def __init__(
        self, name: str, folder: Path, rng: random.Random, processes: Processes, command: list[str]
    ) -> None:
        self.diaries: list[Path] = []
        self._name = name
        self._folder = folder
        self._rng = rng
        self._processes = processes
        self._command = command
        # No event: one that is killed as it looks would hold its lock for ever.
        self._stop = sharedctypes.RawValue(ctypes.c_bool, False)
        self._living = [self._start(way % len(WAYS)) for way in range(WORKERS)]
        self._in_c = [self._start_in_c() for _ in range(IN_C)]

    def _diary(self) -> Path:
        self.diaries.append(self._folder / f"diary{len(self.diaries)}")
        return self.diaries[-1]

    def _start(self, way: int) -> tuple[BaseProcess, int]:
        seed = self._rng.getrandbits(32)
        arguments = (self._name, self._diary(), seed, way, self._stop)
        return self._processes.start(choose, *arguments), way

    def _start_in_c(self) -> subprocess.Popen[bytes]:
        seed = str(self._rng.getrandbits(32))
        topics = self._rng.sample(C_TOPICS, len(C_TOPICS))
        with self._diary().open("wb") as file:
            return subprocess.Popen([*self._command, self._name, seed, *topics], stdout=file)

    def kill_one(self) -> None:
        """One dies, and another takes its place."""
        at = self._rng.randrange(WORKERS + IN_C)
        if at < WORKERS:
            process, way = self._living[at]
            self._processes.kill(process)
            self._living[at] = self._start(way)
        else:
            self._in_c[at - WORKERS].kill()
            self._in_c[at - WORKERS].wait(DEADLINE)
            self._in_c[at - WORKERS] = self._start_in_c()

    def stop(self) -> None:
        """All leave, but those in C, which stay to the ring's end."""
        self._stop.value = True
        self._processes.join(*(process for process, _ in self._living))

    def end(self) -> None:
        """The ring has ended."""
        for program in self._in_c:
            assert program.wait(DEADLINE) == 0

    def abort(self) -> None:
        """Whatever has happened."""
        for program in self._in_c:
            program.kill()
            program.wait(DEADLINE)


def is_full(name: str) -> bool:
    """Does somebody hold up the writer?"""
    return any(reader.lag >= RING["slots"] for reader in shm.status(name).readers)


@contextlib.contextmanager
def crowd_of(*arguments: Any) -> Iterator[Crowd]:
    """Workers, none of which outlives the block."""
    crowd = Crowd(*arguments)
    try:
        yield crowd
    finally:
        crowd.abort()


def play(
    name: str,
    folder: Path,
    rng: random.Random,
    processes: Processes,
    command: list[str],
    lives: int,
    seconds: float,
) -> None:
    """Managers and workers live and die while messages come; then each diary is judged."""
    listener, flood = listen(), Flood(rng)
    config = quick(name, url_of(listener), topic=["{/t}"], **RING)
    was_full = False
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(flood, listener=listener))
        stack.callback(flood.stopping.set)
        for life in range(lives):
            with Manager(config) as manager:
                if life == 0:
                    recorder = Recorder(name)
                    crowd = stack.enter_context(
                        crowd_of(name, folder, random.Random(rng.random()), processes, command)
                    )
                until = time.monotonic() + seconds / lives
                while time.monotonic() < until:
                    crowd.kill_one()
                    again = time.monotonic() + _TURN
                    while time.monotonic() < again:
                        was_full |= is_full(name)
                if life < lives - 1:
                    kill(manager)
                    continue
                flood.stopping.set()
                crowd.stop()
                eventually(recorder.has_all, "all is recorded")
        recorder.end()
        crowd.end()
    published = Published(recorder.messages)
    got = [published.judge(diary) for diary in crowd.diaries if diary.exists()]
    print(f"{len(recorder.messages)} published, by {len(got)} workers were got {got}")
    assert was_full
    assert sum(got) > WORKERS


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to start a worker in C."""
    source = Path(__file__).with_name("chooser.c")
    return against_interface(Toolchain(tmp_path_factory.mktemp("c")), source, "gcc", QUICK)


def test_each_gets_exactly_its_own(
    name: str, tmp_path: Path, seed: int, processes: Processes, command: list[str]
) -> None:
    play(name, tmp_path, random.Random(seed), processes, command, 2, BRIEFLY)


@pytest.mark.stress
def test_each_gets_exactly_its_own_for_long(
    name: str, tmp_path: Path, seed: int, processes: Processes, command: list[str]
) -> None:
    end = time.monotonic() + stress_seconds()
    rng = random.Random(seed)
    for part in range(1000):
        folder = tmp_path / str(part)
        folder.mkdir()
        play(name, folder, rng, processes, command, 3, 4)
        if time.monotonic() > end:
            break
