"""What the tests of native code share: programs that are compiled once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ringcast import shm

from .ends import Ends
from .toolchain import ADDRESS, PLAIN, THREAD, UNDEFINED, Build, Toolchain

INCLUDE: Final = Path(shm.__file__).parent / "native" / "include"
HERE: Final = Path(__file__).parent

EVERY_BUILD: Final = [
    ("gcc", PLAIN),
    ("gcc", THREAD),
    ("gcc", ADDRESS),
    ("clang", PLAIN),
    ("clang", UNDEFINED),
]
"""What the C ends are tested in. The examples are compiled by every compiler in every build."""


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


@pytest.fixture(params=EVERY_BUILD, ids=lambda pair: f"{pair[0]}-{pair[1].name}")
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
