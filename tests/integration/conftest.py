"""Fixtures of the tests with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from tests.conftest import DEADLINE, Processes

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
    """Where a copy of the package is that has fault points, built as the original is."""
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
            extension["extra_compile_args"].append("-DRC_FAULTS")
            extensions.append(extension)
    command = [sys.executable, "-c", BUILD, json.dumps(extensions)]
    subprocess.run(command, cwd=root, check=True, timeout=600)
    return root


class Victim:
    """A process of the build with fault points, that is to die at one of them."""

    def __init__(self, root: Path, step: int, nth: int, *arguments: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{root / 'src'}{os.pathsep}{REPOSITORY}",
            "RINGCAST_FAULT": f"{step}:{nth}",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "error", "-m", "tests.integration.victim", *arguments],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def ready(self) -> None:
        """Wait until it has come so far that it waits for `dies`."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], DEADLINE)[0], "the victim hangs"
        assert self.process.stdout.read(1) == b"r"

    def dies(self) -> int:
        """Let it go on, to its death; how many messages it had published."""
        output, _ = self.process.communicate(b"g", timeout=DEADLINE)
        assert self.process.returncode == -signal.SIGKILL
        return len(output)

    def end(self) -> None:
        """Kill it if it lives."""
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


Victims = Callable[..., Victim]


@pytest.fixture
def victims(faulty: Path) -> Iterator[Victims]:
    """Starts victims: step, nth time, role and arguments. None outlives the test."""
    started: list[Victim] = []

    def start(step: int, nth: int, *arguments: object) -> Victim:
        started.append(Victim(faulty, step, nth, *map(str, arguments)))
        return started[-1]

    yield start
    for victim in started:
        victim.end()
