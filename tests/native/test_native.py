"""The C core alone, in C, under the compiler's sanitizers: see the three *_test.c."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from ringcast import shm
from ringcast.broker import connection

HERE: Final = Path(__file__).parent
INCLUDES: Final = [Path(connection.__file__).parent, Path(shm.__file__).parent / "native"]
DEADLINE: Final = 300.0
"""Seconds for all cases of one build. Each case has its own, far shorter one."""

OPTIONS: Final = {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
REPORT: Final = re.compile(r"Sanitizer|runtime error:")
NO_SHADOW: Final = "unexpected memory mapping"
"""What ThreadSanitizer says where the kernel's randomisation leaves no place for its shadow."""


@dataclass(frozen=True)
class Build:
    """Compiler flags, and how much of the work to do: sanitizers are slow."""

    name: str
    flags: tuple[str, ...]
    percent: int


BUILDS: Final = [
    Build("plain", ("-O2",), 50),
    Build("thread", ("-O1", "-fsanitize=thread"), 10),
    Build("address", ("-O1", "-fsanitize=address", "-fno-omit-frame-pointer"), 20),
    Build("undefined", ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"), 20),
]


@pytest.fixture
def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        message = "there is no C compiler"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def compiled(compiler: str, build: Build, where: Path, source: str) -> str:
    program = where / source.removesuffix(".c")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-pthread"]
    paths = [*(f"-I{folder}" for folder in INCLUDES), str(HERE / source), "-o", str(program)]
    done = run([compiler, *flags, *build.flags, *paths])
    assert done.returncode == 0, done.stdout
    return str(program)


@pytest.mark.parametrize("source", ["ring_test.c", "mpsc_test.c", "frames_test.c"])
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_core(compiler: str, build: Build, source: str, tmp_path: Path) -> None:
    program = compiled(compiler, build, tmp_path, source)
    command = [program, str(secrets.randbits(32)), str(build.percent)]
    done = run(command, **OPTIONS)
    if NO_SHADOW in done.stdout:
        done = run(["setarch", "-R", *command], **OPTIONS)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert not REPORT.search(done.stdout), done.stdout
