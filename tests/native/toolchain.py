"""Compilers, and the builds that native code is tested in: optimised, and under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

DEADLINE: Final = 300.0
"""Seconds for one compilation, or for all cases of one native test program."""

OPTIONS: Final = {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
REPORT: Final = re.compile(r"Sanitizer|runtime error:")
NO_SHADOW: Final = "unexpected memory mapping"
"""What ThreadSanitizer says where the kernel's randomisation leaves no place for its shadow."""

WARNINGS: Final = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
STANDARDS: Final = {".c": "-std=c11", ".cpp": "-std=c++17"}
COMPILERS: Final = {"gcc": "g++", "clang": "clang++"}
"""Each C compiler, and the C++ compiler that goes with it."""


@dataclass(frozen=True)
class Build:
    """Compiler flags, and how much of the work to do: sanitizers are slow."""

    name: str
    flags: tuple[str, ...]
    percent: int


PLAIN: Final = Build("plain", ("-O2",), 8)
THREAD: Final = Build("thread", ("-O1", "-fsanitize=thread"), 2)
CHECKED: Final = Build(
    "checked",
    (
        *("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        "-fno-omit-frame-pointer",
    ),
    3,
)
"""Under AddressSanitizer and UBSan; ThreadSanitizer goes with neither. Not optimised, for most
programs take longer to compile than to run."""
BUILDS: Final = [PLAIN, THREAD, CHECKED]


def missing(what: str) -> None:
    """Skip the test, or in CI, where nothing may be missing, fail it."""
    message = f"there is no {what}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def find(*programs: str) -> str:
    """Where the first of these programs is that there is; without any the test is skipped."""
    found = next(filter(None, map(shutil.which, programs)), None)
    if found is None:
        missing(programs[0])
    return str(found)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with standard error in its output."""
    return subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def compile_with(command: list[str]) -> None:
    """Run a compiler, which has nothing to say."""
    done = run(command)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


class Toolchain:
    """Compiles each source once for each compiler and build.

    Args:
        folder: where objects and programs are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shadow: list[str] | None = None

    def object(self, source: Path, compiler: str, build: Build, *flags: str) -> Path:
        """The object file of a C or C++ source; `compiler` is the C compiler's name."""
        driver = find(compiler if source.suffix == ".c" else COMPILERS[compiler])
        folder = self._folder / compiler / build.name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{source.name}.o"
        if not target.exists():
            standard = STANDARDS[source.suffix]
            options = [standard, *WARNINGS, "-g1", "-pthread", *build.flags, *flags]
            compile_with([driver, *options, "-c", str(source), "-o", str(target)])
        return target

    def link(self, objects: list[Path], compiler: str, build: Build, *flags: str) -> Path:
        """A program, named as the first object is."""
        cpp = any(".cpp" in path.name for path in objects)
        driver = find(COMPILERS[compiler] if cpp else compiler)
        program = objects[0].with_suffix(".program")
        if not program.exists():
            options = [*build.flags, "-pthread", *flags]
            compile_with([driver, *map(str, objects), *options, "-o", str(program)])
        return program

    def command(self, program: Path, build: Build) -> list[str]:
        """How to start a program of this build: ThreadSanitizer may need addresses in order."""
        if build is not THREAD:
            return [str(program)]
        if self._shadow is None:
            crowded = NO_SHADOW in run([str(program)], **OPTIONS).stdout
            self._shadow = ["setarch", "-R"] if crowded else []
        return [*self._shadow, str(program)]
