"""The commands `ls` and `inspect`."""

from __future__ import annotations

import json
import os

import pytest

from ringcast import shm
from ringcast.broker.worker.state import ConnectionState, Phase
from ringcast.shm import mpsc
from ringcast.shm.broadcast import Reader, Writer
from tests.unit.broker.cli.conftest import HOSTILE, finished, lines, only, parsed, run, started

INSPECTED = (
    "name epoch state slots capacity_bytes used_bytes occupancy sequence readers uplink groups"
    " connection gateways queues"
)
READER = "slot pid label policy state cursor lag lag_bytes lost skipped waiting topics group"
SENDER = "lane pid label state sent pending pending_bytes rejected unconfirmed"
CONNECTION = "phase url since_ns rtt_ns received sent reconnects last_error answers_dropped"

# ---- ls ------------------------------------------------------------------------------------


def test_ls(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, writer.name)
    with Reader.attach(writer.name):
        writer.publish(b"12345678")
        (ring,) = parsed("ls", "--json")
        (size,) = {entry.size_bytes for entry in shm.list_rings()}
        assert ring == {
            "name": writer.name,
            "state": "open",
            "size_bytes": size,
            "sequence": 1,
            "readers": 1,
            "occupancy": 0.125,
            "phase": None,
            "detail": "",
            "queues": [],
            "clients": None,
        }
        head, row = lines("ls")
        assert head.split()[:2] == ["name", "state"]
        assert row.split()[:2] == [writer.name, "open"]
        assert "\x1b" not in row


def test_ls_of_stale_and_of_none(orphan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, orphan)
    assert parsed("ls", "--json")[0]["state"] == "orphaned"
    assert "ringcast clean" in run("ls").stderr
    only(monkeypatch)
    assert parsed("ls", "--json") == []
    assert "there is no ring" in run("ls").stderr


# ---- inspect -------------------------------------------------------------------------------


def test_inspect_json(writer: Writer) -> None:
    with Reader.attach(writer.name, label="mine"):
        writer.publish(b"12345678")
        ring = parsed("inspect", writer.name, "--json")
    assert list(ring) == INSPECTED.split()
    (reader,) = ring.pop("readers")
    assert ring == {
        "name": writer.name,
        "epoch": 1,
        "state": "open",
        "slots": 8,
        "capacity_bytes": 1024,
        "used_bytes": 8,
        "occupancy": 0.125,
        "sequence": 1,
        "uplink": None,
        "groups": [],
        "connection": None,
        "gateways": [],
        "queues": [],
    }
    assert list(reader) == READER.split()
    assert (reader["pid"], reader["label"], reader["lag"]) == (os.getpid(), "mine", 1)
    assert (reader["policy"], reader["waiting"]) == ("block", False)
    assert (reader["skipped"], reader["topics"], reader["group"]) == (0, None, None)


def test_inspect_shows_what_readers_want(writer: Writer) -> None:
    many = [f"topic-{number}" for number in range(30)]
    with (
        Reader.attach(writer.name, label="all"),
        Reader.attach(writer.name, label="some", topics=["a", "b*"]) as some,
        Reader.attach(writer.name, label="many", topics=many, others=True),
        Reader.attach(writer.name, label="nothing", topics=[]),
    ):
        writer.publish(b"x", topic=writer.topic("a"))
        writer.publish(b"x", topic=writer.topic("c"))
        writer.publish(b"x")
        assert len(some.read_available()) == 1
        assert some.read(timeout=0) is None  # now its cursor is stored
        readers = parsed("inspect", writer.name, "--json")["readers"]
        shown = lines("inspect", writer.name, "--interval", "0.01")
    assert [reader["topics"] for reader in readers] == [None, ["a", "b*"], many, []]
    assert readers[1]["skipped"] == 2
    wants = next(n for n, line in enumerate(shown) if line.split()[-2:] == ["others", "topics"])
    rows = [line.split(maxsplit=5) for line in shown[wants + 1 : wants + 4]]
    assert rows[0] == ["1", "some", "1", "2", "no", "a, b*"]
    assert rows[1][4] == "yes"
    assert rows[1][5].endswith("topic-19, and 10 more")
    assert rows[2] == ["3", "nothing", "0", "0", "no", "none"]


