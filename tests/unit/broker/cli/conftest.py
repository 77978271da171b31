"""What the tests of the commands share: they run in this process, or as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ringcast import shm
from ringcast.broker.cli import app
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, eventually, reader_status

ROOT = Path(__file__).parents[4]
COMMAND = (sys.executable, "-m", "ringcast")
HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\r\n"


@pytest.fixture
def orphan(name: str) -> Iterator[str]:
    """A ring whose writer is gone; removed after if the test did not."""
    writer = Writer.create(name, slots=8, capacity=1024, max_readers=4)
    writer.publish(b"x")
    del writer
    yield name
    if name in [entry.name for entry in shm.list_rings()]:
        shm.unlink(name)


def run(*arguments: str) -> Result:
    """Run in this process; a test that expects a failure looks at the exit code."""
    return CliRunner().invoke(app, list(arguments), prog_name="ringcast")


def lines(*arguments: str) -> list[str]:
    """What it printed, which must have gone well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.stdout.splitlines()]


def parsed(*arguments: str) -> Any:
    """The one line of JSON that it printed."""
    (line,) = lines(*arguments)
    return json.loads(line)


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`ringcast ...` in a process of its own, killed at the latest when the block ends."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, text=True, **(pipes | options)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def executed(*arguments: str) -> tuple[int, str, str]:
    """Run in a process of its own."""
    with started(*arguments) as process:
        return finished(process)


def attached(name: str, process: subprocess.Popen[str]) -> None:
    """Return when the process has attached to the ring."""

    def there() -> bool:
        assert process.poll() is None, "it ended before it attached"
        reader = reader_status(name)
        return reader is not None and reader.pid == process.pid and reader.state == "active"

    eventually(there, "it attaches")


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let `shm.list_rings` show these alone: other rings of this machine are not the test's."""
    every = shm.list_rings
    monkeypatch.setattr(shm, "list_rings", lambda: [e for e in every() if e.name in names])
