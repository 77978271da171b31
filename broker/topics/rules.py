"""What a venue file says, as checked objects: names, answers, replies, heartbeats, snapshots."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .answer_templates import AnswerTemplate
from .json_templates import JsonTemplate
from .templates import Form, Pattern, glob_matches, resolve, scalar_text

__all__ = [
    "AnswerRule",
    "ClientRules",
    "Condition",
    "Done",
    "Heartbeat",
    "Naming",
    "Outcome",
    "Rename",
    "Reply",
    "RequestPair",
    "Retort",
    "Snapshot",
    "SnapshotRule",
    "UrlForm",
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
        return self.matches(resolve(message, self.pointer))

    def matches(self, value: Any) -> bool:
        """Does a value fulfil it that is found at `pointer`?"""
        text = scalar_text(value, ())
        return text is not None and any(glob_matches(glob, text) for glob in self.globs)


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
class RequestPair:
    """A message that subscribes, and the one that unsubscribes."""

    subscribe: JsonTemplate
    unsubscribe: JsonTemplate


@dataclass(frozen=True, slots=True)
class Naming:
    """Some of a venue's topics: what their names look like, and how they are asked for.

    Attributes:
        form: of their names.
        example: one of their names.
        subscribe: the message that subscribes.
        unsubscribe: the message that unsubscribes.
        also: other messages with which clients ask for the same.
        optional: what a client's message may have beside what the templates say, without another
            meaning. A part ``*`` of a pointer stands for each index of a list.
    """

    form: Form
    example: str
    subscribe: JsonTemplate
    unsubscribe: JsonTemplate
    also: tuple[RequestPair, ...] = ()
    optional: tuple[Condition, ...] = ()


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


# ---- clients that think they talk to the exchange ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Retort:
    """What the server answers at once to a message of a client.

    Attributes:
        when: all of these must hold; or the whole message, if that is no JSON.
        send: the answer; a text is sent as it is.
    """

    when: tuple[Condition, ...] | str
    send: AnswerTemplate | str


@dataclass(frozen=True, slots=True)
class UrlForm:
    """Where a URL names topics.

    Attributes:
        path: the path, or what it begins with if there is no `parameter`.
        parameter: of the query, whose value has the names. None: the rest of the path has them.
    """

    path: str
    parameter: str | None


@dataclass(frozen=True, slots=True)
class ClientRules:
    """How the exchange answers its clients.

    Attributes:
        subscribed: what acknowledges a subscription; None if nobody can play this exchange.
        unsubscribed: what acknowledges the end of a subscription.
        refused: what refuses a subscription.
        pings: what is answered at once; the first that fits counts.
        login: what is answered to a login.
        urls: where URLs name topics; the first that fits counts.
        separator: between names in a URL.
    """

    subscribed: AnswerTemplate | None = None
    unsubscribed: AnswerTemplate | None = None
    refused: AnswerTemplate | None = None
    pings: tuple[Retort, ...] = ()
    login: Retort | None = None
    urls: tuple[UrlForm, ...] = ()
    separator: str = ""
