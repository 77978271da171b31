"""A member of a work group at a gateway's socket: what ``attach("unix:/PATH", group="pricing")``
gives.

The gateway has the member; this end has the messages that came, up to `in_flight`, says of each
when it is done, and sees to it that threads and tasks get each message once, and those of a key
never two at a time. What was not acknowledged when a connection ends is other members'; what of it
was not handed out yet is dropped here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NoReturn, Self

from ringcast import shm
from ringcast.shm.aio import MESSAGES_A_TURN

from ._socket_feed import SocketMessage
from .addresses import ClientAddress
from .deadlines import deadline
from .gateway_link import Query
from .socket_feed import SocketFeed
from .socket_lease import Grant, Hand, Lease, SocketGroupBatch, SocketGroupMessage, key_of
from .wire import HEADER_SIZE, Record, RecordType, encode

__all__ = ["SocketGroupFeed"]

_LOOK_S: Final = 0.1
"""Seconds after which one that waits looks for what other threads have let go of, and for room for
what is to be said."""
_ANSWERS_MOST: Final = 512 * HEADER_SIZE
"""Bytes of DONE and GIVE_BACK in one frame."""


class SocketGroupFeed(SocketFeed):
    """The server's messages shared out among the members of a work group, through a gateway; made
    with ``attach("unix:/PATH", group="pricing")`` and the like.

    It has the methods of a `GroupFeed`. Messages have bytes of their own: holding them holds nobody
    up. Threads and tasks may share it: each message goes to one of them, and with balance "key"
    those of one key never to two at a time. A forked child can't use it; it attaches anew.

    The gateway sends messages ahead, at most `in_flight` that are not acknowledged, 64 unless the
    address says otherwise: ``unix:/PATH?in_flight=1``. They are this member's, though it has not
    handed them out yet.

    It lives longer than its gateway, and than the ring, and connects again by itself. What it had
    in hand then is others', or comes again: its `ack` raises Evicted. Iterating ends only with
    `close`, which raises RingClosed in who waits.

    What it can't do: zero-copy, `lag`, and knowing of topics more than their names.
    """

    def __init__(self, address: ClientAddress, query: Query, *, auto_ack: bool) -> None:
        super().__init__(address, query, events=False)
        self._any_order = True
        self._auto_ack = auto_ack
        self._numbers = itertools.count(1)
        self._local = threading.local()  # the hands of threads
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], Hand] = (
            weakref.WeakKeyDictionary()
        )
        self._by_key = query.balance == "key"
        # Protected by _changed, as all below.
        self._connection = 0
        self._answered = False  # something was said over this connection
        self._answers = bytearray()  # records that the socket had no room for
        self._deferred: list[SocketMessage] = []  # of keys that another hand has
        self._busy: dict[int, list[int]] = {}  # by key, the hands that have messages of it
        self._returned: collections.deque[Grant] = collections.deque()  # dropped, not said yet

    @classmethod
    def attach(cls, address: ClientAddress, *, events: bool = False, **given: Any) -> Self:
        """As the function `attach`, for the address of a socket and a group; `given` are those of
        its arguments that have no default value here: group, balance, auto_ack, max_deliveries,
        start, label, topics, others.

        Raises:
            shm.RingNotFound: the gateway has no ring now, or the group no room.
            GatewayUnreachable: no gateway answers there, or it doesn't let this client in.
            ValueError: a bad argument, or the group has other parameters.
        """
        if events:
            raise ValueError("a group handles messages: it has no events")
        if "timeout" in given:
            raise ValueError("a group has no timeout over a socket: its topics are the manager's")
        if isinstance(given.get("topics"), str):
            raise TypeError(f"topics is a list of names and patterns: [{given['topics']!r}]")
        if given.get("topics") is not None:
            given["topics"] = tuple(dict.fromkeys(given["topics"]))
        auto_ack = given.pop("auto_ack", True)
        feed = cls(address, Query.merge(address.target, given), auto_ack=auto_ack)
        try:
            feed._open()
            # Where to begin counts for a group that is made; another ring's is to miss nothing.
            feed._query = dataclasses.replace(feed._query, start="oldest")
        except BaseException:
            feed.close()
            raise
        return feed

    @property
    def group(self) -> str:
        """The group's name."""
        return self._query.group or ""

    @property
    def balance(self) -> str:
        """How the group shares messages out."""
        return self._query.balance or "any"

    @property
    def policy(self) -> Literal["group"]:
        """As of every member of a group: what the group has not done holds the ring."""
        return "group"

    def subscribe(self, *topics: str, **_: object) -> NoReturn:
        """Not for a group: its topics are fixed when it is made.

        Raises:
            shm.RingError: always.
        """
        raise shm.RingError(
            f"group {self.group!r} can't want {topics!r:.60}: its topics are fixed when it is made;"
            " attach to a group of another name"
        )

    unsubscribe = subscribe

    # -- hands

    def _hand_here(self) -> Hand:
        """The calling thread's."""
        hand: Hand | None = getattr(self._local, "hand", None)
        if hand is None:
            hand = self._local.hand = Hand(next(self._numbers))
        return hand

    def _hand_of_task(self) -> Hand:
        """The current task's."""
        task = asyncio.current_task()
        assert task is not None
        hand = self._tasks.get(task)
        if hand is None:
            hand = self._tasks[task] = Hand(next(self._numbers))
        return hand

    def _ask_for(self, hand: Hand) -> None:
        """Whoever's hand it is asks for the next: what it had is done. There is something in it
        with `auto_ack` alone."""
        self._check_open()
        leases, hand.leases, hand.loop = hand.leases, [], None
        grants = [grant for each in leases if each.is_open for grant in each.end(RecordType.DONE)]
        if grants:
            with contextlib.suppress(shm.Evicted):  # others have it: nobody asks what became of it
                self.ends(RecordType.DONE, grants)

    # -- what leases say

    def ends(self, how: RecordType, grants: Sequence[Grant]) -> None:
        """Say that these are done, or given back.

        Raises:
            shm.Evicted: some are others', as their connection has ended; the others are said.
            shm.RingClosed: this end is closed.
        """
        self._check_open()
        with self._changed:
            ours = self._say(how, grants)
            self._post_answers()
            ours = ours and (self._link is not None or not grants)
        if not ours:
            raise shm.Evicted(
                "the connection over which this came has ended, and others have it now: the feed"
                " goes on with what comes over the next one"
            )

    def dropped(self, grant: Grant) -> None:
        """This is given back: its lease goes. Waits for nothing, and may come at any moment."""
        if self.closed or os.getpid() != self._pid:
            return
        self._returned.append(grant)
        if self._changed.acquire(blocking=False):  # else whoever asks next says it
            try:
                self._say_returned()
                self._post_answers(wait=False)
            finally:
                self._changed.release()

    def _say_returned(self) -> None:
        while self._returned:
            self._say(RecordType.GIVE_BACK, [self._returned.popleft()])

    def _say(self, how: RecordType, grants: Iterable[Grant]) -> bool:
        ours = True
        for grant in grants:
            self._free(grant.keys)
            if grant.connection != self._connection or self._link is None:
                ours = False
                continue
            for sequence in grant.sequences:
                self._answers += encode(Record(how, sequence=sequence))
        return ours

    def _post_answers(self, *, wait: bool = True) -> None:
        """Send what is to be said, as far as the socket takes it. A finalizer may come in between
        at any place."""
        while self._answers:
            answers, self._answers = self._answers, bytearray()
            if not self._try_post(bytes(answers[:_ANSWERS_MOST]), wait=wait):
                self._answers = answers + self._answers
                return
            self._answered = True
            self._answers = answers[_ANSWERS_MOST:] + self._answers

    def _free(self, keys: Sequence[int]) -> None:
        """A hand has done with messages of these keys."""
        for key in keys:
            hands = self._busy.get(key, [])
            del hands[:1]
            if not hands:
                self._busy.pop(key, None)
        if keys and self._deferred:
            self._changed.notify_all()
            self._wake_tasks()

    # -- connections

    @property
    def _next(self) -> None:
        """Where to go on is the group's affair."""
        return

    def _begin(self) -> None:
        self._forget()  # it is others' by now
        super()._begin()
        self._connection += 1
        self._answered = False
        self._answers.clear()
        self._deferred.clear()

    def _awaits_end(self) -> bool:
        return self._answered or super()._awaits_end()

    def close(self) -> None:
        """End the connection: what is not acknowledged goes to others at once. Calls that wait
        raise RingClosed. Closing twice is fine."""
        if not self.closed and os.getpid() == self._pid:
            with self._changed:
                self._say_returned()
                self._post_answers()
        super().close()

    # -- taking

    def _take_for(self, hand: Hand) -> SocketMessage | None:
        """The next message for this hand; None: there is none now."""
        with self._changed:
            self._say_returned()
            self._post_answers()
            if self._link is None:
                self._set_aside(sys.maxsize)  # for what else is there
                self._forget()
                self._deferred.clear()
                return None
            if not self._by_key:
                return self._take()
            return self._take_by_key(hand)

    def _take_by_key(self, hand: Hand) -> SocketMessage | None:
        passed_over: set[int] = set()
        for place, message in enumerate(self._deferred):
            key = key_of(message)
            if key not in passed_over and self._is_free(key, hand):
                del self._deferred[place]
                return self._taken_by(hand, key, message)
            passed_over.add(key)
        while (found := self._take()) is not None:
            key = key_of(found)
            if key not in passed_over and self._is_free(key, hand):
                return self._taken_by(hand, key, found)
            passed_over.add(key)
            self._deferred.append(found)
        return None

    def _is_free(self, key: int, hand: Hand) -> bool:
        hands = self._busy.get(key)
        return not hands or hands[0] == hand.number

    def _taken_by(self, hand: Hand, key: int, message: SocketMessage) -> SocketMessage:
        self._busy.setdefault(key, []).append(hand.number)
        return message

    def _lease_for(self, hand: Hand, messages: Sequence[SocketMessage]) -> Lease:
        keys = tuple(key_of(each) for each in messages) if self._by_key else ()
        grant = Grant(self._connection, tuple(each.sequence for each in messages), keys)
        lease = Lease(self, grant)
        if self._auto_ack:
            hand.leases.append(lease)
        return lease

    def _hand_out(self, hand: Hand, message: SocketMessage) -> SocketGroupMessage:
        return SocketGroupMessage.of(message, self._lease_for(hand, [message]))

    def _take_one(self, hand: Hand) -> SocketGroupMessage | None:
        with self._changed:
            message = self._take_for(hand)
            return None if message is None else self._hand_out(hand, message)

    def _take_many(self, hand: Hand, limit: int) -> list[SocketMessage]:
        if limit < 1:
            raise ValueError(f"limit is a number of messages, 1 or more, not {limit}")
        found: list[SocketMessage] = []
        while len(found) < limit and (message := self._take_for(hand)) is not None:
            found.append(message)
        return found

    def _wait_for(self, hand: Hand, until: float) -> SocketGroupMessage | None:
        while (message := self._take_one(hand)) is None:
            self._arrive(_slice(until))
            if time.monotonic() >= until:
                return self._take_one(hand)
        return message

    async def _wait_async_for(self, hand: Hand) -> SocketGroupMessage:
        while (message := self._take_one(hand)) is None:
            await self._arrive_async(_LOOK_S)
        return message

    # -- reading

    def read(self, timeout: float | None = None) -> SocketGroupMessage | None:
        """The next message for this member, waiting for it. With `auto_ack` this says that the one
        before, of the same thread, is done.

        Args:
            timeout: seconds; None waits as long as it takes, 0 not at all.

        Returns:
            The message, or None if none came in time.

        Raises:
            shm.RingClosed: this end is closed, or is the parent process's.
            shm.RingCorrupt: the other end sends what no gateway sends.
        """
        hand = self._hand_here()
        self._ask_for(hand)
        return self._wait_for(hand, deadline(timeout))

    def read_available(self, limit: int = 256) -> list[SocketGroupMessage]:  # type: ignore[override]
        """Up to `limit` messages that are there, without waiting. Raises as `read` does."""
        hand = self._hand_here()
        self._ask_for(hand)
        with self._changed:
            found = [self._hand_out(hand, each) for each in self._take_many(hand, limit)]
        if not found and self._arrive(0.0):
            with self._changed:
                found = [self._hand_out(hand, each) for each in self._take_many(hand, limit)]
        return found

    def batch(  # type: ignore[override]
        self, limit: int = 65536, timeout: float | None = None
    ) -> SocketGroupBatch:
        """The next messages for this member at once, acknowledged as one, waiting for the first;
        use it in a ``with`` block. It has at most `in_flight` messages.

        Args:
            limit: at most so many messages.
            timeout: seconds to wait for the first; None waits as long as it takes.

        Returns:
            The batch; an empty one if nothing came in time.

        Raises: as `read` does.
        """
        hand = self._hand_here()
        self._ask_for(hand)
        until = deadline(timeout)
        while True:
            with self._changed:
                found = self._take_many(hand, limit)
                lease = self._lease_for(hand, found) if found else None
            if found or time.monotonic() >= until:
                return SocketGroupBatch(found, lease, auto_ack=self._auto_ack)
            self._arrive(_slice(until))

    def ack(
        self,
        messages: SocketGroupMessage
        | SocketGroupBatch
        | Iterable[SocketGroupMessage | SocketGroupBatch],
    ) -> None:
        """Acknowledge a message, or several: all that can be, before it raises for one that can't.

        Raises:
            TypeError: one is no message of this feed; none was acknowledged.
            shm.Evicted, ValueError, shm.RingClosed: as `SocketGroupMessage.ack` does.
        """
        if isinstance(messages, (SocketGroupMessage, SocketGroupBatch)):
            messages = [messages]
        found = list(messages)
        for message in found:
            if not isinstance(message, (SocketGroupMessage, SocketGroupBatch)) or (
                message.lease is not None and message.lease.feed is not self
            ):
                raise TypeError(f"{message!r:.60} is no message of this feed")
        grants: list[Grant] = []
        failure: ValueError | None = None
        for message in found:
            try:
                if message.lease is not None:
                    grants += message.lease.end(RecordType.DONE)
            except ValueError as error:  # the others are done all the same
                failure = failure or error
        self.ends(RecordType.DONE, grants)
        if failure is not None:
            raise failure

    def __iter__(self) -> Iterator[SocketGroupMessage]:
        return _Loop(self, self._hand_here())

    def __next__(self) -> SocketGroupMessage:
        message = self.read()
        assert message is not None
        return message

    def __aiter__(self) -> _AsyncLoop:  # type: ignore[override]
        return _AsyncLoop(self, self._hand_of_task())

    async def __anext__(self) -> SocketGroupMessage:
        hand = self._hand_of_task()
        self._ask_for(hand)
        return await self._wait_async_for(hand)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._address.shown}"
        return f"<SocketGroupFeed of {self.group!r} of {self.name!r} by {self.balance} {state}>"


def _slice(until: float) -> float:
    return min(_LOOK_S, max(0.0, until - time.monotonic()))


class _Loop:
    """A ``for`` loop over a feed. When it goes, what it handed out last is given back."""

    __slots__ = ("_feed", "_hand")

    def __init__(self, feed: SocketGroupFeed, hand: Hand) -> None:
        self._feed = feed
        self._hand = hand

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SocketGroupMessage:
        self._hand = self._feed._hand_here()
        message = self._feed.read()
        assert message is not None
        self._hand.loop = id(self)
        return message

    def __del__(self) -> None:
        if self._hand.loop == id(self):
            self._hand.drop()


class _AsyncLoop:
    """An ``async for`` loop, likewise."""

    __slots__ = ("_feed", "_hand", "_taken")

    def __init__(self, feed: SocketGroupFeed, hand: Hand) -> None:
        self._feed = feed
        self._hand = hand
        self._taken = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SocketGroupMessage:
        self._taken += 1
        if self._taken % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        self._hand = self._feed._hand_of_task()
        message = await self._feed.__anext__()
        self._hand.loop = id(self)
        return message

    def __del__(self) -> None:
        if self._hand.loop == id(self):
            self._hand.drop()
