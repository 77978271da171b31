"""Where topics wait for what is done next, and how many a connection has room for.

A topic that is in no request is in one of three places or in none: in the line of those that are to
be subscribed, in the line of those that are to be unsubscribed, or it lingers. `Places.put` decides
by what is wanted and what the server has.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque

from .ledger import Held, Topic

__all__ = ["Line", "Places"]


class Line:
    """Topics that wait to be subscribed, or to be unsubscribed, in order."""

    def __init__(self) -> None:
        self._topics: OrderedDict[str, Topic] = OrderedDict()
        self._apart: deque[list[str]] = deque()

    def __contains__(self, name: str) -> bool:
        return name in self._topics

    def __len__(self) -> int:
        return len(self._topics)

    def add(self, topic: Topic) -> None:
        """At the end, unless it is in the line."""
        self._topics.setdefault(topic.name, topic)

    def discard(self, topic: Topic) -> None:
        """Out of the line, if it is in it."""
        self._topics.pop(topic.name, None)

    def to_front(self, name: str) -> None:
        """Before all others, if it is in the line."""
        if name in self._topics:
            self._topics.move_to_end(name, last=False)

    def keep_apart(self, names: list[str]) -> None:
        """Those of these that are in the line go next, and in a request of their own."""
        self._apart.append(names)

    def next(self, most: int) -> list[Topic]:
        """The topics for the next requests, at most so many. They stay in the line."""
        while self._apart:
            names = [name for name in self._apart.popleft() if name in self._topics]
            if len(names) > most:
                self._apart.appendleft(names[most:])
            if names:
                return [self._topics[name] for name in names[:most]]
        return list(itertools.islice(self._topics.values(), most))

    def clear(self) -> None:
        """Nobody waits."""
        self._topics.clear()
        self._apart.clear()


class Places:
    """The places of all topics.

    Args:
        limit: topics that a connection may have.
        linger: seconds that a topic stays subscribed without being wanted.

    Attributes:
        joining: those that are to be subscribed.
        leaving: those that are to be unsubscribed.
        ending: how many are in requests that unsubscribe.
    """

    def __init__(self, limit: int, linger: float) -> None:
        self.joining = Line()
        self.leaving = Line()
        self.ending = 0
        self._limit = limit
        self._linger = linger
        self._lingering: OrderedDict[str, tuple[Topic, float]] = OrderedDict()  # until when
        self._held = 0  # that the server has or may have

    def clear(self) -> None:
        """The connection is gone."""
        self.joining.clear()
        self.leaving.clear()
        self._lingering.clear()
        self._held = self.ending = 0

    def line(self, *, subscribing: bool) -> Line:
        """One of the two."""
        return self.joining if subscribing else self.leaving

    def hold(self, topic: Topic, held: Held) -> None:
        """The server has this of the topic."""
        self._held += (held is not Held.NO) - (topic.held is not Held.NO)
        topic.held = held

    def put(self, topic: Topic, now: float) -> None:
        """Put a topic that is in no request where it belongs."""
        if topic.active:
            self._put_active(topic)
        else:
            self._put_inactive(topic, now)

    def _put_active(self, topic: Topic) -> None:
        self._lingering.pop(topic.name, None)
        if topic.held is not Held.YES:
            self.leaving.discard(topic)
            self.joining.add(topic)
        elif topic.renew:
            self.leaving.add(topic)
        else:
            self.joining.discard(topic)
            self.leaving.discard(topic)

    def _put_inactive(self, topic: Topic, now: float) -> None:
        self.joining.discard(topic)
        if topic.held is Held.NO:
            self.leaving.discard(topic)
        elif topic.held is Held.MAYBE or topic.wanted:  # beyond the limit, or without an answer
            self._lingering.pop(topic.name, None)
            self.leaving.add(topic)
        elif topic.name not in self.leaving:
            self._lingering.setdefault(topic.name, (topic, now + self._linger))

    @property
    def deadline(self) -> float | None:
        """When the first topic has lingered long enough."""
        return next((until for _, until in self._lingering.values()), None)

    def advance(self, now: float) -> bool:
        """Have those leave that have lingered long enough; were there any?"""
        due = self.deadline
        if due is None or due > now:
            return False
        while due is not None and due <= now:
            self._end_lingering()
            due = self.deadline
        return True

    def _end_lingering(self) -> None:
        """Have the one leave that has lingered longest."""
        topic, _ = self._lingering.popitem(last=False)[1]
        self.leaving.add(topic)

    def next_joining(self, most: int) -> list[Topic]:
        """The next to be subscribed, at most so many, as far as there is room for them."""
        room = self._limit - self._held
        topics = []
        for topic in self.joining.next(most):
            if topic.held is Held.NO:  # the others have a place
                if room <= 0:
                    continue
                room -= 1
            topics.append(topic)
        return topics

    def next_leaving(self, most: int) -> list[Topic]:
        """The next to be unsubscribed, at most so many. What lingers leaves early as far as others
        need its place, the longest unwanted first."""
        room = self._limit - self._held + len(self.leaving) + self.ending
        for _ in range(min(len(self.joining) - room, len(self._lingering))):
            self._end_lingering()
        return self.leaving.next(most)
