"""What a venue file says, as checked objects: names, answers, replies, heartbeats, snapshots."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .templates import Form, JsonTemplate, Pattern, glob_matches, scalar_text

__all__ = [
    "AnswerRule",
    "Condition",
    "Done",
    "Heartbeat",
    "Naming",
    "Outcome",
    "Rename",
    "Reply",
    "Snapshot",
    "SnapshotRule",
]


class Outcome(enum.StrEnum):
    """What became of a request."""

    SUBSCRIBED = "subscribed"
    UNSUBSCRIBED = "unsubscribed"
    REFUSED = "refused"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A message that the server wants to hear again and again.

    Attributes:
        send: the message.
        every: seconds between two of them.
    """

    send: str
    every: float


@dataclass(frozen=True, slots=True)
class Condition:
    """A message fulfils it if the value at `pointer` matches one of `globs`. The value is a text, a
    number as it is spelled, or "true", "false" or "null"."""

    pointer: tuple[str, ...]
    globs: tuple[str, ...]

    def holds(self, message: Any) -> bool:
        """Does `message`, parsed, fulfil it?"""
        value = scalar_text(message, self.pointer)
        return value is not None and any(glob_matches(glob, value) for glob in self.globs)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back at once.

    Attributes:
        when: all of these must hold.
        send: the message to send.
    """

    when: tuple[Condition, ...]
    send: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a late joiner gets the state that updates build on.

    Attributes:
        kind: "none": each message is whole, or the state comes from elsewhere. "resubscribe":
            unsubscribed and subscribed again, the server sends it to everybody. "request": asked
            for by `Venue.snapshot_request`.
        every: seconds between two of them for one topic, at least.
        request: the message of "request".
    """

    kind: Literal["none", "resubscribe", "request"] = "none"
    every: float = 0.0
    request: JsonTemplate | None = None


@dataclass(frozen=True, slots=True)
class Naming:
    """Some of a venue's topics: what their names look like, and how they are asked for."""

    form: Form
    example: str
    subscribe: JsonTemplate
    unsubscribe: JsonTemplate


class Done(enum.Enum):
    """The outcome of an answer that does not say whether it acknowledges a subscribe or an
    unsubscribe: its request knows."""

    DONE = "done"


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """What a control message means.

    Attributes:
        when: all of these must hold; of several rules that hold the first one counts.
        outcome: what such a message says.
        id: where it has the request's id.
        names: where it names topics.
        parts: by part of a name, where the message has it; of the request's topics it means those
            with equal parts.
        raw: the name that the topic patterns find in messages of this topic.
        reason: where it says why it refuses; the first of these that is there.
        refuses_rest: topics of the request that are not named are refused.
    """

    when: tuple[Condition, ...]
    outcome: Outcome | Done
    id: tuple[str, ...] | None = None
    names: tuple[Pattern, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    raw: Pattern | None = None
    reason: tuple[Pattern, ...] = ()
    refuses_rest: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotRule:
    """The snapshots of the topics whose names match one of `globs`."""

    globs: tuple[str, ...]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Rename:
    """Messages whose name matches `found`, with at most one ``*``, belong to a topic with one of
    the names `topics`, in which ``*`` stands for the same."""

    found: str
    topics: tuple[str, ...]

    def candidates(self, raw: str) -> tuple[str, ...]:
        """The names that `raw` can stand for; none if it does not match."""
        if not glob_matches(self.found, raw):
            return ()
        before, star, after = self.found.partition("*")
        if not star:
            return self.topics
        middle = raw[len(before) : len(raw) - len(after)]
        return tuple(topic.replace("*", middle) for topic in self.topics)
