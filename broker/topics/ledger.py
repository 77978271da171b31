"""What `subscriptions` keeps about each topic and each request, and the lines in which topics wait.

Nothing here decides anything.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from .states import TopicState
from .venue import Request

__all__ = [
    "Asked",
    "Change",
    "Held",
    "Line",
    "Ready",
    "SnapshotAsked",
    "Topic",
    "Wishes",
]


@dataclass(frozen=True, slots=True)
class Change:
    """A topic's state is another.

    Attributes:
        name: of the topic.
        state: the new one.
        reason: why it is refused, in the server's words where there are any; else empty.
    """

    name: str
    state: TopicState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotAsked:
    """A request for snapshots was among the texts of `Subscriptions.take`.

    Attributes:
        slot: of the worker that its answer is for.
        id: of the request; None if the venue has no ids.
        names: the topics.
    """

    slot: int
    id: str | None
    names: tuple[str, ...]


class Held(enum.Enum):
    """Does the server have a subscription, as far as can be known?"""

    NO = enum.auto()
    MAYBE = enum.auto()
    """It was asked to, or asked to end it, and has not answered."""
    YES = enum.auto()


@dataclass(slots=True, eq=False)
class Asked:
    """A request to subscribe or unsubscribe, from when it is made until it is answered.

    Attributes:
        request: the venue's.
        unanswered: topics of it that the server has not answered yet.
        sent: when; None: it waits to be sent.
        deadline: when it is no more waited for.
        refusals: how often the server has refused something without saying what.
        reason: its words.
    """

    request: Request
    unanswered: dict[str, None]
    sent: float | None = None
    deadline: float = math.inf
    refusals: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that is made and goes out next.

    Attributes:
        request: the venue's.
        asked: what becomes of it; None for a request for snapshots.
        slot: the worker that gets the snapshots.
    """

    request: Request
    asked: Asked | None = None
    slot: int = -1


@dataclass(slots=True, eq=False)
class Topic:
    """A topic that somebody wants, or that the server has or may have.

    Attributes:
        name: the topic's.
        own: the manager itself wants it.
        workers: how many want it.
        held: what the server has of it.
        asked: the request that names it and has no answer yet.
        subscribing: did the last request, on this connection, subscribe it?
        doubtful: when that was made, the server may have had the topic already.
        retried: that one repeats one that was not answered.
        refused: why it is not to be asked for.
        renew: it is to be unsubscribed and subscribed again, for its snapshot.
        counted: it is one of those that are wanted and not refused.
        state: as reported last.
        reason: as reported last.
    """

    name: str
    own: bool = False
    workers: int = 0
    held: Held = Held.NO
    asked: Asked | None = None
    subscribing: bool = False
    doubtful: bool = False
    retried: bool = False
    refused: str | None = None
    renew: bool = False
    counted: bool = False
    state: TopicState = TopicState.NONE
    reason: str = ""

    @property
    def wanted(self) -> bool:
        """Does anybody want it?"""
        return self.own or self.workers > 0

    @property
    def active(self) -> bool:
        """Is the server to have it?"""
        return self.wanted and self.refused is None

    @property
    def steady(self) -> bool:
        """Is it to be had, and had, and is this not about to change?"""
        return self.active and self.held is Held.YES and self.asked is None and not self.renew

    def current_state(self) -> TopicState:
        """The state that is to be reported."""
        if self.wanted and self.refused is not None:
            return TopicState.REFUSED
        if self.asked is not None and self.asked.request.subscribing:
            return TopicState.PENDING
        if self.asked is None and self.held is Held.YES:
            return TopicState.SUBSCRIBED
        return TopicState.WANTED if self.wanted else TopicState.NONE

    def disconnected(self) -> None:
        """Forget what concerns the connection."""
        self.asked = None
        self.held = Held.NO
        self.subscribing = self.doubtful = self.retried = self.renew = False


@dataclass(slots=True)
class Wishes:
    """What one worker wants.

    Attributes:
        names: topics that it is counted for.
        unasked: names that can't be asked for, and why.
    """

    names: dict[str, None] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)


class Line:
    """Topics that wait to be asked for, or to be unsubscribed, in order.

    Attributes:
        names: all of them.
    """

    def __init__(self) -> None:
        self.names: OrderedDict[str, None] = OrderedDict()
        self._apart: deque[list[str]] = deque()

    def add(self, name: str) -> None:
        """At the end, unless it is in the line."""
        self.names.setdefault(name, None)

    def discard(self, name: str) -> None:
        """Out of the line, if it is in it."""
        self.names.pop(name, None)

    def to_front(self, name: str) -> None:
        """Before all others, if it is in the line."""
        if name in self.names:
            self.names.move_to_end(name, last=False)

    def keep_apart(self, names: list[str]) -> None:
        """Those of these that are in the line go next, and in a request of their own."""
        self._apart.append(names)

    def next(self, most: int) -> list[str]:
        """The topics for the next requests, at most so many. They stay in the line."""
        while self._apart:
            names = [name for name in self._apart.popleft() if name in self.names]
            if len(names) > most:
                self._apart.appendleft(names[most:])
            if names:
                return names[:most]
        return list(itertools.islice(self.names, most))

    def clear(self) -> None:
        """Nobody waits."""
        self.names.clear()
        self._apart.clear()
