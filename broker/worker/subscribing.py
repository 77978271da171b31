"""Waiting until the server has acknowledged what a worker subscribed to.

    worker: wishes, version v  ──▶  control segment  ──▶  manager
    worker  ◀──  answer: wishes up to version v were read, these can't be had  ◀──  manager
    worker  ◀──  topic table: wanted, pending, subscribed, refused  ◀──  manager

Nothing is sent: both sides look at what stands in shared memory. An answer is looked for with short
pauses, for it takes a server's round trip; no message waits for it, and reading goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Final, Protocol

from ringcast import shm
from ringcast.shm.counters import WishesAnswer
from ringcast.shm.topics import ANSWER_MAX

from ..topics.states import TopicState
from .deadlines import deadline

__all__ = ["Asker", "SubscriptionRefused", "Verdicts", "answer_text", "wait_for_server"]

_PAUSE_FIRST: Final = 0.0005
_PAUSE_MOST: Final = 0.02
"""Seconds between two looks; they double up to this."""
_NOT_SAID: Final = "refused; the manager's log says why"
_AND_MORE: Final = "*"
"""Instead of a name in an answer: more were refused than it has room for. No name has a *."""


class SubscriptionRefused(shm.RingError):
    """The server, or the manager, does not give a worker topics that it asked for.

    Attributes:
        reasons: why, by topic, in the server's words where there are any.
    """

    def __init__(self, message: str, reasons: dict[str, str]) -> None:
        super().__init__(message, reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return str(self.args[0])


class Asker(Protocol):
    """What is needed of a worker's reader."""

    @property
    def name(self) -> str:
        """The ring's name."""

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What it wants now."""

    @property
    def wishes_version(self) -> int:
        """Which list of its wishes stands in its slot."""

    def wishes_answer(self) -> WishesAnswer:
        """What the manager says of them."""

    def topic_id(self, name: str) -> int:
        """Of a topic in the table, or 0."""

    def topic_state(self, topic: int) -> tuple[int, str]:
        """A `TopicState`, and why."""

    def check_manager(self) -> None:
        """Raise RingClosed if no manager will answer any more."""


def wait_for_server(feed: Asker, topics: Iterable[str], timeout: float | None) -> None:
    """Wait until the server has acknowledged these topics, or refused one.

    Args:
        feed: the worker's, which has subscribed to them.
        topics: names and patterns; patterns are not asked for, and not waited for.
        timeout: seconds; None waits as long as it takes.

    Raises:
        SubscriptionRefused: one was refused, or several; the others may be had.
        TimeoutError: no answer in time; the wishes stand.
        shm.RingClosed: the manager has stopped, or this end is closed.
    """
    verdicts = Verdicts(feed, (name for name in topics if "*" not in name))
    until = deadline(timeout)
    pause = _PAUSE_FIRST
    while not verdicts.look():
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"no answer in time for {_listed(verdicts.open)}: the wish stands, and"
                " `ringcast topics` shows what becomes of it"
            )
        time.sleep(min(pause, left))
        pause = min(2 * pause, _PAUSE_MOST)
    reasons = verdicts.reasons
    if reasons:
        first = next(iter(reasons))
        raise SubscriptionRefused(
            f"{_listed(reasons)} refused: {reasons[first]}", dict(sorted(reasons.items()))
        )


class Verdicts:
    """What becomes of topics that a worker has just asked for.

    Args:
        feed: the worker's, which has subscribed to them.
        names: of the topics; no patterns.

    Attributes:
        open: those without an answer.
        reasons: why those that are refused are, in the server's words where there are any.
    """

    def __init__(self, feed: Asker, names: Iterable[str]) -> None:
        self._feed = feed
        self._version = feed.wishes_version
        self.open = set(names)
        self.reasons: dict[str, str] = {}

    def look(self) -> bool:
        """Look whether answers have come. Returns whether all have. Raises shm.RingClosed: the
        manager has stopped, or the feed is closed."""
        if self.open:
            self._feed.check_manager()
            answer = self._feed.wishes_answer()
            if not answer.expected:
                self._feed.check_manager()  # one that ends does not answer any more
                self.open.clear()  # nobody asks a server: what comes, comes
            elif answer.version >= self._version:
                self._sort(_refused(answer.text))
        return not self.open

    def _sort(self, refused: dict[str, str]) -> None:
        """Take out those that have an answer."""
        wanted = set(self._feed.subscriptions)
        for name in sorted(self.open):
            if name not in wanted:  # it was unsubscribed meanwhile
                self.open.discard(name)
            elif (reason := self._refusal(name, refused)) is not None:
                self.reasons[name] = reason
                self.open.discard(name)
            elif self._state(name)[0] == TopicState.SUBSCRIBED:
                self.open.discard(name)

    def _state(self, name: str) -> tuple[int, str]:
        topic = self._feed.topic_id(name)
        return self._feed.topic_state(topic) if topic else (TopicState.REFUSED, "")

    def _refusal(self, name: str, refused: dict[str, str]) -> str | None:
        """Why a topic is refused; None: it is not."""
        if name in refused:
            return refused[name]
        state, reason = self._state(name)
        unlisted = _AND_MORE in refused and state == TopicState.NONE
        return reason or _NOT_SAID if state == TopicState.REFUSED or unlisted else None


def _refused(text: str) -> dict[str, str]:
    """What an answer says, as `answer_text` has it."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def answer_text(refused: dict[str, str]) -> str:
    """The text of an answer: names that can't be had, and why; as many as fit, and whether that is
    all."""
    kept: dict[str, str] = {}
    for name, reason in refused.items():
        if len(_dense({**kept, name: reason, _AND_MORE: ""}).encode()) > ANSWER_MAX:
            return _dense({**kept, _AND_MORE: ""})
        kept[name] = reason
    return _dense(kept) if kept else ""


def _dense(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return repr(first) if not others else f"{first!r} and {len(others)} more topics"
