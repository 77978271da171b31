"""The command `tail`."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator

import pytest

from ringcast import shm
from ringcast.broker.topics.states import TopicState
from ringcast.shm.broadcast import Writer
from tests.conftest import eventually, reader_status
from tests.unit.broker.cli.conftest import HOSTILE, attached, finished, lines, run, started


def test_tail_the_last(writer: Writer) -> None:
    for number in range(5):
        writer.publish(b"text %d" % number, topic=number, kind=shm.Kind.TEXT)
    found = lines("tail", writer.name, "-n", "2")
    assert [line.split()[0] for line in found] == ["3", "4"]
    assert [line.split(" ", 2)[2] for line in found] == ["topic 3 text 3", "topic 4 text 4"]
    assert lines("tail", writer.name, "-n", "0") == []
    assert len(lines("tail", writer.name, "-n", "1000")) == 5
    for _ in range(20):
        writer.publish(b"x")
    result = run("tail", writer.name, "-n", "1000", "--json")
    assert [json.loads(line)["sequence"] for line in result.stdout.splitlines()][-1] == 24
    assert result.stderr == ""


def test_tail_of_topics(writer: Writer) -> None:
    for name in ("a", "b1", "b2", "c"):
        writer.publish(name.encode(), topic=writer.topic(name), kind=shm.Kind.TEXT)
    writer.publish(b"of no topic", kind=shm.Kind.TEXT)
    writer.publish(b"{}", kind=shm.Kind.EVENT)
    chosen = lines("tail", writer.name, "-n", "8", "--topic", "a", "--topic", "b*")
    assert [line.split(" ", 2)[2] for line in chosen] == [
        "topic a a",
        "topic b1 b1",
        "topic b2 b2",
    ]
    chosen = lines("tail", writer.name, "-n", "3", "--topic", "c", "--others")
    assert [line.split(" ", 2)[2] for line in chosen] == ["topic c c", "topic 0 of no topic"]
    (record,) = map(json.loads, lines("tail", writer.name, "-n", "8", "--topic", "c", "--json"))
    assert (record["topic"], record["topic_name"], record["text"]) == (4, "c", "c")


def test_tail_follows_a_topic(writer: Writer) -> None:
    with started("tail", writer.name, "--topic", "a*") as process:
        attached(writer.name, process)
        assert process.stdout is not None
        for number in range(3):
            writer.publish(b"unwanted", topic=writer.topic("b"), kind=shm.Kind.TEXT)
            topic = writer.topic(f"a{number}")
            writer.publish(b"text %d" % number, topic=topic, kind=shm.Kind.TEXT)
            assert process.stdout.readline().endswith(f" topic a{number} text {number}\n")
        writer.close()
        code, out, err = finished(process)
    assert (code, out) == (0, "")
    assert err.startswith(f"ringcast: ring {writer.name!r} has ended")


def test_tail_reports_a_refusal(writer: Writer) -> None:
    writer.answers_wishes = True
    with started("tail", writer.name, "--topic", "a", "--topic", "b") as process:
        (wisher,) = eventually(writer.wishers, "it wishes for topics")
        writer.set_topic_state(writer.topic("a"), TopicState.SUBSCRIBED)
        writer.set_topic_state(writer.topic("b"), TopicState.REFUSED, "not that one")
        writer.answer_wishes(wisher.slot, wisher.version, "")
        assert process.stderr is not None
        assert process.stderr.readline() == "ringcast: 'b' refused: not that one\n"
        writer.publish(b"of a", topic=writer.topic("a"), kind=shm.Kind.TEXT)
        assert process.stdout is not None
        assert process.stdout.readline().endswith(" topic a of a\n")
        writer.close()
        assert finished(process)[0] == 0


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
    common = {"topic": 0, "topic_name": None, "epoch": 1, "gap": 0}
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
