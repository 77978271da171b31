"""The command `clean`."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import leftovers
from tests.unit.broker.cli.conftest import executed, finished, lines, only, parsed, run, started


def test_clean_removes_what_nobody_writes(orphan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"{orphan}-open"
    with Writer.create(other, slots=8, capacity=1024):
        only(monkeypatch, orphan, other)
        would = parsed("clean", "--dry-run", "--json")
        assert [(ring["name"], ring["outcome"]) for ring in would] == [
            (orphan, "removable"),
            (other, "left"),
        ]
        listing = lines("clean")
        assert listing[1].split()[:2] == [orphan, "orphaned"]
        assert listing[2] == f"removed {orphan} (orphaned)"
        assert listing[3].startswith(f"left {other} (open): it has a living writer")
        assert [entry.name for entry in shm.list_rings()] == [other]
        assert "nothing to remove" in run("clean").stderr


def test_clean_by_name(writer: Writer, name: str) -> None:
    result = run("clean", name)
    assert result.exit_code == 1
    assert "living writer" in result.stdout
    writer.close()
    assert parsed("clean", name, "--json") == [
        {"name": name, "state": "closed", "outcome": "removed", "reason": None}
    ]
    result = run("clean", name)
    assert result.exit_code == 1
    assert "there is no ring" in result.stdout


def test_clean_of_what_is_no_ring(name: str) -> None:
    for segment in "dc":
        Path(f"/dev/shm/rc.{name}.{segment}").write_bytes(b"rubbish" * 1000)
    assert parsed("clean", name, "--json")[0]["outcome"] == "removed"


def test_clean_leaves_nothing(orphan: str) -> None:
    parts = {entry.rpartition(".")[2] for entry in leftovers(orphan)}
    assert {"c", "d", "r0", "space", "wish"} <= parts
    assert lines("clean", orphan) == [f"removed {orphan} (orphaned)"]
    assert leftovers(orphan) == []


def test_clean_removes_an_uplink_without_a_ring(name: str) -> None:
    Receiver.create(name, max_senders=1).abandon()
    assert lines("clean", name) == [f"removed {name} (orphaned)"]
    assert leftovers(name) == []


def test_clean_asks_nobody_where_nobody_can_answer(orphan: str) -> None:
    with Reader.attach(orphan, start="oldest") as reader:
        code, out, _ = executed("clean", orphan)
        assert code == 1
        assert "living readers are attached to it (1)" in out
        assert parsed("clean", orphan, "--dry-run", "--json")[0]["outcome"] == "removable"
        assert lines("clean", orphan, "--yes") == [f"removed {orphan} (orphaned)"]
        message = reader.read(timeout=0)
        assert message is not None
        assert bytes(message) == b"x"


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0), ("\x04", 130)])
def test_clean_asks_before_it_takes_a_ring_from_readers(
    answer: str, code: int, orphan: str
) -> None:
    ours, theirs = pty.openpty()
    try:
        with Reader.attach(orphan), started("clean", orphan, stdin=theirs) as process:
            os.write(ours, answer.encode())  # "\x04": Ctrl-D
            found, out, err = finished(process)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (found, err) == (code, "")
    assert "Remove it?" in out
    assert (orphan in [entry.name for entry in shm.list_rings()]) == (code != 0)
