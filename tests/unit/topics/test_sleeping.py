"""Readers that choose sleep through what they do not want, and are seen to; and how they end."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import Processes
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import SLOTS, publish, take


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_a_sleeper_is_woken_by_what_it_wants(writer: Writer, policy: Any) -> None:
    publish(writer, "a", "b")
    with Reader.attach(
        writer.name, policy=policy, topics=["a", "new*"], wait=shm.Blocking(spin_us=0)
    ) as reader:
        for topic in ("a", "new1", "new2", "a"):
            sleeper = Background(lambda: next(reader).topic_name)
            wait_until_waiting(writer.name)
            publish(writer, "b", "b", "c", None)
            wait_until_waiting(writer.name)
            assert sleeper.running
            publish(writer, topic)
            assert sleeper.result() == topic


@pytest.mark.parametrize("wait", [shm.Blocking(), shm.Blocking(spin_us=0), shm.Yielding()])
def test_subscribing_wakes_the_thread_that_waits(writer: Writer, wait: shm.WaitStrategy) -> None:
    publish(writer, "a", "b")
    with Reader.attach(writer.name, topics=["b"], start=0, wait=wait) as reader:
        assert take(reader) == ["b"]
        sleeper = Background(lambda: next(reader).topic_name)
        if isinstance(wait, shm.Blocking):
            wait_until_waiting(writer.name)
        reader.subscribe("a")
        publish(writer, "a")
        assert sleeper.result() == "a"
        sleeper = Background(lambda: next(reader).topic_name)
        reader.unsubscribe("a")
        publish(writer, "a", "b")
        assert sleeper.result() == "b"


def test_whoever_wants_nothing_never_holds_the_writer_up(writer: Writer) -> None:
    """It lets the writer go each time it is woken, which is before the ring is full."""
    publish(writer, "a")
    with Reader.attach(writer.name, topics=["zz"], wait=shm.Blocking(spin_us=0)) as reader:
        sleeper = Background(reader.read)
        wait_until_waiting(writer.name)
        for _ in range(20 * SLOTS):
            writer.publish(b"12345678", topic=1, timeout=60)
        writer.publish(b"zz", topic=writer.topic("zz"), timeout=60)
        assert sleeper.result().topic_name == "zz"
        assert (reader.received, reader.skipped) == (1, 20 * SLOTS)
        assert reader.lost == 0


def test_one_that_only_polls_lets_the_ring_go(writer: Writer) -> None:
    publish(writer, "a")
    with Reader.attach(writer.name, topics=["zz"]) as reader:
        for _ in range(10):
            for _ in range(SLOTS):
                writer.publish(b"12345678", topic=1, timeout=0)
            assert reader.read_available() == []
            assert reader.cursor == writer.sequence


def test_a_view_that_holds_the_ring_is_reported(writer: Writer) -> None:
    """A chooser that would wait for ever for room that it holds itself."""
    publish(writer, "a", "b")
    with Reader.attach(writer.name, topics=["a"], start=0) as reader:
        view = next(reader).payload
        while writer.try_publish(b"", topic=2) is not None:
            pass
        with pytest.raises(shm.RingFull, match="waits for message 0"):
            reader.read(timeout=60)
        view.release()
        writer.publish(b"a", topic=1, timeout=60 if reader.read(timeout=0) is None else 0)
        assert bytes(next(reader)) == b"a"


# ---- who sees it ---------------------------------------------------------------------------


def test_status_of_readers_that_choose(writer: Writer) -> None:
    with (
        Reader.attach(writer.name, topics=["a", "b*"]) as chooser,
        Reader.attach(writer.name, topics=[], others=True),
        Reader.attach(writer.name, others=True),
    ):
        publish(writer, "a", "c", "c")
        take(chooser)
        first, second, third = shm.status(writer.name).readers
        assert (first.topics, first.others) == (("a", "b*"), False)
        assert (first.received, first.skipped, first.lost, first.lag) == (1, 2, 0, 0)
        assert (second.topics, second.others) == ((), True)
        assert (third.topics, third.others) == (None, False)
        chooser.subscribe("c")
        chooser.unsubscribe("a")
        assert shm.status(writer.name).readers[0].topics == ("b*", "c")


def test_the_next_owner_of_a_slot_has_its_own_list(writer: Writer) -> None:
    publish(writer, "a")
    with Reader.attach(writer.name, topics=["a", "b"]):
        pass
    with Reader.attach(writer.name, topics=["c"]) as reader:
        assert reader.slot == 0
        assert shm.status(writer.name).readers[0].topics == ("c",)
        assert [row.wanted_by for row in reader.topics] == [0]
    with Reader.attach(writer.name):
        assert shm.status(writer.name).readers[0].topics is None


# ---- ends ----------------------------------------------------------------------------------


def uses(reader: Reader) -> list[Any]:
    """Every call that has to do with topics."""
    return [
        lambda: reader.subscribe("x"),
        lambda: reader.unsubscribe("x"),
        lambda: reader.subscriptions,
        lambda: reader.topics,
        lambda: reader.latest("a"),
    ]


def test_after_the_end(writer: Writer) -> None:
    publish(writer, "a")
    reader = Reader.attach(writer.name, topics=["a"], start=0)
    kept = next(reader)
    reader.close()
    for use in uses(reader):
        with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
            use()
    assert (kept.topic_name, kept.key, bytes(kept)) == ("a", 0, b"a")
    assert (reader.received, reader.skipped) == (1, 0)
    writer.close()
    for call in (lambda: writer.topic("b"), lambda: writer.set_topic_state(1, 1)):
        with pytest.raises(shm.RingClosed):
            call()


def test_the_ring_ends_for_one_that_waits_for_nothing(writer: Writer) -> None:
    publish(writer, "a", "a")
    with Reader.attach(writer.name, topics=[], start=0) as reader:
        sleeper = Background(lambda: list(reader))
        wait_until_waiting(writer.name)
        publish(writer, "a")
        writer.close()
        assert sleeper.result() == []
        assert reader.skipped == 3
        with pytest.raises(shm.RingClosed, match="has ended"):
            reader.read(timeout=0)
        assert len(reader.topics) == 1


def in_a_fork(reader: Reader, message: Message) -> None:
    for use in uses(reader):
        with pytest.raises(shm.RingClosed, match="a forked child must"):
            use()
    assert message.topic_name == "a"
    with Reader.attach(reader.name, topics=["a"], start=0) as own:
        assert take(own) == ["a"]


def test_in_a_forked_child(writer: Writer, processes: Processes) -> None:
    publish(writer, "a")
    with Reader.attach(writer.name, topics=["a"], start=0) as reader:
        message = next(reader)
        processes.start(in_a_fork, reader, message)
        processes.join()
        reader.subscribe("b")
        assert list(reader.subscriptions) == ["a", "b"]
        assert os.getpid() == shm.status(writer.name).readers[0].pid


@pytest.mark.parametrize("how", ["demote", "evict"])
def test_demoted_and_evicted(writer: Writer, how: str) -> None:
    publish(writer, "a")
    reader = Reader.attach(writer.name, topics=["a"])
    if how == "demote":
        assert writer.demote(reader.slot)
        assert take(reader) == []
        for _ in range(SLOTS):
            publish(writer, "b", "a")
        assert take(reader)[-1:] == ["a"]
        assert reader.policy == "lossy"
        assert reader.received + reader.skipped + reader.lost == 2 * SLOTS
    else:
        assert writer.evict(reader.slot)
        with pytest.raises(shm.Evicted):
            reader.read(timeout=0)
        assert shm.list_topics(writer.name)[0].wanted_by == 0
    reader.close()
