"""A venue made up for tests, a server that plays by its rules, and a desk at which they meet."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ringcast.broker.topics.subscriptions import Subscriptions, TopicState
from ringcast.broker.topics.venue import (
    Answer,
    Confirmation,
    Heartbeat,
    Outcome,
    Request,
    Snapshot,
    Venue,
)

NAME_LENGTH_MAX = 12


@dataclass(eq=False)
class PlayVenue:
    """Requests are ``{"op", "names", "id"}``; topics that differ before the dot do not share one.

    Names that begin with "new" are subscribed again for a late joiner, those that begin with "ask"
    are asked for; the ones with "mute" can't be unsubscribed.
    """

    confirmation: Confirmation = Confirmation.ID
    topics_per_request: int | None = None
    topics_per_connection: int | None = None
    messages_per_second: float | None = None
    burst: int = 1
    answer_timeout: float = 10.0
    heartbeat: Heartbeat | None = None
    every: float = 60.0
    name: str = "play"
    reconnections: int = 0

    def as_venue(self) -> Venue:
        """For what wants a real one."""
        return cast(Venue, self)

    def check_name(self, name: str) -> None:
        """Names are short."""
        if len(name) > NAME_LENGTH_MAX:
            raise ValueError(f"{name!r} is too long")

    def requests(
        self, names: Sequence[str], *, subscribing: bool, ids: Iterator[int]
    ) -> list[Request]:
        """As few as there can be."""
        op = "subscribe" if subscribing else "unsubscribe"
        groups: dict[str, list[str]] = {}
        for name in names:
            if subscribing or not name.startswith("mute"):
                groups.setdefault(name.partition(".")[0] if "." in name else "", []).append(name)
        return [
            self._request(op, group[i : i + (self.topics_per_request or len(group))], ids)
            for group in groups.values()
            for i in range(0, len(group), self.topics_per_request or len(group))
        ]

    def _request(self, op: str, names: Sequence[str], ids: Iterator[int]) -> Request:
        number = next(ids) if self.confirmation is Confirmation.ID else None
        text = json.dumps({"op": op, "names": names, "id": number})
        return Request(
            text, tuple(names), op == "subscribe", None if number is None else str(number)
        )

    def answers(self, payload: bytes) -> list[Answer]:
        """An answer is an `Answer` as JSON."""
        values = json.loads(payload)
        if "outcome" not in values:
            return []
        names = tuple(values.pop("names", ()))
        return [Answer(Outcome(values.pop("outcome")), names=names, **values)]

    def replies(self, payload: bytes) -> list[str]:
        """To each ``{"test": ...}``."""
        test = json.loads(payload).get("test")
        return [] if test is None else [f"answer {test}"]

    def snapshot(self, name: str) -> Snapshot:
        """By the beginning of the name."""
        if name.startswith("new"):
            return Snapshot("resubscribe", self.every)
        return Snapshot("request" if name.startswith("ask") else "none", self.every)

    def snapshot_request(self, names: Sequence[str], ids: Iterator[int]) -> list[Request]:
        """One for all."""
        number = next(ids)
        text = json.dumps({"op": "snapshot", "names": names, "id": number})
        return [Request(text, tuple(names), True, str(number))]

    def reconnected(self) -> None:
        """Count it."""
        self.reconnections += 1


def answer(outcome: str, *names: str, number: int | None = None, reason: str = "") -> bytes:
    """A control message of the play server."""
    values: dict[str, Any] = {"outcome": outcome}
    if names:
        values["names"] = names
    if number is not None:
        values["id"] = str(number)
    if reason:
        values["reason"] = reason
    return json.dumps(values).encode()


@dataclass(frozen=True)
class Told:
    """What a server was told, and when."""

    time: float
    op: str
    names: tuple[str, ...]
    id: int | None

    @classmethod
    def parse(cls, time: float, text: str) -> Told:
        """A request of the play venue."""
        values = json.loads(text)
        return cls(time, values["op"], tuple(values["names"]), values["id"])


class Desk:
    """One `Subscriptions` and the texts it gives; the test is the server.

    Attributes:
        now: the time.
        told: all that was taken.
    """

    def __init__(
        self,
        venue: PlayVenue,
        *,
        own: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        linger: float = 5.0,
        connected: bool = True,
    ) -> None:
        self.venue = venue
        self.now = 1000.0
        self.told: list[Told] = []
        self.subscriptions = Subscriptions(venue.as_venue(), own=own, allow=allow, linger=linger)
        if connected:
            self.subscriptions.connected(self.now)

    def wish(
        self, slot: int, names: Collection[str], again: Collection[str] = ()
    ) -> dict[str, str]:
        """A worker's."""
        return self.subscriptions.wish(slot, names, self.now, again=again)

    def leave(self, slot: int) -> None:
        """A worker's end."""
        self.subscriptions.leave(slot, self.now)

    def take(self, most: int = 10_000) -> list[Told]:
        """What is sent now."""
        texts = self.subscriptions.take(self.now, most)
        told = [Told.parse(self.now, text) for text in texts]
        self.told += told
        if len(told) < most:
            deadline = self.subscriptions.deadline(self.now)
            assert deadline is None or deadline > self.now, "it would be asked for ever"
        return told

    def ops(self, most: int = 10_000) -> list[tuple[str, ...]]:
        """What is sent now: for each message the operation and the topics."""
        return [(told.op, *told.names) for told in self.take(most)]

    def heard(self, *payloads: bytes) -> None:
        """The server says this."""
        for payload in payloads:
            self.subscriptions.heard(payload, self.now)

    def confirm(self, told: Iterable[Told]) -> None:
        """The server does what it was told."""
        for one in told:
            outcome = "subscribed" if one.op == "subscribe" else "unsubscribed"
            if one.id is not None:
                self.heard(answer(outcome, number=one.id))
            else:
                self.heard(answer(outcome, *one.names))

    def run_for(self, seconds: float) -> list[tuple[str, ...]]:
        """Time passes and nothing is heard."""
        end = self.now + seconds
        ops: list[tuple[str, ...]] = []
        while True:
            ops += self.ops()
            deadline = self.subscriptions.deadline(self.now)
            if deadline is None or deadline > end:
                self.now = end
                return ops
            self.now = deadline

    def states(self, *names: str) -> list[TopicState]:
        """Of these topics."""
        return [self.subscriptions.state(name) for name in names]


