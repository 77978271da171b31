"""A worker's end of a gateway's socket: what ``attach("unix:/PATH")``, ``attach("ws://HOST:PORT")``
and ``attach("wss://HOST:PORT")`` give.

Messages are decoded in `_socket_feed`, and what the connection needs is in socket_connection.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ringcast import shm
from ringcast.shm.aio import MESSAGES_A_TURN

from ._socket_feed import SocketBatch, SocketMessage
from .addresses import ClientAddress
from .answers import (
    REQUEST_TIMEOUT,
    Answer,
    Following,
    OneAnswer,
    Payload,
    Sink,
    encoded_request,
    no_answer,
)
from .deadlines import deadline, seconds_to
from .gateway_link import Query
from .sending import MessageKind, check_length, encoded
from .socket_connection import GatewayConnection
from .socket_requests import SocketFollowing
from .state import ConnectionState, Phase
from .subscribing import SubscriptionRefused
from .turns import Turns
from .wire import Record, RecordType, encode

if TYPE_CHECKING:
    from typing_extensions import Buffer


__all__ = ["SocketFeed", "SocketTopic"]

_UNDER_WAY_MOST: Final = 1024
"""Messages sent that the gateway has not answered."""
_MISSING: Final = frozenset(
    ("lag", "note", "received", "skipped", "slot", "topic_state", "writer_alive")
)
"""What a `Feed` has, and a socket doesn't tell."""


class SocketTopic(NamedTuple):
    """A topic of which a feed knows the name.

    Attributes:
        topic: its id in the ring.
        name: its name.
    """

    topic: int
    name: str


