"""A venue: how one exchange's topics are named, asked for, acknowledged and found in messages."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


class Confirmation(enum.StrEnum):
    """What a server's answer names."""

    ID = "id"
    """The id of the request."""
    TOPIC = "topic"
    """Topics, and the id as well if the venue has ids."""
    LIST = "list"
    """All topics that are subscribed."""
    ORDER = "order"
    """Nothing: it answers the oldest request, so requests go out one at a time."""


class Outcome(enum.StrEnum):
    """What became of a request."""

    SUBSCRIBED = "subscribed"
    UNSUBSCRIBED = "unsubscribed"
    REFUSED = "refused"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the server."""

    text: str
    names: tuple[str, ...]
    subscribing: bool
    id: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one control message of the server says."""

    outcome: Outcome
    id: str | None = None
    names: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A message that the server wants to hear again and again; `every` in seconds."""

    send: str
    every: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a late joiner gets the state that updates build on; `every` in seconds."""

    kind: Literal["none", "resubscribe", "request"] = "none"
    every: float = 0.0


class Venue:
    """How an exchange is talked to."""

    name: str
    confirmation: Confirmation
    topics_per_request: int | None
    topics_per_connection: int | None
    messages_per_second: float | None
    burst: int
    answer_timeout: float
    heartbeat: Heartbeat | None

    def requests(
        self, names: Sequence[str], *, subscribing: bool, ids: Iterator[int]
    ) -> list[Request]:
        """The messages that subscribe or unsubscribe topics."""
        raise NotImplementedError

    def answers(self, payload: bytes) -> list[Answer]:
        """What a control message says about requests."""
        raise NotImplementedError

    def replies(self, payload: bytes) -> list[str]:
        """What to send back at once to a control message."""
        raise NotImplementedError

    def check_name(self, name: str) -> None:
        """ValueError if a topic can't have this name."""
        raise NotImplementedError

    def snapshot(self, name: str) -> Snapshot:
        """How a late joiner of this topic gets its snapshot."""
        raise NotImplementedError

    def snapshot_request(self, names: Sequence[str], ids: Iterator[int]) -> list[Request]:
        """The messages that ask for snapshots."""
        raise NotImplementedError

    def reconnected(self) -> None:
        """Forget what was remembered of the last connection."""
        raise NotImplementedError
