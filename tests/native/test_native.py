"""The C core alone, in C, under the compiler's sanitizers: see each *_test.c."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.broker import connection, topics
from tests.integration.traffic import stress_seconds

from .toolchain import (
    BUILDS,
    CHECKED,
    NO_SHADOW,
    OPTIONS,
    REPORT,
    THREAD,
    WARNINGS,
    Build,
    compile_with,
    find,
    run,
)

HERE: Final = Path(__file__).parent
INCLUDES: Final = [
    Path(connection.__file__).parent,
    Path(topics.__file__).parent,
    Path(shm.__file__).parent / "native",
]


@pytest.fixture(scope="module")
def compiler() -> str:
    return find("gcc", "cc")


def compiled(compiler: str, build: Build, where: Path, source: str) -> str:
    program = where / source.removesuffix(".c")
    flags = ["-std=c11", *WARNINGS, "-g1", "-pthread", *build.flags]
    if build is CHECKED and source in LONG_RUNNING:
        flags.append("-O1")
    paths = [*(f"-I{folder}" for folder in INCLUDES), str(HERE / source), "-o", str(program)]
    compile_with([compiler, *flags, *paths])
    return str(program)


SOURCES: Final = (
    "ring_test.c",
    "topics_test.c",
    "group_test.c",
    "mpsc_test.c",
    "frames_test.c",
    "pointer_test.c",
)
WITHOUT_THREADS: Final = ("frames_test.c", "pointer_test.c")
LONG_RUNNING: Final = (*WITHOUT_THREADS, "group_test.c")
"""What takes longer to run without being optimised than it does to compile so."""
LONG: Final = 12
"""How many times the work of the default run the long one does."""


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout
    assert not REPORT.search(done.stdout), done.stdout


Cores = dict[tuple[Build, str], Future[None]]


@pytest.fixture(scope="module")
def cores(
    request: pytest.FixtureRequest, compiler: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cores]:
    """The programs of `test_core` that were selected, at work: one on each processor core."""
    with ThreadPoolExecutor(os.cpu_count()) as workers:

        def start(build: Build, source: str) -> Future[None]:
            where = tmp_path_factory.mktemp(build.name)
            return workers.submit(
                lambda: run_core(compiled(compiler, build, where, source), build.percent)
            )

        wanted: list[dict[str, Any]] = [
            dict(item.callspec.params)
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.function is test_core
        ]
        yield {(each["build"], each["source"]): start(**each) for each in wanted}


@pytest.mark.parametrize(
    ("build", "source"),
    [
        pytest.param(build, source, id=f"{build.name}-{source}")
        for source in SOURCES
        for build in BUILDS
        if build is not THREAD or source not in WITHOUT_THREADS
    ],
)
def test_core(cores: Cores, build: Build, source: str) -> None:
    cores[build, source].result()


@pytest.mark.stress
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_core_for_long(compiler: str, build: Build, source: str, tmp_path: Path) -> None:
    run_core(compiled(compiler, build, tmp_path, source), LONG * build.percent)


def run_core(program: str, percent: int) -> None:
    """Run one of the programs, with so much of its work."""
    command = [program, str(secrets.randbits(32)), str(percent)]
    done = run(command, **OPTIONS)
    if NO_SHADOW in done.stdout:
        done = run(["setarch", "-R", *command], **OPTIONS)
    print(done.stdout)
    check(done)


@pytest.mark.stress
def test_scanner_for_long(compiler: str, tmp_path: Path) -> None:
    program = compiled(compiler, CHECKED, tmp_path, "pointer_test.c")
    end = time.monotonic() + stress_seconds()
    while True:
        done = run([program, str(secrets.randbits(32)), "100"], **OPTIONS)
        print(done.stdout)
        check(done)
        if time.monotonic() >= end:
            break
