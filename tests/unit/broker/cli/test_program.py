"""The program as a whole: usage, errors, completion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE
from tests.unit.broker.cli.conftest import executed, finished, lines, run, started


def test_help_and_version() -> None:
    assert "\n".join(lines("--help")).index("ls") > 0
    assert lines("--version")[0].startswith("ringcast ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["inspect"],
        ["inspect", "NOT A NAME"],
        ["tail", "NOT A NAME"],
        ["inspect", "x", "--interval", "0"],
        ["tail", "x", "-n", "-1"],
        ["tail", "x", "--no-follow"],
        ["tail", "x", "--others"],
        ["topics"],
        ["topics", "NOT A NAME"],
        ["topics", "x", "--interval", "0"],
        ["group", "NOT A NAME"],
        ["send", "NOT A NAME", "text"],
        ["gateway", "x"],
        ["gateway", "NOT A NAME", "--listen", "127.0.0.1:0"],
        ["gateway", "x", "--queue", "NOT A LABEL"],
    ],
)
def test_bad_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "command", ["tail", *(pytest.param(c, marks=pytest.mark.stress) for c in ("inspect", "topics"))]
)
def test_an_error_is_one_line(command: str, name: str) -> None:
    code, out, err = executed(command, name)
    assert (code, out) == (1, "")
    assert err.startswith(f"ringcast: there is no ring {name!r}")
    assert err.count("\n") == 1


def test_names_complete(writer: Writer) -> None:
    environment = os.environ | {
        "_RINGCAST_COMPLETE": "complete_bash",
        "COMP_WORDS": f"ringcast inspect {writer.name[:-1]}",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": f"ringcast inspect {writer.name[:-1]}",
    }
    with started(env=environment) as process:
        code, out, _ = finished(process)
    assert code == 0
    assert writer.name in out.split()


def test_bench_names_the_extra_if_a_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ringcast.benchmarks.report", None)
    result = run("bench")
    assert result.exit_code == 1
    assert result.stderr.startswith("ringcast bench: ")
    assert "is not installed: pip install 'ringcast[bench]'" in result.stderr


def test_the_commands_alone_load_no_benchmark() -> None:
    code = (
        "import sys, ringcast.broker.cli\n"
        "print([name for name in sys.modules if name.startswith('ringcast.benchmarks')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert done.stdout == "[]\n"
