"""Readers that choose: what they are given, and how they change what they want."""

from __future__ import annotations

from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import reader_status

from .conftest import LIST_MAX, MAX_TOPICS, NAME_MAX, SLOTS, publish, take


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_a_reader_gets_what_it_wants(writer: Writer, policy: Any) -> None:
    publish(writer, "a")
    with Reader.attach(writer.name, policy=policy, topics=["a", "new*"]) as reader:
        assert reader.chooses
        publish(writer, "b", "a", None, "new1", "b", "a", "newer", "old")
        assert take(reader) == ["a", "new1", "a", "newer"]
        assert (reader.received, reader.skipped, reader.lost) == (4, 4, 0)
        assert reader.cursor == writer.sequence


@pytest.mark.parametrize("others", [False, True])
def test_no_topics_at_all_and_an_empty_list(writer: Writer, others: bool) -> None:
    with (
        Reader.attach(writer.name, topics=None, others=others) as everything,
        Reader.attach(writer.name, topics=[], others=others) as nothing,
    ):
        assert (everything.chooses, nothing.chooses) == (False, True)
        assert everything.subscriptions == nothing.subscriptions == ()
        publish(writer, "a", None, "b")
        assert take(everything) == ["a", None, "b"]
        assert take(nothing) == ([None] if others else [])
        assert nothing.skipped == 2 + (not others)
        assert nothing.cursor == 3


def test_a_number_without_a_row_is_no_topic(writer: Writer) -> None:
    """Unless it gets a row: then it is that topic, for who takes it from then on."""
    with (
        Reader.attach(writer.name, topics=["*"]) as every_topic,
        Reader.attach(writer.name, topics=[], others=True) as others,
    ):
        for topic in (1, 5, MAX_TOPICS + 1, 2**32 - 1):
            writer.publish(b"%d" % topic, topic=topic)
        assert every_topic.read(timeout=0) is None
        assert [m.topic for m in others.read_available()] == [1, 5, MAX_TOPICS + 1, 2**32 - 1]
        writer.publish(b"1", topic=1)
        writer.topic("now it has a row")
        assert others.read(timeout=0) is None
        assert [m.topic for m in every_topic.read_available()] == [1]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["a", "b/c", "ä"], []),
        ("eth*", ["eth", "ethusdt@trade"], ["Eth", "beth"]),
        ("*@trade", ["@trade", "x@trade"], ["x@trades"]),
        ("b*t@*e", ["bt@e", "btcusdt@trade"], ["btc@trades", "xbt@e"]),
        ("a**b", ["ab", "a*b", "a--b"], ["ba"]),
        ("a?b", ["a?b"], ["axb", "ab"]),
        ("[ab]", ["[ab]"], ["a", "b"]),
        ("!a\\", ["!a\\"], ["a"]),
        ("A.c", ["A.c"], ["a.c", "Abc"]),
        ("\xe4*", ["\xe4", "\xe4x"], ["\xe5"]),
    ],
)
def test_patterns(writer: Writer, pattern: str, matching: list[str], others: list[str]) -> None:
    """Only * is special, it matches any run of characters, and case counts."""
    with Reader.attach(writer.name, topics=[pattern]) as reader:
        publish(writer, *matching, *others)
        assert take(reader) == matching


def test_kinds_and_topics(writer: Writer) -> None:
    """Records of kind EVENT are passed over for `skip` alone, whatever their topic."""
    kinds = (shm.Kind.EVENT, shm.Kind.TEXT, shm.Kind.BINARY)
    expected = {
        (None, 0): [16, 1, 2] * 2,
        (None, 16): [1, 2] * 2,
        (("a",), 0): [16, 1, 2, 16],
        (("a",), 16): [1, 2],
        (("a",), 1): [16, 2, 16],
        ((), 0): [16, 16],
        ((), 16): [],
    }
    readers = {}
    for topics, skip in list(expected)[:4]:
        readers[topics, skip] = Reader.attach(writer.name, topics=topics, skip=skip)
    for topic in ("a", "b"):
        for kind in kinds:
            writer.publish(b"", topic=writer.topic(topic), kind=kind)
    for how, reader in readers.items():
        assert [m.kind for m in reader.read_available()] == expected[how]
        reader.close()
    for topics, skip in list(expected)[4:]:
        with Reader.attach(writer.name, topics=topics, skip=skip, start="oldest") as reader:
            assert [m.kind for m in reader.read_available()] == expected[topics, skip]


def test_where_it_starts(writer: Writer) -> None:
    publish(writer, "a", "b", "a", "b")
    for start, expected in [("oldest", ["a", "a"]), (1, ["a"]), ("latest", [])]:
        with Reader.attach(writer.name, topics=["a"], start=start) as reader:  # type: ignore[arg-type]
            assert take(reader) == expected


# ---- changing one's mind -------------------------------------------------------------------


def test_subscribing_and_unsubscribing(writer: Writer) -> None:
    with Reader.attach(writer.name, topics=["a"]) as reader:
        reader.subscribe("b*", "c", "a", "c")
        assert list(reader.subscriptions) == ["a", "b*", "c"]
        publish(writer, "a", "b1", "c", "d")
        assert take(reader) == ["a", "b1", "c"]
        reader.unsubscribe("a", "nobody wants this")
        assert list(reader.subscriptions) == ["b*", "c"]
        publish(writer, "a", "b1", "b2", "c")
        assert take(reader) == ["b1", "b2", "c"]
        reader.unsubscribe("b1", "c")
        publish(writer, "b1", "c")
        assert take(reader) == ["b1"], "a pattern goes as it came, and by nothing else"
        reader.unsubscribe("b*")
        reader.subscribe()
        reader.unsubscribe()
        publish(writer, "b1", "c")
        assert take(reader) == []
        assert list(reader.subscriptions) == []


