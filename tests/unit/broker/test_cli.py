"""The commands: in this process, and as a person runs them."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from ringcast import Config, shm
from ringcast.broker.cli import app
from ringcast.broker.config import KEYS
from ringcast.broker.worker.state import ConnectionState, Phase
from ringcast.shm import mpsc
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, eventually, reader_status

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "ringcast")
INSPECTED = (
    "name epoch state slots capacity_bytes used_bytes occupancy sequence readers uplink connection"
)
READER = "slot pid label policy state cursor lag lag_bytes lost waiting"
SENDER = "lane pid label state sent pending pending_bytes rejected unconfirmed"
CONNECTION = "phase url since_ns rtt_ns received sent reconnects last_error"
HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\r\n"


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a ring of 8 messages and 1024 bytes."""
    with Writer.create(name, slots=8, capacity=1024, max_readers=4) as writer:
        yield writer


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


# ---- the program ---------------------------------------------------------------------------


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
    ],
)
def test_bad_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["inspect", "tail"])
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


# ---- serve ---------------------------------------------------------------------------------


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What `serve` gives to its manager, which does nothing."""
    given: list[Config] = []

    class Idle:
        def __init__(self, config: Config) -> None:
            given.append(config)

        def run(self) -> None:
            """Return at once."""

    monkeypatch.setattr("ringcast.broker.cli.serve.Manager", Idle)
    return given


def test_serve_takes_options(configured: list[Config], tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    lines(
        *("serve", "--name", "md", "--url", "wss://example.org/"),
        *("--initial-message", "one", "--initial-message", "two"),
        *("--header", "X-Key: a:b", "--header", "X-Other:c", "--proxy", "http://localhost:1"),
        *("--ca", str(pem), "--certificate", str(pem), "--private-key", str(pem)),
        *("--no-reconnect", "--ping-interval", "never", "--idle-timeout", "1.5"),
        *("--slots", "1024", "--capacity", "65536", "--max-readers", "3"),
        *("--demote-after", "9", "--evict-after", "never", "--offline-sends", "reject"),
        *("--send-rate", "10", "--drain-timeout", "0"),
    )
    assert configured == [
        Config(
            name="md",
            url="wss://example.org/",
            initial_messages=["one", "two"],
            headers={"X-Key": "a:b", "X-Other": "c"},
            proxy="http://localhost:1",
            ca=pem,
            certificate=pem,
            private_key=pem,
            reconnect=False,
            ping_interval=None,
            idle_timeout=1.5,
            slots=1024,
            capacity=65536,
            max_readers=3,
            demote_after=9,
            evict_after=None,
            offline_sends="reject",
            send_rate=10,
            drain_timeout=0,
        )
    ]


def test_serve_prefers_options_to_the_file(configured: list[Config], tmp_path: Path) -> None:
    file = tmp_path / "md.toml"
    file.write_text("name = 'md'\nurl = 'ws://h'\nreconnect = false\nping_interval = 'never'")
    lines("serve", "--config", str(file))
    lines("serve", "--config", str(file), "--reconnect", "--ping-interval", "7", "--name", "other")
    first, second = configured
    assert (first.name, first.reconnect, first.ping_interval) == ("md", False, None)
    assert (second.name, second.reconnect, second.ping_interval) == ("other", True, 7.0)


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "md"],
        ["--url", "ws://h"],
        ["--name", "md", "--url", "ws://h", "--header", "no colon"],
        ["--name", "md", "--url", "ws://h", "--ping-interval", "often"],
        ["--name", "md", "--url", "ws://h", "--offline-sends", "drop"],
    ],
)
def test_serve_refuses_bad_usage(options: list[str], configured: list[Config]) -> None:
    assert run("serve", *options).exit_code == 2
    assert configured == []


def test_serve_reports_a_bad_value_in_one_line() -> None:
    code, out, err = executed("serve", "--name", "md", "--url", "http://h/")
    assert (code, out) == (1, "")
    assert err == "ringcast: url='http://h/': it must start with ws:// or wss://\n"


def test_options_of_serve_have_the_help_of_their_keys() -> None:
    command: Any = typer.main.get_command(app)
    singular = {"initial_message": "initial_messages", "header": "headers"}
    options = {singular.get(p.name, p.name): p.help for p in command.commands["serve"].params}
    named_otherwise = {"config", "log"}
    assert options.keys() - named_otherwise <= KEYS.keys()
    for name in options.keys() - named_otherwise:
        assert options[name].startswith(KEYS[name].kind.summary)


# ---- demo ----------------------------------------------------------------------------------


def test_demo_reports_what_each_worker_got(name: str) -> None:
    code, out, err = executed(
        *("demo", "--json", "--seconds", "0.5", "--workers", "2", "--rate", "2000", "--name", name)
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["ok"] is True
    assert report["sent"] > 0
    assert [worker["label"] for worker in report["workers"]] == ["worker-0", "worker-1"]
    for worker in report["workers"]:
        assert worker["received"] == worker["delivered"] == report["sent"]
        assert (worker["lost"], worker["whole"]) == (0, True)
        latency = worker["latency_us"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"]


def test_demo_reports_a_missing_capture_in_one_line(tmp_path: Path) -> None:
    code, out, err = executed("demo", "--capture", str(tmp_path / "none.tsv"))
    assert (code, out) == (1, "")
    assert err.startswith("ringcast demo: the server: ")
    assert err.count("\n") == 1


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
        "connection": None,
    }
    assert list(reader) == READER.split()
    assert (reader["pid"], reader["label"], reader["lag"]) == (os.getpid(), "mine", 1)
    assert (reader["policy"], reader["waiting"]) == ("block", False)


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
    )
    monkeypatch.setattr("ringcast.broker.worker.state.connection", lambda _status: connection)
    with Reader.attach(writer.name, label="a" + HOSTILE[:8]):
        text = "\n".join(lines("inspect", writer.name, "--interval", "0.01"))
        as_json = parsed("inspect", writer.name, "--json")["connection"]
    assert connection.url in text
    assert "1.50 ms" in text
    assert "1,234" in text
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


# ---- tail ----------------------------------------------------------------------------------


def test_tail_the_last(writer: Writer) -> None:
    for number in range(5):
        writer.publish(b"text %d" % number, topic=number, kind=shm.Kind.TEXT)
    found = lines("tail", writer.name, "-n", "2")
    assert [line.split()[0] for line in found] == ["3", "4"]
    assert [line.split(" ", 2)[2] for line in found] == ["topic 3 text 3", "topic 4 text 4"]
    assert lines("tail", writer.name, "-n", "0") == []
    assert len(lines("tail", writer.name, "-n", "1000")) == 5
    chosen = lines("tail", writer.name, "-n", "5", "--topic", "1", "--topic", "4")
    assert [line.split()[0] for line in chosen] == ["1", "4"]
    for _ in range(20):
        writer.publish(b"x")
    result = run("tail", writer.name, "-n", "1000", "--json")
    assert [json.loads(line)["sequence"] for line in result.stdout.splitlines()][-1] == 24
    assert result.stderr == ""


def test_tail_steers_no_terminal(writer: Writer) -> None:
    writer.publish(("é" + HOSTILE).encode() + b"\xff", kind=shm.Kind.TEXT)
    writer.publish(HOSTILE.encode(), kind=shm.Kind.EVENT)
    writer.publish(HOSTILE.encode(), kind=77)
    text, event, other, *dump = lines("tail", writer.name, "-n", "3")
    assert text.endswith("topic 0 é\\x1b]0;owned\\x07\\x9b2J\\u202e\\r\\n\\xff")
    assert " EVENT \\x1b]0;owned" in event
    assert other.endswith(f"kind 77, {len(HOSTILE.encode())} bytes")
    assert [line.split()[-1] for line in dump] == [".]0;owned...2J..", "..."]


def test_tail_dumps_binary(writer: Writer) -> None:
    writer.publish(bytes(range(100)))
    head, *dump = lines("tail", writer.name, "-n", "1")
    assert head.endswith("topic 0 binary, 100 bytes")
    assert [line.split()[0] for line in dump] == ["0000", "0010", "0020", "0030", "…"]
    assert dump[-1].split() == ["…", "36", "bytes", "more:", "--json", "has", "them"]


def test_tail_json(writer: Writer) -> None:
    writer.publish(HOSTILE.encode(), topic=7, kind=shm.Kind.TEXT)
    writer.publish(b"\xff", kind=shm.Kind.TEXT)
    writer.publish(b"\x00", kind=shm.Kind.BINARY)
    writer.publish(b"{}", kind=shm.Kind.EVENT)
    writer.publish(b"", kind=77)
    records = [json.loads(line) for line in lines("tail", writer.name, "-n", "5", "--json")]
    assert all(record.pop("time_ns") > 1.7e18 for record in records)
    common = {"topic": 0, "epoch": 1, "gap": 0}
    assert records == [
        {"sequence": 0, "kind": "text", **common, "topic": 7, "text": HOSTILE},
        {"sequence": 1, "kind": "text", **common, "base64": base64.b64encode(b"\xff").decode()},
        {"sequence": 2, "kind": "binary", **common, "base64": base64.b64encode(b"\0").decode()},
        {"sequence": 3, "kind": "event", **common, "text": "{}"},
        {"sequence": 4, "kind": 77, **common, "base64": ""},
    ]


def test_tail_follows_until_the_ring_ends(writer: Writer) -> None:
    writer.publish(b"before", kind=shm.Kind.TEXT)
    with started("tail", writer.name) as process:
        attached(writer.name, process)
        reader = reader_status(writer.name)
        assert reader is not None
        assert (reader.policy, reader.gating) == ("lossy", False)
        assert process.stdout is not None
        for number in range(3):  # each is printed before the next is published
            writer.publish(b"text %d" % number, kind=shm.Kind.TEXT)
            assert process.stdout.readline().endswith(f" text {number}\n")
        writer.close()
        code, out, err = finished(process)
    assert (code, out) == (0, "")
    assert err.startswith(f"ringcast: ring {writer.name!r} has ended")


def test_tail_the_last_and_follow(writer: Writer) -> None:
    writer.publish_many([b"0", b"1", b"2"], kind=shm.Kind.TEXT)
    with started("tail", writer.name, "-n", "1", "--follow") as process:
        attached(writer.name, process)
        writer.publish(b"3", kind=shm.Kind.TEXT)
        writer.close()
        code, out, _ = finished(process)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["2", "3"]


def test_tail_reports_what_it_missed(writer: Writer) -> None:
    with started("tail", writer.name, "--json") as process:
        attached(writer.name, process)
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        for _ in range(100):
            writer.publish(b"x")
        process.send_signal(signal.SIGCONT)
        writer.publish(b"x")
        writer.close()
        code, out, err = finished(process)
    assert code == 0
    missed, _ended = err.splitlines()
    count = int(missed.removeprefix("ringcast: missed ").split()[0])
    assert " from 0 on" in missed
    assert count > 0
    assert len(out.splitlines()) == 101 - count


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """Processes started here heed SIGINT, also where a shell ignores it for what it runs in the
    background: what is ignored is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_sigint")
def test_ctrl_c_is_quiet(writer: Writer) -> None:
    with started("tail", writer.name) as process:
        attached(writer.name, process)
        process.send_signal(signal.SIGINT)
        assert finished(process) == (130, "", "")


@pytest.mark.parametrize("command", ["tail", "inspect"])
def test_a_closed_pipe_is_quiet(command: str, writer: Writer) -> None:
    watch = ["--watch", "--interval", "0.01"] if command == "inspect" else ["--follow", "-n", "1"]
    writer.publish(b"x")
    with started(command, writer.name, *watch, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()

        def ended() -> bool:
            writer.publish(b"x")
            return process.poll() is not None

        eventually(ended, "it ends")
        printed = process.stderr.read().splitlines()
        assert [line for line in printed if not line.startswith("ringcast: missed ")] == []


# ---- clean ---------------------------------------------------------------------------------


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
