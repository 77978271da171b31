"""Fixtures of the tests with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from tests.conftest import DEADLINE, Processes, eventually

from .traffic import Followers

REPOSITORY: Final = Path(__file__).parents[2]


@pytest.fixture
def seed() -> int:
    """A seed for one test, printed so that a failure can be repeated."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def other(name: str) -> Iterator[str]:
    """The name of a second ring; removed if its writer was killed. For a test that starts processes
    it stands before `processes`, so that they have ended by then."""
    other = f"{name}b"
    yield other
    with contextlib.suppress(shm.RingNotFound):
        shm.unlink(other)


@pytest.fixture
def followers(processes: Processes, name: str, seed: int) -> Followers:
    """Reader processes, ended with the test."""
    return Followers(processes, name, seed)


# ---- victims that die at a step ------------------------------------------------------------

BUILD: Final = """
import json, sys
from setuptools import Extension, setup
setup(packages=[], package_dir={"": "src"},
      ext_modules=[Extension(**given) for given in json.loads(sys.argv[1])],
      script_args=["--quiet", "build_ext", "--inplace", "--parallel=2"])
"""


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a copy of the package is that has fault points. It is not optimised: compiling would
    take longer than the tests that use it."""
    root = tmp_path_factory.mktemp("faulty")
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")  # what Cython made is as good here
    for folder in ("shm", "broker", "src"):
        shutil.copytree(REPOSITORY / folder, root / folder, symlinks=True, ignore=unwanted)
    shutil.copy(Path(__file__).with_name("faults.c"), root)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extensions: list[dict[str, Any]] = []
    for given in project["tool"]["setuptools"]["ext-modules"]:
        if given["name"].startswith("ringcast.shm."):
            extension = {key.replace("-", "_"): value for key, value in given.items()}
            extension["sources"].append("faults.c")
            extension["extra_compile_args"] += ["-DRC_FAULTS", "-O0", "-g0"]
            extensions.append(extension)
    command = [sys.executable, "-c", BUILD, json.dumps(extensions)]
    subprocess.run(command, cwd=root, check=True, timeout=600)
    return root


class Nursery:
    """A process of the build with fault points, from which victims are forked."""

    def __init__(self, root: Path) -> None:
        path = f"{root / 'src'}{os.pathsep}{REPOSITORY}"
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(DEADLINE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "error", "-m", "tests.integration.nursery"],
                cwd=root,
                env=os.environ | {"PYTHONPATH": path},
                stdin=theirs.fileno(),
            )

    def ask(self, *request: Any, fds: Sequence[int] = ()) -> Any:
        """Its reply to a request, see nursery.py."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
        return json.loads(self._socket.recv(1 << 16))

    def end(self) -> None:
        """Let it go."""
        self._socket.close()
        self._process.kill()
        self._process.wait(DEADLINE)


class Forked:
    """A victim's process, with what subprocess calls so.

    Attributes:
        stdin, stdout: pipes.
        returncode: None until `poll` has found that it has ended.
    """

    def __init__(self, nursery: Nursery, fault: str, arguments: Sequence[str]) -> None:
        self._nursery = nursery
        its_input, ours = os.pipe()
        self.stdin = os.fdopen(ours, "wb", buffering=0)
        ours, its_output = os.pipe()
        self.stdout = os.fdopen(ours, "rb", buffering=0)
        fds = (its_input, its_output)
        try:
            self.pid: int = nursery.ask("start", fault, arguments, fds=fds)
        finally:
            for fd in fds:
                os.close(fd)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, if it has."""
        if self.returncode is None:
            self.returncode = self._nursery.ask("poll", self.pid)
        return self.returncode

    def has_ended(self) -> bool:
        """Has it?"""
        return self.poll() is not None

    def kill(self) -> None:
        """SIGKILL it if it lives, and wait for its end."""
        if not self.has_ended():  # so nobody else has its id
            os.kill(self.pid, signal.SIGKILL)
        eventually(self.has_ended, "it is dead")


class Victim:
    """A process of the build with fault points, that is to die at one of them."""

    def __init__(self, nursery: Nursery, step: int, nth: int, *arguments: str) -> None:
        self.process = Forked(nursery, f"{step}:{nth}", arguments)

    def _read(self, size: int) -> bytes:
        """What it writes next."""
        assert select.select([self.process.stdout], [], [], DEADLINE)[0], "the victim hangs"
        return self.process.stdout.read(size)

    def ready(self) -> None:
        """Wait until it has come so far that it waits for `dies`."""
        assert self._read(1) == b"r"

    def dies(self) -> int:
        """Let it go on, to its death; how many messages it had published."""
        with contextlib.suppress(BrokenPipeError):  # it may have died before it was ready
            self.process.stdin.write(b"g")
        published = 0
        while some := self._read(1 << 16):
            published += len(some)
        eventually(self.process.has_ended, "it is dead")
        assert self.process.returncode == -signal.SIGKILL
        return published

    def end(self) -> None:
        """Kill it if it lives."""
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()


Victims = Callable[..., Victim]


@pytest.fixture(scope="session")
def nursery(faulty: Path) -> Iterator[Nursery]:
    """Where victims come from."""
    nursery = Nursery(faulty)
    yield nursery
    nursery.end()


@pytest.fixture
def victims(nursery: Nursery) -> Iterator[Victims]:
    """Starts victims: step, nth time, role and arguments. None outlives the test."""
    started: list[Victim] = []

    def start(step: int, nth: int, *arguments: object) -> Victim:
        started.append(Victim(nursery, step, nth, *map(str, arguments)))
        return started[-1]

    yield start
    for victim in started:
        victim.end()