def test_a_reader_that_reads_nothing_is_not_behind(writer: Writer) -> None:
    """So carries a gateway its clients' wishes. A lossless one would hold the ring all the same."""
    with (
        Reader.attach(writer.name, label="wishes", policy="lossy", topics=[]),
        Reader.attach(writer.name, label="answers", topics=[]),
    ):
        writer.publish(b"x")
        shown = lines("inspect", writer.name, "--interval", "0.01")
    head = next(n for n, line in enumerate(shown) if line.startswith("slot "))
    lag = shown[head].split().index("lag")
    rows = {line.split()[2]: line.split()[lag] for line in shown[head + 1 : head + 3]}
    assert rows == {"wishes": "-", "answers": "1"}


def test_inspect_for_people(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = ConnectionState(
        phase=Phase.OPEN,
        url="wss://example.org/" + 30 * "long/",
        since_ns=1_700_000_000_000_000_000,
        epoch=1,
        rtt_ns=1_500_000,
        received=1234,
        sent=5,
        reconnects=6,
        last_error="bad" + HOSTILE,
        request_id="/id",
        answers_dropped=7,
    )
    monkeypatch.setattr("ringcast.broker.worker.state.connection", lambda _status: connection)
    with Reader.attach(writer.name, label="a" + HOSTILE[:8]):
        text = "\n".join(lines("inspect", writer.name, "--interval", "0.01"))
        as_json = parsed("inspect", writer.name, "--json")["connection"]
    assert connection.url in text
    assert "1.50 ms" in text
    assert "1,234" in text
    assert any(line.split() == ["answers", "dropped", "7"] for line in text.splitlines())
    assert "a\\x1b]0;own" in text
    assert "bad\\x1b]0;owned\\x07\\x9b2J\\u202e\\r\\n" in text
    assert "\x1b" not in text
    assert list(as_json) == CONNECTION.split()
    assert as_json["last_error"] == connection.last_error
    assert (as_json["phase"], as_json["rtt_ns"]) == ("open", 1_500_000)


def test_inspect_shows_senders(writer: Writer) -> None:
    with (
        mpsc.Receiver.create(writer.name, auto_ack=False) as receiver,
        mpsc.Sender.attach(writer.name, label="mine") as sender,
    ):
        sender.send(b"12345678")
        uplink = parsed("inspect", writer.name, "--json")["uplink"]
        text = "\n".join(lines("inspect", writer.name, "--interval", "0.01"))
        assert receiver.read(timeout=0) is not None
    (found,) = uplink.pop("senders")
    assert uplink.keys() == {"tickets", "pending"}
    assert uplink["pending"] == 1
    assert list(found) == SENDER.split()
    assert (found["lane"], found["pid"], found["label"]) == (0, os.getpid(), "mine")
    assert (found["sent"], found["pending"], found["state"]) == (1, 1, "active")
    assert "unconfirmed" in text
    assert "mine" in text


@pytest.mark.parametrize("as_json", [True, False])
def test_watch_ends_with_the_ring(as_json: bool, writer: Writer) -> None:
    options = ["--json"] if as_json else []
    with started("inspect", writer.name, "--watch", "--interval", "0.01", *options) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        writer.close()
        writer.unlink()
        code, out, err = finished(process)
    assert code == 0
    assert err == f"ringcast: ring {writer.name!r} is gone\n"
    if as_json:
        shown = [json.loads(line) for line in [first, *out.splitlines()]]
        assert all(list(ring) == INSPECTED.split() for ring in shown)
    else:
        assert first.split() == ["ring", writer.name]


def test_watch_shows_rates(writer: Writer) -> None:
    with started("inspect", writer.name, "--watch", "--interval", "0.01") as process:
        assert process.stdout is not None
        process.stdout.readline()
        rates = (line.split() for line in process.stdout if line.startswith("sequence"))
        while next(rates)[2:] in ([], ["0/s"]):  # the first look has no rate
            writer.publish(b"x")
