"""Who is connected to a gateway, as operators see it: `inspect`, `ls` and `clean`."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.broker.worker import wire
from ringcast.shm.broadcast import Writer
from ringcast.shm.rosters import read_rosters
from tests.conftest import DEADLINE, eventually, leftovers
from tests.unit.broker.cli.conftest import lines, only, parsed

from .gateway import Gateway, gateway_of
from .manager import quick, running

AS_RECORDS: Final = "Sec-WebSocket-Protocol: ringcast.1\r\n"
UNSEEN: Final = "that-nobody-is-to-see"


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """A ring without a manager that is full soon."""
    with Writer.create(name, slots=64, capacity=1 << 16, max_readers=8) as writer:
        yield writer


@pytest.fixture
def gateway(writer: Writer, tmp_path: Path) -> Iterator[Gateway]:
    """It reads that ring, and fills a queue."""
    with gateway_of(writer.name, tmp_path, "--queue=logs") as gateway:
        gateway.attached()
        yield gateway


@contextlib.contextmanager
def killed(name: str, folder: Path) -> Iterator[Gateway]:
    """A gateway that is killed at the end of the block."""
    gateway = Gateway(name, folder)
    try:
        gateway.attached()
        yield gateway
    finally:
        gateway.kill()
        assert gateway.process.stderr is not None
        gateway.process.stderr.close()


def clients_of(name: str, count: int) -> list[dict[str, Any]]:
    """The clients of the one gateway that `inspect` shows, as soon as there are so many."""

    def look() -> dict[str, Any] | None:
        for gateway in parsed("inspect", name, "--json")["gateways"]:
            if gateway["client_count"] == count:
                found: dict[str, Any] = gateway
                return found
        return None

    clients: list[dict[str, Any]] = eventually(look, f"{count} clients are listed")["clients"]
    return clients


def test_clients_of_both_kinds_of_sockets(
    gateway: Gateway, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, writer.name)
    assert clients_of(writer.name, 0) == []
    target = f"/?topics=a,b*&policy=block&label=mine&token={UNSEEN}"
    with gateway.client(target, AS_RECORDS), gateway.connect_tcp() as other:
        other.shake_hands()
        other.is_served()
        writer.publish(b"12345678", kind=shm.Kind.TEXT)
        assert other.message() == "12345678"
        unix, tcp = eventually(
            lambda: (found := clients_of(writer.name, 2))[1]["messages"] and found,
            "the list is up to date",
        )
        assert tcp["address"] == "{}:{}".format(*other.sock.getsockname())
        assert (tcp["pid"], tcp["user"], tcp["label"], tcp["topics"]) == (None,) * 4
        assert (tcp["records"], tcp["policy"], tcp["waiting"]) == (False, "lossy", False)
        assert (tcp["next"], tcp["lag"], tcp["messages"], tcp["lost"]) == (1, 0, 1, 0)
        assert tcp["bytes"] >= len(b"12345678")
        assert (unix["address"], unix["pid"]) == (str(gateway.path), os.getpid())
        assert (unix["user"], unix["label"]) == (getpass.getuser(), "mine")
        assert (unix["records"], unix["policy"], unix["topics"]) == (True, "block", 2)
        assert (unix["messages"], unix["lag"], unix["lost"]) == (0, 0, 0)
        shown = lines("inspect", writer.name, "--interval", "0.01")
        assert [line.split()[0] for line in shown if tcp["address"] in line] == ["1"]
        assert [line for line in shown if str(gateway.path) in line and "mine" in line]
        lossy = next(line.split() for line in shown if line.split()[2:4] == ["gateway", "lossy"])
        assert lossy[6] == "-"  # it carries the topics that clients want, and reads nothing
        assert parsed("ls", "--json")[0]["clients"] == 2
        head, row = lines("ls")
        assert head.split()[-2:] == ["clients", "queues"]
        assert row.split()[-2:] == ["2", "logs"]
        assert all(UNSEEN not in found.data.decode() for found in read_rosters(writer.name))
    assert clients_of(writer.name, 0) == []


def test_a_client_that_is_slow(gateway: Gateway, writer: Writer) -> None:
    """Its lag, and what it has lost."""
    with gateway.client(more=AS_RECORDS):

        def behind() -> dict[str, Any] | None:
            for _ in range(64):
                writer.publish(bytes(1000), timeout=DEADLINE)
            (client,) = clients_of(writer.name, 1)
            return client if client["waiting"] and client["lost"] else None

        client = eventually(behind, "it has lost messages")
    assert 0 < client["lag"] <= 64
    assert client["messages"] > 0


def test_members_of_a_group(gateway: Gateway, writer: Writer) -> None:
    """What a member has in hand, and what it has been given."""
    topic = writer.topic("a")
    with gateway.client("/?group=g&topics=a,b&in_flight=3&label=mine", AS_RECORDS) as client:
        for _ in range(5):
            writer.publish(b"x", topic=topic)

        def given(messages: int) -> dict[str, Any]:
            def look() -> dict[str, Any] | None:
                (row,) = clients_of(writer.name, 1)
                return row if row["messages"] == messages else None

            row: dict[str, Any] = eventually(look, f"{messages} messages were given to it")
            return row

        row = given(3)
        assert (row["policy"], row["topics"], row["label"]) == ("group", 2, "mine")
        assert (row["lag"], row["next"], row["lost"]) == (3, 0, 0)
        done = (wire.Record(wire.RecordType.DONE, sequence=sequence) for sequence in (0, 1, 2))
        client.send(b"".join(map(wire.encode, done)))
        assert given(5)["lag"] == 2


def test_queues(gateway: Gateway, writer: Writer) -> None:
    del gateway

    def filled() -> dict[str, Any] | None:
        writer.publish(b"x", timeout=DEADLINE)
        (queue,) = parsed("inspect", writer.name, "--json")["queues"]
        return queue if queue["next"] else None

    queue = eventually(filled, "something is in the queue")
    assert (queue["label"], queue["filled"], queue["read"]) == ("logs", True, False)
    assert (queue["depth"], queue["message_size"], queue["lost"]) == (10, 8192, 0)
    assert queue["lag"] <= writer.sequence
    shown = lines("inspect", writer.name, "--interval", "0.01")
    assert [line.split()[2] for line in shown if line.startswith("logs ")] == ["active"]


def test_a_gateway_that_was_killed(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, writer.name)
    with killed(writer.name, tmp_path) as gateway, gateway.client():
        clients_of(writer.name, 1)
    assert parsed("inspect", writer.name, "--json")["gateways"] == []
    assert parsed("ls", "--json")[0]["clients"] is None
    file = f"rc.{writer.name}.gw-1"
    expected = {"name": file, "state": "dead", "reason": "its gateway was killed"}
    (_, would) = parsed("clean", "--dry-run", "--json")
    assert would == expected | {"outcome": "removable"}
    assert file in leftovers(writer.name)
    assert lines("clean") == [
        f"left {writer.name} (open): it has a living writer: stop that process first",
        f"removed {file} (dead): its gateway was killed",
    ]
    assert file not in leftovers(writer.name)


def test_a_hold_that_is_too_long_is_warned_of(name: str, tmp_path: Path) -> None:
    config = quick(name, "ws://127.0.0.1:1/", demote_after=1.5)
    with running(config), gateway_of(name, tmp_path, "--hold=1.5") as gateway:
        gateway.attached()
        eventually(lambda: read_rosters(name), "it serves the ring")
        log = "".join(gateway.log)
    assert "--hold 1.5 is not below the manager's demote_after, 1.5" in log
