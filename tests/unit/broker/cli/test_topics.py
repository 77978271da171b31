"""The command `topics`."""

from __future__ import annotations

import json
import time

import pytest

from ringcast.broker.topics.states import TopicState
from ringcast.shm.broadcast import Reader, Writer
from tests.unit.broker.cli.conftest import HOSTILE, finished, lines, parsed, run, started

TOPIC = "topic name state reason wanted_by rate messages bytes last_sequence last_time_ns"


@pytest.fixture
def table(writer: Writer) -> Writer:
    """A ring with three topics."""
    writer.publish(b"12345678", topic=writer.topic("a"))
    writer.publish(b"1234", topic=writer.topic("a"))
    writer.set_topic_state(writer.topic("a"), TopicState.SUBSCRIBED)
    writer.set_topic_state(writer.topic("b"), TopicState.REFUSED, "no such pair")
    writer.publish(b"x", topic=writer.topic("c"))
    return writer


def test_topics_json(table: Writer) -> None:
    before = time.time_ns()
    with Reader.attach(table.name, topics=["a", "b"]), Reader.attach(table.name, topics=["*"]):
        found = parsed("topics", table.name, "--json", "--interval", "0.01")
    assert all(list(topic) == TOPIC.split() for topic in found)
    times = [topic.pop("last_time_ns") for topic in found]
    assert times[1] is None
    assert before - 60 * 10**9 < times[0] <= times[2] < before
    a, b, c = found
    assert a == {
        "topic": 1,
        "name": "a",
        "state": "subscribed",
        "reason": "",
        "wanted_by": 2,
        "rate": 0.0,
        "messages": 2,
        "bytes": 12,
        "last_sequence": 1,
    }
    assert (b["state"], b["reason"], b["last_sequence"]) == ("refused", "no such pair", None)
    assert (c["state"], c["wanted_by"]) == ("none", 1)


def test_topics_for_people(table: Writer) -> None:
    table.set_topic_state(table.topic("a"), TopicState.PENDING)
    table.set_topic_state(table.topic("d"), TopicState.WANTED)
    table.set_topic_state(table.topic("e"), 77)
    head, *rows = lines("topics", table.name, "--interval", "0.01")
    assert head.split()[:5] == ["id", "name", "state", "wanted", "by"]
    a, b, c, d, e = (row.split() for row in rows)
    assert a[:8] == ["1", "a", "pending", "0", "0/s", "2", "12", "B"]
    assert a[-1] == "ago"
    assert b[:3] == ["2", "b", "refused:"]
    assert b[3:6] == ["no", "such", "pair"]
    assert c[2] == "0"  # nobody asks for it
    assert d[2] == "wanted"
    assert e[2] == "77"


def test_topics_steer_no_terminal(writer: Writer) -> None:
    topic = writer.topic(HOSTILE)
    writer.set_topic_state(topic, TopicState.REFUSED, HOSTILE)
    text = "".join(lines("topics", writer.name, "--interval", "0.01"))
    assert text.count("\\x1b]0;owned\\x07\\x9b2J\\u202e\\r\\n") == 2
    assert "\x1b" not in text


def test_topics_of_a_ring_without_any(writer: Writer) -> None:
    result = run("topics", writer.name, "--interval", "0.01")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "has no topics" in result.stderr
    assert parsed("topics", writer.name, "--json", "--interval", "0.01") == []


def test_topics_without_a_writer(orphan: str) -> None:
    assert parsed("topics", orphan, "--json", "--interval", "0.01") == []


def test_watch_shows_rates_and_new_topics(table: Writer) -> None:
    with started("topics", table.name, "--watch", "--json", "--interval", "0.01") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert [topic["rate"] for topic in first] == [None, None, None]
        looks = (json.loads(line) for line in process.stdout)
        while not next(looks)[2]["rate"]:
            table.publish(b"x", topic=table.topic("c"))
        table.publish(b"x", topic=table.topic("new"))
        while len(found := next(looks)) < 4:
            pass
        assert found[3]["name"] == "new"
        table.close()
        table.unlink()
        code, _, err = finished(process)
    assert (code, err) == (0, f"ringcast: ring {table.name!r} is gone\n")


def test_watch_for_people_ends_with_the_ring(table: Writer) -> None:
    with started("topics", table.name, "--watch", "--interval", "0.01") as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[:2] == ["id", "name"]
        table.close()
        table.unlink()
        code, _, err = finished(process)
    assert (code, err) == (0, f"ringcast: ring {table.name!r} is gone\n")