def test_what_two_patterns_want_stays_until_both_are_gone(writer: Writer) -> None:
    with Reader.attach(writer.name, topics=["ab", "a*", "*b"]) as reader:
        for gone, expected in [("a*", ["ab"]), ("ab", ["ab"]), ("*b", [])]:
            publish(writer, "ab")
            assert take(reader) == ["ab"]
            reader.unsubscribe(gone)
            publish(writer, "ab")
            assert take(reader) == expected


def test_it_holds_for_what_was_published_and_not_taken(writer: Writer) -> None:
    """What is handed out follows from the list at the time."""
    with Reader.attach(writer.name, topics=["a"]) as reader:
        publish(writer, "b", "a")
        reader.subscribe("b")
        assert take(reader) == ["b", "a"]
        publish(writer, "b", "a")
        reader.unsubscribe("b")
        assert take(reader) == ["a"]


def test_a_reader_that_gets_everything_may_subscribe(writer: Writer) -> None:
    """It still gets everything; others see what it subscribed to."""
    with Reader.attach(writer.name) as reader:
        reader.subscribe("a", "b*")
        assert list(reader.subscriptions) == ["a", "b*"]
        publish(writer, "c", None, "a")
        assert take(reader) == ["c", None, "a"]
        reader.unsubscribe("a")
        assert list(reader.subscriptions) == ["b*"]
        publish(writer, "a")
        assert take(reader) == ["a"]
        assert shm.list_topics(writer.name)[1].wanted_by == 0


BAD_TOPICS: Final = {
    "": "has 1 to 127 bytes, this one 0",
    "x" * (NAME_MAX + 1): "has 1 to 127 bytes, this one 128",
    "a\0": "has a NUL",
    "\ud800": "surrogates not allowed",
}


@pytest.mark.parametrize("bad", BAD_TOPICS, ids=["empty", "long", "nul", "lone"])
def test_bad_names_change_nothing(writer: Writer, bad: str) -> None:
    with Reader.attach(writer.name, topics=["a"]) as reader:
        with pytest.raises(ValueError, match=BAD_TOPICS[bad]):
            reader.subscribe("a", "b", "c*", bad, "d")
        assert list(reader.subscriptions) == ["a"]
        publish(writer, "a", "b", "c", "d")
        assert take(reader) == ["a"]
    with pytest.raises(ValueError, match=BAD_TOPICS[bad]):
        Reader.attach(writer.name, topics=["a", bad])
    assert shm.status(writer.name).readers == ()


@pytest.mark.parametrize("bad", [None, 1, b"bytes", ["list"]])
def test_what_is_no_string(writer: Writer, bad: Any) -> None:
    with Reader.attach(writer.name, topics=["a"]) as reader:
        for call in (reader.subscribe, reader.unsubscribe):
            with pytest.raises(TypeError, match="a topic is a string"):
                call("b", bad)
        assert list(reader.subscriptions) == ["a"]
        with pytest.raises(TypeError):
            reader.latest(bad)
    with pytest.raises(TypeError):
        writer.topic(bad)
    with pytest.raises(TypeError, match="a topic is a string"):
        Reader.attach(writer.name, topics=["a", bad])


def test_a_string_is_no_list(writer: Writer) -> None:
    with pytest.raises(TypeError, match=r"list of names and patterns: \['abc'\]"):
        Reader.attach(writer.name, topics="abc")


def test_errors_name_the_topic_as_it_was_given(writer: Writer) -> None:
    with pytest.raises(ValueError, match=r"'0a00a0+'"):
        Reader.attach(writer.name, topics=["0a00a" + "0" * 200])


def test_a_list_that_is_too_long(writer: Writer) -> None:
    names = [f"{n:0{NAME_MAX}}" for n in range(LIST_MAX // (NAME_MAX + 1))]
    with Reader.attach(writer.name, topics=names) as reader:
        rest = LIST_MAX - len(names) * (NAME_MAX + 1)
        with pytest.raises(ValueError, match=r"take 32759 bytes at most\. Use patterns"):
            reader.subscribe("a", "x" * rest)
        assert reader.subscriptions == tuple(names)
        reader.subscribe("x" * (rest - 1))
        with pytest.raises(ValueError, match="no room for topic 'y'"):
            reader.subscribe("y")
        reader.subscribe(*names)  # they are there
        reader.unsubscribe(names[7])
        reader.subscribe("y", names[7][:-3])
        status = reader_status(writer.name)
        assert status is not None
        assert status.topics == reader.subscriptions
        assert len(status.topics) == len(names) + 2
    with pytest.raises(ValueError, match="take 32759 bytes at most"):
        Reader.attach(writer.name, topics=[*names, "x" * rest])
    assert shm.status(writer.name).readers == ()


# ---- gaps ----------------------------------------------------------------------------------


def test_a_gap_counts_what_the_ring_had_wanted_or_not(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy", topics=["a"]) as reader:
        publish(writer, "a", "b")
        assert take(reader) == ["a"]
        for _ in range(5 * SLOTS):
            publish(writer, "b", "a")
        before = reader.cursor
        message = reader.read(timeout=0)
        assert message is not None
        assert message.topic_name == "a"
        assert message.gap == reader.lost
        assert 0 <= message.sequence - before - message.gap <= 1, "one that is skipped is no gap"
        del message
        take(reader)
        assert reader.received + reader.skipped + reader.lost == writer.sequence
