"""The benchmark of topics: it measures, and wrong contents or counts fail the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ringcast.benchmarks import processes, topics
from ringcast.benchmarks.errors import RunFailedError
from ringcast.benchmarks.payloads import contents, last_word
from ringcast.benchmarks.topics import Case
from ringcast.shm import broadcast

SECONDS = 0.02
CASE = Case(readers=2, topics=4, rate=20_000)
MARK = contents(topics.SIZE).mark(0)
DUE = [(number, last_word(number)) for number in range(3)]
MESSAGES = contents(topics.SIZE).payloads[:3]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits look sooner whether another process has failed. Benchmarks must not be disturbed so."""
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.01)


@pytest.mark.parametrize("chooses", [True, False])
@pytest.mark.parametrize("rate", [20_000, None])
def test_a_flow_is_measured(chooses: bool, rate: int | None) -> None:
    found = topics.paced(Case(2, 4, rate), chooses, SECONDS)
    assert len(found) == 2
    assert all(cpu > 0 for cpu in found.values())


def test_a_reader_that_wants_nothing_is_measured() -> None:
    found = topics.nothing_wanted(SECONDS)
    assert found["woken: flood"] >= 0
    assert found["full: half of it"] >= 0


@pytest.mark.parametrize("chooses", [True, False])
def test_a_message_under_another_topic_or_twice_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, chooses: bool
) -> None:
    publish = broadcast.Writer.publish

    def wrong(writer: broadcast.Writer, data: bytes, *, topic: int = 0) -> int:
        if data == MESSAGES[2]:
            publish(writer, data, topic=1)
        return publish(writer, data, topic=topic)

    monkeypatch.setattr(broadcast.Writer, "publish", wrong)
    with pytest.raises(RunFailedError, match="is due, and this came"):
        topics.paced(CASE, chooses, SECONDS)


def test_messages_that_are_not_skipped_but_missing_fail_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = broadcast.Writer.publish

    def wrong(writer: broadcast.Writer, data: bytes, *, topic: int = 0) -> int:
        return 0 if topic == CASE.topics else publish(writer, data, topic=topic)

    monkeypatch.setattr(broadcast.Writer, "publish", wrong)
    with pytest.raises(RunFailedError, match="and skipped"):
        topics.paced(CASE, True, SECONDS)


def flipped(messages: Sequence[bytes]) -> list[bytes]:
    return [messages[0], bytes([messages[1][0] ^ 1, *messages[1][1:]]), messages[2]]


@pytest.mark.parametrize(
    "tamper", [flipped, lambda m: m[1:], lambda m: [m[0], *m], lambda m: [m[1], m[0], m[2]]]
)
def test_other_messages_than_are_due_are_noticed(tamper: Callable[[Any], Any]) -> None:
    assert topics.check_messages([*MESSAGES, *MESSAGES, MARK], DUE, MARK) == 6
    with pytest.raises(RunFailedError):
        topics.check_messages([*tamper(MESSAGES), MARK], DUE, MARK)


def test_a_flow_without_its_mark_is_noticed() -> None:
    with pytest.raises(RunFailedError, match="before their mark"):
        topics.check_messages(MESSAGES, DUE, MARK)
