"""What the tests of native code share: programs that are compiled once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark.structures import ParameterSet

from ringcast import shm

from .ends import Ends
from .toolchain import BUILDS, CHECKED, COMPILERS, PLAIN, THREAD, Build, Toolchain

INCLUDE: Final = Path(shm.__file__).parent / "native" / "include"
HERE: Final = Path(__file__).parent

USUAL: Final = [("gcc", PLAIN), ("gcc", THREAD), ("clang", CHECKED)]
"""The default run has each compiler and each build; the long one has each with each."""


def by_every_compiler(*builds: Build) -> list[ParameterSet]:
    """Parameters: pairs of a compiler and one of these builds."""
    return [
        pytest.param(
            (compiler, build),
            id=f"{compiler}-{build.name}",
            marks=() if (compiler, build) in USUAL else pytest.mark.stress,
        )
        for compiler in COMPILERS
        for build in builds
    ]


EVERY_BUILD: Final = by_every_compiler(*BUILDS)
EVERY_CHECKED: Final = by_every_compiler(CHECKED)


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    return Toolchain(tmp_path_factory.mktemp("native"))


def against_interface(
    toolchain: Toolchain, source: Path, compiler: str, build: Build, *libraries: str
) -> list[str]:
    """Compile a program with ringcast.c; how to start it."""
    objects = [
        toolchain.object(path, compiler, build, f"-I{INCLUDE}")
        for path in (source, INCLUDE / "ringcast.c")
    ]
    program = toolchain.link(objects, compiler, build, *libraries, "-lrt")
    return toolchain.command(program, build)


StartEnds = Callable[[], Ends]


@contextmanager
def starting(toolchain: Toolchain, compiler: str, build: Build, where: Path) -> Iterator[StartEnds]:
    """Starts processes of endpoints.c, which end with the test."""
    command = against_interface(toolchain, HERE / "endpoints.c", compiler, build)
    started: list[Ends] = []
    numbers = itertools.count()

    def start() -> Ends:
        started.append(Ends(command, where / f"errors{next(numbers)}"))
        return started[-1]

    try:
        yield start
        for ends in started:
            ends.end()
    finally:
        for ends in started:
            ends.abort()


@pytest.fixture(params=EVERY_BUILD)
def ends(
    request: pytest.FixtureRequest, toolchain: Toolchain, name: str, tmp_path: Path
) -> Iterator[Ends]:
    """A process of C ends, in every build."""
    assert name  # whose ring outlives the process
    compiler, build = request.param
    with starting(toolchain, compiler, build, tmp_path) as start:
        yield start()


@pytest.fixture(params=[PLAIN, THREAD], ids=lambda build: build.name)
def start_ends(
    request: pytest.FixtureRequest, toolchain: Toolchain, name: str, tmp_path: Path
) -> Iterator[StartEnds]:
    """Starts any number of processes of C ends."""
    assert name
    with starting(toolchain, "gcc", request.param, tmp_path) as start:
        yield start