@dataclass
class PlayServer:
    """Keeps subscriptions, refuses what is bad, answers late or not at all.

    Attributes:
        bad: topics that it refuses.
        named: it names what it refuses of a batch, and does the rest.
        delay: seconds until it answers, at most.
        loss: share of the answers that are lost.
        on: topics that are subscribed.
        subscribed: times at which each was subscribed, on this connection.
        ended: times at which each was unsubscribed.
        doubled: topics that were subscribed while they were.
    """

    confirmation: Confirmation
    bad: frozenset[str] = frozenset()
    named: bool = False
    delay: float = 0.0
    loss: float = 0.0
    seed: int = 0
    on: dict[str, None] = field(default_factory=dict)
    subscribed: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, list[float]] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._answers: list[tuple[float, int, bytes]] = []
        self._last = 0.0
        self._numbers = itertools.count()

    def disconnect(self) -> None:
        """The connection ends."""
        self.on.clear()
        self._answers.clear()
        self.subscribed.clear()

    @property
    def next_answer(self) -> float | None:
        """When it says something."""
        return self._answers[0][0] if self._answers else None

    def answers(self, now: float) -> list[bytes]:
        """What it says now."""
        said = []
        while self._answers and self._answers[0][0] <= now:
            said.append(heapq.heappop(self._answers)[2])
        return said

    def tell(self, told: Told) -> None:
        """A request comes."""
        if told.op == "snapshot":
            return
        if told.op == "unsubscribe":
            for name in told.names:
                if self.on.pop(name, ...) is None:
                    self.ended.setdefault(name, []).append(told.time)
            self._accept(told, told.names)
            return
        refused = [name for name in told.names if name in self.bad]
        in_part = self.named or self.confirmation is Confirmation.TOPIC
        accepted = [n for n in told.names if n not in self.bad] if in_part or not refused else []
        for name in accepted:
            if name in self.on:
                self.doubled.append(name)
            self.on[name] = None
            self.subscribed.setdefault(name, []).append(told.time)
        if accepted:
            self._accept(told, accepted)
        if refused and in_part:
            for name in refused:
                self._refuse(told, name)
        elif refused:
            self._refuse(told)

    def _accept(self, told: Told, names: Sequence[str]) -> None:
        outcome = "subscribed" if told.op == "subscribe" else "unsubscribed"
        if self.confirmation is Confirmation.ID:
            in_part = () if len(names) == len(told.names) else names
            self._say(told.time, answer(outcome, *in_part, number=told.id))
        elif self.confirmation is Confirmation.TOPIC:
            for name in names:
                self._say(told.time, answer(outcome, name))
        elif self.confirmation is Confirmation.LIST:
            self._say(told.time, answer("listed", *self.on))
        else:
            self._say(told.time, answer(outcome))

    def _refuse(self, told: Told, name: str | None = None) -> None:
        names = (name,) if name is not None and self.named else ()
        number = told.id if self.confirmation is Confirmation.ID else None
        self._say(told.time, answer("refused", *names, number=number, reason="bad topic"))

    def _say(self, now: float, payload: bytes) -> None:
        if self._random.random() < self.loss:
            return
        # Answers of one connection come in order.
        self._last = max(self._last, now + self._random.random() * self.delay)
        heapq.heappush(self._answers, (self._last, next(self._numbers), payload))