class SocketFeed(GatewayConnection):
    """The server's messages through a gateway; made with ``attach("unix:/PATH")`` and the like.

    It has the methods of a `Feed`. Messages have bytes of their own: holding them holds nobody up.
    Threads may share it: each message goes to one of them. A forked child can't use it; it attaches
    anew.

    It lives longer than its gateway, and than the ring: while there is none, it waits until one is
    back, and `state` says so. Iterating it ends only with `close`, which raises RingClosed in who
    waits. Each `gap` is exact within one ring; when the manager has made another one, of the same
    name, it begins with that one's oldest message, and what was missed of the ring before is not
    known.

    What it can't do: zero-copy (the kernel copies each message once), `lag`, and knowing of topics
    more than their names.
    """

    def __init__(self, address: ClientAddress, query: Query, *, events: bool) -> None:
        super().__init__(address, query, events=events)
        self._taken = 0
        self._turns = Turns()  # of tasks that send

    @classmethod
    def attach(cls, address: ClientAddress, *, events: bool = False, **given: Any) -> Self:
        """As the function `attach`, for the address of a socket; `given` are those of its arguments
        that have no default value here: policy, start, label, topics, others, timeout.

        Raises:
            shm.RingNotFound: the gateway has no ring now.
            GatewayUnreachable: no gateway answers there, or it doesn't let this client in. It is a
                `shm.RingError` and a ConnectionRefusedError.
            ValueError: a bad argument, or a start that is not published yet.
            SubscriptionRefused, TimeoutError: with `timeout`, as `subscribe`.
        """
        timeout = given.pop("timeout", None)
        if isinstance(given.get("topics"), str):
            raise TypeError(f"topics is a list of names and patterns: [{given['topics']!r}]")
        if given.get("topics") is not None:
            given["topics"] = tuple(dict.fromkeys(given["topics"]))
        feed = cls(address, Query.merge(address.target, given), events=events)
        try:
            feed._open()
            if timeout is not None and feed.subscriptions:
                feed._wish(RecordType.SUBSCRIBE, feed.subscriptions, timeout, wait=True)
        except BaseException:
            feed.close()
            raise
        return feed

    # -- reading

    def _wait_for_message(self, timeout: float | None) -> SocketMessage | None:
        until = deadline(timeout)
        while True:
            self._arrive(seconds_to(until))
            if (message := self._take()) is not None:
                return message
            if time.monotonic() >= until:
                return None

    def batch(self, limit: int = 65536, timeout: float | None = None) -> SocketBatch:
        """What has come, up to `limit` messages; as `Feed.batch`, but the kernel has copied them
        once, and the descriptors are a copy.

        Args:
            limit: how many at most; a batch has no more than came at once, up to 256 KiB.
            timeout: seconds to wait for the first; None waits as long as it takes.

        Returns:
            The batch; an empty one if nothing came in time.

        Raises: as `read` does.
        """
        until = deadline(timeout)
        while not (batch := self._batch(limit)) and time.monotonic() < until:
            self._arrive(seconds_to(until))
        return batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SocketMessage:
        self._taken += 1
        if self._taken % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        while (message := self._take()) is None:
            await self._arrive_async(None)
        return message

    # -- what is known

    @property
    def policy(self) -> str:
        """What the gateway does when this feed is too slow: "block" or "lossy"."""
        return self._query.policy

    @property
    def topics(self) -> list[SocketTopic]:
        """The topics of which the gateway has told the names: those that the ring has had until
        now, as far as has been received."""
        return [SocketTopic(topic, name) for topic, name in sorted(self._names.copy().items())]

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What this feed wants: names and patterns, as `attach` and `subscribe` were given them."""
        return self._query.topics or ()

    @property
    def chooses(self) -> bool:
        """Was it attached with `topics`?"""
        return self._query.topics is not None

    @property
    def state(self) -> ConnectionState:
        """The connection, as the newest state says that has come. While there is no gateway, or no
        ring, its phase is ORPHANED; after the manager's end STOPPED.

        Raises:
            shm.RingClosed: this end is closed.
            shm.RingError: none has come: no manager writes the ring.
        """
        self._check_open()
        if self._look_through() and self._arrive(0.0, messages=False):
            self._look_through()
        state = ConnectionState.decode(self._note or b"")
        if state is None:
            raise shm.RingError(f"ring {self.name!r} is not a manager's: it has no connection")
        if self._link is None and state.phase is not Phase.STOPPED:
            phase = Phase.STOPPED if self._ended else Phase.ORPHANED
            state = dataclasses.replace(state, phase=phase, last_error=self._why)
        return state

    if not TYPE_CHECKING:  # a type checker knows what is not there

        def __getattr__(self, name: str) -> Any:
            why = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _MISSING:
                why = f"not over a socket: {name}. Attach to the ring, where it can be mapped"
            raise AttributeError(why, name=name, obj=self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.cursor}"
        return f"<SocketFeed of {self.name!r} at {self._address.shown} {state}>"

    # -- choosing

    def subscribe(
        self,
        *topics: str,
        timeout: float | None = None,
        wait: bool = True,
        snapshot: bool = False,
    ) -> None:
        """Want these topics, too; as `Feed.subscribe`, of a feed that was attached with `topics`.

        Args:
            topics: names and patterns.
            timeout: seconds to wait for the server's answer; None waits as long as it takes.
            wait: False does not wait for it.
            snapshot: not over a socket.

        Raises:
            SubscriptionRefused: the server, or the manager, does not give a topic.
            TimeoutError: no answer in time; the wish stands.
            ValueError: a topic can't be asked for over a socket, or the list would become too long,
                or this feed gets every topic. Nothing has changed then.
            shm.RingClosed: this end is closed.
        """
        if snapshot:
            raise ValueError(
                "not over a socket: snapshot. Attach to the ring, where it can be mapped"
            )
        self._choose(lambda wanted: (*wanted, *topics))
        self._wish(RecordType.SUBSCRIBE, topics, timeout, wait=wait)

    def unsubscribe(self, *topics: str) -> None:
        """Want these no more, as they were given to `attach` and `subscribe`. They may still come
        for a moment: what is under way is not called back.

        Raises:
            ValueError: this feed gets every topic.
            shm.RingClosed: this end is closed.
        """
        self._choose(lambda wanted: tuple(topic for topic in wanted if topic not in topics))
        self._wish(RecordType.UNSUBSCRIBE, topics, None, wait=False)

    def _choose(self, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        self._check_open()
        with self._changed:
            wanted = self._query.topics
            if wanted is None:
                raise ValueError("this feed gets every topic: attach with topics=[] to choose")
            query = dataclasses.replace(self._query, topics=tuple(dict.fromkeys(change(wanted))))
            query.target(self._address)  # which must not become too long
            self._query = query

    def _wish(
        self, kind: RecordType, topics: Iterable[str], timeout: float | None, *, wait: bool
    ) -> None:
        names = tuple(topics)
        if not names:
            return
        until = deadline(timeout)
        sent = self._try_wish(kind, names)
        while sent == 0 and self._link is not None and time.monotonic() < until:
            self.work(until)
            sent = self._try_wish(kind, names)
        if not wait:
            return
        while not self._tickets.is_answered(sent) or self._link is None:
            if time.monotonic() >= until:
                raise TimeoutError("no answer of the gateway in time: the wish stands")
            self.work(until)
        why = self._tickets.outcome(sent)
        if why:
            reasons = _reasons(why) or dict.fromkeys(sorted(names), why)
            first = next(iter(reasons))
            raise SubscriptionRefused(f"{', '.join(reasons)} refused: {reasons[first]}", reasons)

    def _try_wish(self, kind: RecordType, names: tuple[str, ...]) -> int:
        """Send a wish. Returns its number; 0 if that can't be done now."""
        with self._changed:
            number = self._tickets.new()
            record = Record(kind, "\0".join(names).encode(), key=number)
            self._tickets.wish(number)
            if self._try_post(encode(record)):
                return number
            self._tickets.outcome(number)
            return 0

    # -- sending

    def send(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> int:
        """Send a message to the server, through the gateway and the manager.

        Args:
            payload: a str (UTF-8), or bytes or any C-contiguous buffer; copied.
            kind: as in `Feed.send`.
            timeout: seconds to wait while there is no gateway, its socket is full, or 1,024
                messages are under way; None waits as long as it takes.

        Returns:
            The message's ticket: its number among those of this feed, which grow.

        Raises:
            shm.RingFull: not in time. Nothing was sent.
            shm.MessageTooLarge: longer than the ring's longest message.
            shm.SendRejected: messages sent before were rejected, by the manager or the gateway.
                Nothing was sent.
            shm.SendUnconfirmed: a connection to the gateway ended before messages sent before were
                confirmed. Nothing was sent.
            shm.RingClosed: this end is closed.
            ValueError: `kind` is another, or text as "text" is not UTF-8.
        """
        until = deadline(timeout)
        record = self._message(payload, kind)
        while (ticket := self._try_send(record)) is None:
            if time.monotonic() >= until:
                raise shm.RingFull(_no_room(self))
            self.work(until)
        return ticket

    def try_send(self, payload: str | Buffer, *, kind: MessageKind | None = None) -> int | None:
        """As `send`, but waits for nothing: the ticket, or None if the message can't be sent now.
        Of one that the socket takes in part, the rest goes with the next call that sends, reads or
        flushes.

        Raises: as `send` does, without RingFull.
        """
        record = self._message(payload, kind)
        if self._tickets.under_way >= _UNDER_WAY_MOST:
            self.work(0.0)
        return self._try_send(record)

    async def asend(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `send`, for asyncio: other tasks go on while it waits. Tasks send in the order in
        which they came. Cancelled while it waits, it has sent nothing.

        Raises: as `send` does.
        """
        until = deadline(timeout)
        record = self._message(payload, kind)
        turn = self._turns.lock()
        if not turn.locked() and (ticket := self._try_send(record)) is not None:
            return ticket
        try:
            async with asyncio.timeout(timeout), turn:
                while (ticket := self._try_send(record)) is None:
                    await self.work_async(until)
                return ticket
        except TimeoutError:
            raise shm.RingFull(_no_room(self)) from None

    def flush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """Wait until the manager has handed a message to the socket. Messages that come meanwhile
        are kept for who reads, up to 64 MiB.

        Args:
            ticket: of the message; None for the last one sent here.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not in time; it may still be sent.
            shm.SendRejected, shm.SendUnconfirmed, shm.RingClosed: as `send` does.
        """
        until = deadline(timeout)
        number = self._tickets.last if ticket is None else ticket
        while not self._is_done(number):
            if time.monotonic() >= until:
                raise TimeoutError(f"message {number} was not delivered in time; it may still be")
            self.work(until)

    async def aflush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """As `flush`, for asyncio: other tasks go on while it waits.

        Raises: as `flush` does.
        """
        until = deadline(timeout)
        number = self._tickets.last if ticket is None else ticket
        while not self._is_done(number):
            if time.monotonic() >= until:
                raise TimeoutError(f"message {number} was not delivered in time; it may still be")
            await self.work_async(until)

    def _is_done(self, ticket: int) -> bool:
        self._check_open()
        self._look_through()
        self._tickets.check()
        return not self._tickets.is_under_way(ticket)

    # -- asking

    def request(self, payload: Payload, *, timeout: float | None = REQUEST_TIMEOUT) -> Answer:
        """Send a request to the server, and wait for the answer to it, which comes here and to
        nobody else; as `Feed.request`. Messages that come meanwhile are kept for who reads, up to
        64 MiB.

        Args:
            payload: as `Feed.request` has it.
            timeout: seconds to wait until it is sent and answered; None waits as long as it takes.

        Raises:
            TimeoutError: no answer in time.
            shm.RingFull: it could not be sent in time.
            shm.MessageTooLarge: longer than the ring's longest message.
            shm.SendRejected: the gateway or the manager does not send it, and why; such as: it is
                no JSON object, or the manager has no `request_id`.
            shm.SendUnconfirmed: the connection to the gateway ended before the answer came.
            shm.RingClosed: this end is closed.
        """
        until = deadline(timeout)
        one = OneAnswer()
        number = self._ask(encoded_request(payload), one, until)
        try:
            while not one.future.done():
                if time.monotonic() >= until:
                    raise no_answer(timeout)
                self.work(until)
            return one.future.result()
        finally:
            self._end_request(number)

    async def arequest(
        self, payload: Payload, *, timeout: float | None = REQUEST_TIMEOUT
    ) -> Answer:
        """As `request`, for asyncio: other tasks go on while it waits. Cancelling it drops the
        answer.

        Raises: as `request` does.
        """
        until = deadline(timeout)
        one = OneAnswer()
        number = await self._aask(encoded_request(payload), one, until)
        try:
            while not one.future.done():
                if time.monotonic() >= until:
                    raise no_answer(timeout)
                await self.work_async(until)
            return one.future.result()
        finally:
            self._end_request(number)

    def follow(self, payload: Payload, *, timeout: float | None = REQUEST_TIMEOUT) -> Following:
        """Send a request to which many messages answer; as `Feed.follow`, but what it returns
        ends with the connection to the gateway.

        Raises: as `request` does, but for TimeoutError, which is shm.RingFull here.
        """
        following = SocketFollowing(self)
        number = self._ask(encoded_request(payload), following, deadline(timeout))
        return self._following(following, number)

    async def afollow(
        self, payload: Payload, *, timeout: float | None = REQUEST_TIMEOUT
    ) -> Following:
        """As `follow`, for asyncio: other tasks go on while it is sent.

        Raises: as `follow` does.
        """
        following = SocketFollowing(self)
        number = await self._aask(encoded_request(payload), following, deadline(timeout))
        return self._following(following, number)

    def _following(self, following: SocketFollowing, number: int) -> Following:
        def send(payload: Payload) -> int:
            record = Record(
                RecordType.REQUEST, encoded_request(payload), kind=shm.Kind.TEXT, key=number
            )
            check_length(memoryview(record.payload), self.max_message)
            while not self._try_send_again(record):
                self.work(deadline(None))
            return number

        following.began(send, lambda: self._end_request(number))
        return following

    def _try_send_again(self, record: Record) -> bool:
        """Send more under a request's number. False: it can't be sent now."""
        self._check_open()
        with self._changed:
            self._tickets.check()
            self._tickets.message(record.key)
            if self._try_post(encode(record)):
                return True
            self._tickets.take_back(record.key)
            return False

    @property
    def answers_dropped(self) -> int:
        """Answers to requests of this feed that came when nobody waited for them any more."""
        return self._requests.dropped

    def _ask(self, payload: bytes, sink: Sink, until: float) -> int:
        """Send a request. Returns its number."""
        check_length(memoryview(payload), self.max_message)
        while (number := self._try_ask(payload, sink)) == 0:
            if time.monotonic() >= until:
                raise shm.RingFull(_no_room(self))
            self.work(until)
        return number

    async def _aask(self, payload: bytes, sink: Sink, until: float) -> int:
        check_length(memoryview(payload), self.max_message)
        while (number := self._try_ask(payload, sink)) == 0:
            if time.monotonic() >= until:
                raise shm.RingFull(_no_room(self))
            await self.work_async(until)
        return number

    def _try_ask(self, payload: bytes, sink: Sink) -> int:
        """Send a request. Returns its number; 0 if that can't be done now."""
        self._check_open()
        with self._changed:
            number = self._tickets.new()
            self._requests.began(number, sink)
            record = Record(RecordType.REQUEST, payload, kind=shm.Kind.TEXT, key=number)
            if self._try_post(encode(record)):
                return number
            self._requests.ended(number)
            return 0

    def _end_request(self, number: int) -> None:
        """Nobody waits for its answers any more: the gateway need not send them, if it can be told
        now."""
        if self._requests.ended(number) and not self.closed:
            with self._changed:
                self._try_post(encode(Record(RecordType.END_REQUEST, key=number)))

    def _message(self, payload: str | Buffer, kind: MessageKind | None) -> Record:
        self._check_open()
        self._tickets.check()
        view, number = encoded(payload, kind)
        check_length(view, self.max_message)
        return Record(RecordType.SEND, bytes(view), kind=number)

    def _try_send(self, record: Record) -> int | None:
        with self._changed:
            self._tickets.check()
            if self._tickets.under_way >= _UNDER_WAY_MOST:
                return None
            number = self._tickets.new()
            data = encode(dataclasses.replace(record, key=number))
            self._tickets.message(number)
            if self._try_post(data):
                return number
            self._tickets.take_back(number)
            return None


def _reasons(why: str) -> dict[str, str]:
    """Why single topics are refused, if the gateway says so: a line for each."""
    lines = (line.partition("\t") for line in why.splitlines())
    return {name: reason for name, tab, reason in lines if tab}


def _no_room(feed: SocketFeed) -> str:
    return f"{feed!r} could not send in time: the gateway is not there, or behind"
