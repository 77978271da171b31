"""The server's subscriptions, kept equal to what workers want, without a socket or a clock.

    wish, leave, snapshot: workers   ──▶ ┌───────────────┐ ──▶ take: texts to send
    connected, disconnected, spent   ──▶ │ Subscriptions │ ──▶ changes: for the topic table
    heard: control messages          ──▶ └───────────────┘ ──▶ deadline of take

    for payload in control_messages:                   # first all answers, then the time
        subscriptions.heard(payload, now)
    for text in subscriptions.take(now, room):
        connection.send(text)
    for change in subscriptions.changes():
        table.set(change.name, change.state, change.reason)
    wait until subscriptions.deadline(now), or until something happens

Of each topic three things are known: how many want it, what the server has of it (`Held`), and the
one request that names it and has no answer. `_settle` compares them whenever one has changed, and
puts the topic into the line of those to be subscribed, into the line of those to be unsubscribed,
among those that linger, or nowhere. A topic is in at most one request at a time, so a wish that
changes under way waits for the answer and is settled then. A request is made when it can be sent,
for as many topics of its line as the venue lets into one; what is made goes out.

An answer belongs to the request whose id it bears, or to the requests that ask for the topics it
names. One that bears neither belongs to the oldest request, if that can be known (`in_flight`).
What is refused as a whole and has several topics is asked again in halves, until the refused one
stands alone. Where answers name topics, a batch gets an answer for each of its topics, so a refusal
without a name is only one of them.

A request that is not answered in time is made once more. Then the server may still have a topic
that is reported as refused, so that topic is unsubscribed: no subscription is without an owner. An
unsubscription that is not answered twice is taken for done.

All times are seconds of one monotonic clock, the caller's. What a call costs depends on what it
names or returns, not on how many topics there are; `connected` and `disconnected` touch each topic.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from .in_flight import InFlight
from .ledger import (
    Asked,
    Change,
    Held,
    Ready,
    SnapshotAsked,
    Topic,
    Wishes,
)
from .places import Places
from .rate import TokenBucket
from .snapshots import Snapshots
from .states import TopicState
from .templates import glob_matches
from .venue import Answer, Confirmation, Outcome, Venue

__all__ = ["NO_ANSWER", "Change", "SnapshotAsked", "Subscriptions", "TopicState"]

NO_ANSWER: Final = "no answer"
"""Reason of a topic that the server was asked for twice without saying anything."""

_FIRST_ID: Final = 1_000_000_001
"""Ids of requests count from here, far from those that workers write into messages of their own."""
_BATCH_TOPICS: Final = 1024
"""Topics for which requests are made at once, at most."""
_BATCH_REQUESTS: Final = 16
"""Requests that are made at once, about: the more, the better a venue can sort topics into them;
the fewer, the sooner a change of mind counts."""
_SNAPSHOTS_ASKED_MAX: Final = 1024


class Subscriptions:
    """What the server is asked for, on behalf of all workers.

    Args:
        venue: how the server is talked to.
        own: topics that are always wanted, whatever `allow` says.
        allow: patterns of the topics that workers may want, in which only ``*`` is special; None:
            all.
        linger: seconds between the last worker's leaving a topic and its unsubscription.

    Raises:
        ValueError: one of `own` can't be a topic, or they are more than the venue allows.
    """

    def __init__(
        self,
        venue: Venue,
        *,
        own: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        linger: float = 5.0,
    ) -> None:
        self._venue = venue
        self._allow = None if allow is None else tuple(allow)
        self._limit = venue.topics_per_connection or sys.maxsize
        self._beyond_limit = f"{venue.name} allows {self._limit} topics per connection"
        self._batch = _batch_topics(venue.topics_per_request)
        self._ids = itertools.count(_FIRST_ID)
        self._bucket = TokenBucket(venue.messages_per_second, venue.burst)
        # A heartbeat can't wait, so a token is left for it.
        self._reserve = 1 if venue.heartbeat is not None and venue.burst > 1 else 0
        self._changes: dict[str, Change] = {}
        # What is wanted.
        self._topics: dict[str, Topic] = {}
        self._wishes: dict[int, Wishes] = {}
        self._active = 0  # topics that are wanted and not refused
        self._snapshots = Snapshots(venue)
        self._snapshots_asked: deque[SnapshotAsked] = deque(maxlen=_SNAPSHOTS_ASKED_MAX)
        self._places = Places(self._limit, linger)
        # Requests.
        self._connected = False
        self._more = False  # `take` may have something, if the rate allows
        self._sources = (self._make_joining, self._make_leaving, self._make_snapshots)
        self._turn = 0
        self._ready: deque[Ready] = deque()
        self._in_flight = InFlight(venue)
        self._add_own(own)

    def _add_own(self, own: Iterable[str]) -> None:
        for name in dict.fromkeys(own):
            self._venue.check_name(name)
            if self._active == self._limit:
                raise ValueError(f"{self._beyond_limit}, and more are to be subscribed always")
            topic = self._topics[name] = Topic(name, own=True)
            self._settle(topic, 0.0)

    # ---- what workers want

    def wish(
        self, slot: int, names: Collection[str], now: float, *, again: Collection[str] = ()
    ) -> dict[str, str]:
        """What the worker in this slot wants, all of it: it replaces what it wanted before.

        A topic that was refused is asked for again if the worker did not want it before this call,
        or if it is in `again`.

        Args:
            slot: the worker's.
            names: the topics.
            now: the time.
            again: those that the worker has asked for since the last call, wanted before or not.

        Returns:
            Names that are not even asked for, and why: those that are not allowed, that can't be
            topics, or that are more than a connection may have. Only the latter are topics with a
            state, and are asked for after the next wish or on the next connection, if there is room
            then.
        """
        wishes = self._wishes.setdefault(slot, Wishes())
        wanted = dict.fromkeys(names)
        for name in [name for name in wishes.names if name not in wanted]:
            self._withdraw(slot, wishes, name, now)
        wishes.unasked = {name: why for name, why in wishes.unasked.items() if name in wanted}
        fresh = frozenset(again)
        unasked = {}
        for name in wanted:
            if name not in wishes.names:
                if name not in wishes.unasked:
                    self._add(wishes, name, now)
            elif name in fresh:
                self._ask_again(self._topics[name], now)
            if name in wishes.names and self._topics[name].refused == self._beyond_limit:
                unasked[name] = self._beyond_limit
        self._more = True
        return unasked | wishes.unasked

    def leave(self, slot: int, now: float) -> None:
        """The worker in this slot has left, died or was evicted."""
        wishes = self._wishes.pop(slot, Wishes())
        for name in list(wishes.names):
            self._withdraw(slot, wishes, name, now)
        self._more = True

    def snapshot(self, slot: int, name: str, now: float) -> None:
        """The worker in this slot, which has wished for the topic, wants its snapshot."""
        wishes = self._wishes.get(slot)
        if wishes is None or name not in wishes.names:
            return
        topic = self._topics[name]
        if topic.active and not topic.renew:
            self._snapshots.ask(slot, name, now, subscribed=topic.steady)
            self._more = True

    def _add(self, wishes: Wishes, name: str, now: float) -> None:
        """One worker more wants the topic."""
        fault = self._fault(name)
        if fault is not None:
            wishes.unasked[name] = fault
            return
        wishes.names[name] = None
        topic = self._topics.setdefault(name, Topic(name))
        topic.workers += 1
        self._ask_again(topic, now)

    def _fault(self, name: str) -> str | None:
        """Why workers can't ask for this name, if they can't."""
        if self._allow is not None and not any(glob_matches(glob, name) for glob in self._allow):
            return f"{name!r} is not among the topics that this manager allows"
        try:
            self._venue.check_name(name)
        except ValueError as error:
            return str(error)
        return None

    def _ask_again(self, topic: Topic, now: float) -> None:
        """The topic is asked for even if it was refused, if there is room for one more."""
        if not topic.counted:
            topic.refused = self._beyond_limit if self._active >= self._limit else None
        self._settle(topic, now)

    def _withdraw(self, slot: int, wishes: Wishes, name: str, now: float) -> None:
        """One worker less wants the topic."""
        del wishes.names[name]
        self._snapshots.withdraw(slot, name)
        topic = self._topics[name]
        topic.workers -= 1
        self._settle(topic, now)

    # ---- the connection

    def connected(self, now: float) -> None:
        """A connection is open: all that is wanted is asked for, refused or not before."""
        if self._connected:
            self.disconnected(now)
        self._venue.reconnected()
        self._connected = self._more = True
        for topic in list(self._topics.values()):
            if topic.refused is not None:
                self._ask_again(topic, now)

    def disconnected(self, now: float) -> None:
        """It is gone, and with it all subscriptions."""
        self._connected = False
        self._forget_requests()
        self._snapshots.disconnected()
        for topic in list(self._topics.values()):
            topic.disconnected()
            self._settle(topic, now)

    def _forget_requests(self) -> None:
        self._places.clear()
        self._ready.clear()
        self._in_flight.clear()
        self._turn = 0

    def spent(self, count: int, now: float) -> None:
        """So many messages were sent that did not come from `take`, and count for the server."""
        self._bucket.spend(count, now)

    # ---- what there is to see

    def changes(self) -> list[Change]:
        """What has changed since the last call, at most one change of a topic: the last one."""
        changes = list(self._changes.values())
        self._changes.clear()
        return changes

    def snapshots_asked(self) -> list[SnapshotAsked]:
        """The requests for snapshots that `take` has returned since the last call; only the last
        1024 of them."""
        asked = list(self._snapshots_asked)
        self._snapshots_asked.clear()
        return asked

    def state(self, name: str) -> TopicState:
        """Of this topic."""
        topic = self._topics.get(name)
        return TopicState.NONE if topic is None else topic.state

    def reason(self, name: str) -> str:
        """Why the topic is refused; empty if it is not."""
        topic = self._topics.get(name)
        return "" if topic is None else topic.reason

    def wanted_by(self, name: str) -> int:
        """How many workers want this topic."""
        topic = self._topics.get(name)
        return 0 if topic is None else topic.workers

    @property
    def is_behind(self) -> bool:
        """Do topics wait to be asked for on this connection?"""
        return self._connected and bool(self._places.joining or self._ready)

    @property
    def in_flight(self) -> int:
        """Requests that wait for an answer."""
        return len(self._in_flight)

    # ---- where a topic belongs

    def _settle(self, topic: Topic, now: float) -> None:
        """Something about the topic has changed: put it where it belongs, and report its state."""
        if not topic.wanted:
            topic.refused = None
        active = topic.active
        self._active += active - topic.counted
        topic.counted = active
        if topic.renew and not active:
            topic.renew = False
            self._places.leaving.discard(topic)  # it may linger instead
        if topic.asked is None:
            self._places.put(topic, now)
            if not topic.wanted and topic.held is Held.NO:
                del self._topics[topic.name]
                self._snapshots.forget(topic.name)
        state, reason = topic.current_state(), topic.refused or ""
        if (state, reason) != (topic.state, topic.reason):
            topic.state, topic.reason = state, reason
            self._changes.pop(topic.name, None)
            self._changes[topic.name] = Change(topic.name, state, reason)

    # ---- what is sent

    def take(self, now: float, most: int) -> list[str]:
        """The texts to send now, in order: at most `most`, and no more than the venue's rate lets
        through. Call it after `heard`: what has come in time is not to count as late."""
        self._advance(now)
        if not self._connected:
            return []
        texts: list[str] = []
        allowed = min(most, self._bucket.whole_tokens(now) - self._reserve)
        while len(texts) < allowed:
            ready = self._next(now)
            if ready is None:
                self._more = False
                break
            self._send(ready, now)
            texts.append(ready.request.text)
        self._bucket.spend(len(texts), now)
        return texts

    def deadline(self, now: float) -> float | None:
        """When `take` is to be called though nothing has happened; None: not at all. Not later than
        `now` only if the last call returned as much as it was asked for, or something happened
        since."""
        if not self._connected:
            return None
        times = [self._places.deadline, self._in_flight.deadline, self._snapshots.deadline]
        if self._more:
            times.append(now + self._bucket.ready_in(now, 1 + self._reserve))
        return min((time for time in times if time is not None), default=None)

    def _next(self, now: float) -> Ready | None:
        """The message that goes next, if one may."""
        if not self._in_flight.may_send:
            return None
        if not self._ready:
            self._make(now)
        return self._ready.popleft() if self._ready else None

    def _send(self, ready: Ready, now: float) -> None:
        request, asked = ready.request, ready.asked
        if asked is None:
            self._snapshots_asked.append(SnapshotAsked(ready.slot, request.id, request.names))
            return
        self._in_flight.sent(asked, now)

    def _make(self, now: float) -> None:
        """Make the next requests. Those who wait to subscribe go first, unless there is no room for
        them; the others that wait meanwhile take turns with them."""
        for _ in self._sources:
            make = self._sources[self._turn]
            self._turn = (self._turn + 1) % len(self._sources)
            make(now)
            if self._ready:
                break
        if not self._places.leaving and not self._snapshots.has_requests:
            self._turn = 0

    def _make_joining(self, now: float) -> None:
        while not self._ready and (topics := self._places.next_joining(self._batch)):
            self._make_requests(topics, now, subscribing=True)

    def _make_leaving(self, now: float) -> None:
        while not self._ready and (topics := self._places.next_leaving(self._batch)):
            self._make_requests(topics, now, subscribing=False)

    def _make_snapshots(self, _now: float) -> None:
        for slot, request in self._snapshots.requests(self._ids):
            self._ready.append(Ready(request, slot=slot))

    def _make_requests(self, topics: list[Topic], now: float, *, subscribing: bool) -> None:
        """Make requests for topics of a line, which leave it."""
        line = self._places.line(subscribing=subscribing)
        names = [topic.name for topic in topics]
        for request in self._venue.requests(names, subscribing=subscribing, ids=self._ids):
            asked = Asked(request, dict.fromkeys(request.names))
            self._ready.append(Ready(request, asked))
            for name in asked.unanswered:
                topic = self._topics[name]
                line.discard(topic)
                topic.ask(asked)
                self._places.hold(topic, Held.MAYBE)
                self._places.ending += not subscribing
                self._settle(topic, now)
        for topic in topics:
            if topic.asked is None:  # there is no way to ask: the server can't have acknowledged it
                line.discard(topic)
                if subscribing:
                    topic.refused = f"{self._venue.name} has no request for it"
                self._over(topic, Held.NO, now)

    # ---- time

    def _advance(self, now: float) -> None:
        """Do what is due."""
        if self._places.advance(now):
            self._more = True
        while (asked := self._in_flight.overdue(now)) is not None:
            self._expire(asked, now)
            self._more = True
        if self._in_flight.end_of_strays(now):
            self._more = True
        due = self._snapshots.deadline
        if due is not None and due <= now:
            for name in self._snapshots.advance(now, self._is_steady):
                self._topics[name].renew = True
                self._settle(self._topics[name], now)
            self._more = True

    def _is_steady(self, name: str) -> bool:
        topic = self._topics.get(name)
        return topic is not None and topic.steady

    def _expire(self, asked: Asked, now: float) -> None:
        """No answer, or not to all of it: make it once more."""
        if asked.refusals:
            self._split(asked, now, refused=False)
            return
        subscribing = asked.request.subscribing
        line = self._places.line(subscribing=subscribing)
        unanswered = list(asked.unanswered)
        again: list[str] = []
        for name in unanswered:
            topic = self._topics[name]
            self._take_off(asked, topic)
            if not topic.retried:
                topic.retried = True
                self._settle(topic, now)
                if name in line:
                    again.append(name)
            elif subscribing:
                topic.refused = NO_ANSWER
                self._over(topic, Held.MAYBE, now)
            else:
                self._over(topic, Held.NO, now)
        repeated = again == unanswered
        self._in_flight.give_up(asked, now, repeated=repeated)
        if repeated or self._in_flight.may_send:
            others, self._ready = self._ready, deque()
            topics = [self._topics[name] for name in again]
            self._make_requests(topics, now, subscribing=subscribing)
            self._ready.extend(others)
        else:
            line.keep_apart(again)

    # ---- what the server says

    def heard(self, payload: bytes, now: float) -> bool:
        """A control message of the server. One that is no answer, comes late or twice, or answers
        nothing that was asked, does nothing. Returns whether it is an answer."""
        answers = self._venue.answers(payload)
        for answer in answers:
            self._more = True
            if answer.outcome is Outcome.LISTED:
                self._listed(answer.names, now)
            elif answer.id is not None:
                self._answered_by_id(answer, now)
            elif answer.names:
                for name in answer.names:
                    self._answered_by_name(name, answer, now)
            else:
                self._answered_unnamed(answer, now)
        return bool(answers)

    def _listed(self, names: Sequence[str], now: float) -> None:
        """The server has these topics, and no others."""
        answer = Answer(Outcome.SUBSCRIBED)
        for name in names:
            self._answered_by_name(name, answer, now)
        listed = frozenset(names)
        for asked in self._in_flight.unsubscribing:
            gone = [name for name in asked.unanswered if name not in listed]
            self._answered(asked, gone, Answer(Outcome.UNSUBSCRIBED), now)

    def _answered_by_id(self, answer: Answer, now: float) -> None:
        asked = self._in_flight.with_id(answer.id or "")
        if asked is not None and answer.names:
            self._answered(asked, answer.names, answer, now)
        elif asked is not None:
            self._answered_as_a_whole(asked, answer, now)

    def _answered_by_name(self, name: str, answer: Answer, now: float) -> None:
        topic = self._topics.get(name)
        if topic is None:
            return
        subscribed = answer.outcome is Outcome.SUBSCRIBED
        refused = answer.outcome is Outcome.REFUSED
        asked = topic.asked
        if asked is not None:
            if asked.sent is not None and (refused or subscribed == asked.request.subscribing):
                self._answered(asked, [name], answer, now)
        elif topic.held is Held.MAYBE and topic.subscribing and (subscribed or topic.active):
            # Late, but nothing was asked of the server since.
            if topic.refused is not None and self._active >= self._limit:
                return
            topic.refused = answer.reason if refused else None
            self._over(topic, Held.YES if subscribed else Held.NO, now)

    def _answered_unnamed(self, answer: Answer, now: float) -> None:
        asked = self._in_flight.answered_by(answer)
        if asked is not None:
            self._answered_as_a_whole(asked, answer, now)

    def _answered_as_a_whole(self, asked: Asked, answer: Answer, now: float) -> None:
        """The server has answered a request, and names none of its topics."""
        if answer.outcome is not Outcome.REFUSED or len(asked.unanswered) == 1:
            self._answered(asked, list(asked.unanswered), answer, now)
        elif self._venue.confirmation is Confirmation.TOPIC:
            self._in_flight.refused_in_part(asked, answer.reason, now)
            self._find_refused(asked, now)
        else:
            self._split(asked, now, refused=True)

    def _find_refused(self, asked: Asked, now: float) -> None:
        """Are as many topics left as were refused? Then it is these."""
        if 0 < len(asked.unanswered) <= asked.refusals:
            refusal = Answer(Outcome.REFUSED, reason=asked.reason)
            self._answered(asked, list(asked.unanswered), refusal, now)

    def _answered(self, asked: Asked, names: Iterable[str], answer: Answer, now: float) -> None:
        """The server has answered a request, as far as these topics of it go."""
        refused = answer.outcome is Outcome.REFUSED
        for name in names:
            if name not in asked.unanswered:
                continue
            topic = self._topics[name]
            self._take_off(asked, topic)
            if not asked.request.subscribing:  # a refusal: the server does not know it
                self._over(topic, Held.NO, now)
                self._places.joining.to_front(name)  # others have it for granted
            elif refused:
                topic.refused = answer.reason
                self._over(topic, Held.MAYBE if topic.doubtful else Held.NO, now)
            else:
                self._over(topic, Held.YES, now)
        if not asked.unanswered:
            self._in_flight.answered(asked)
        else:
            self._find_refused(asked, now)

    def _split(self, asked: Asked, now: float, *, refused: bool) -> None:
        """Make a request again in halves: it was refused as a whole (`refused`), or for some of its
        topics, and it is not known for which."""
        subscribing = asked.request.subscribing
        names = list(asked.unanswered)
        for name in names:
            topic = self._topics[name]
            self._take_off(asked, topic)
            topic.retried = False
            if subscribing and refused and not topic.doubtful:
                self._places.hold(topic, Held.NO)
            self._settle(topic, now)
        line = self._places.line(subscribing=subscribing)
        half = (len(names) + 1) // 2
        line.keep_apart(names[:half])
        line.keep_apart(names[half:])
        self._in_flight.answered(asked)

    def _take_off(self, asked: Asked, topic: Topic) -> None:
        """The topic does not wait for this request any more."""
        asked.unanswered.pop(topic.name, None)
        topic.asked = None
        self._places.ending -= not asked.request.subscribing

    def _over(self, topic: Topic, held: Held, now: float) -> None:
        """It is known what the server has of the topic, or is known never to be."""
        topic.retried = False
        self._places.hold(topic, held)
        self._settle(topic, now)
        if held is Held.YES:
            self._snapshots.subscribed(topic.name, now)


def _batch_topics(per_request: int | None) -> int:
    """For how many topics requests are made at once."""
    if per_request is None:
        return _BATCH_TOPICS
    return 1 if per_request == 1 else min(_BATCH_TOPICS, _BATCH_REQUESTS * per_request)
