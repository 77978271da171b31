"""A worker's end of a gateway's socket: what ``attach("unix:/PATH")``, ``attach("ws://HOST:PORT")``
and ``attach("wss://HOST:PORT")`` give.

Messages are decoded in `_socket_feed`; this file does what is rare: connecting, waiting, sending,
and coming back.

*Who receives.* One thread or task at a time; the others wait until it has. Whoever waits for an
answer, and not for messages, puts the messages that come meanwhile aside.

*Coming back.* When the connection ends, a thread connects again, with pauses that grow, until it is
there or the feed is closed. It asks for the next message by its sequence, so nothing is missed that
the ring still has; what it has not is the next message's `gap`. HELLO says whether it is the same
ring. Another one is read from its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from websockets.frames import CloseCode, Opcode

from ringcast import shm

from ._socket_feed import Receiver, SocketBatch, SocketMessage
from .addresses import ClientAddress
from .gateway_link import OPEN_TIMEOUT, Link, Query, open_link
from .sending import MessageKind, encoded
from .state import ConnectionState, Phase
from .subscribing import SubscriptionRefused
from .tickets import Tickets
from .wire import Hello, Record, RecordType, WireError, encode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..connection.backoff import Backoff

__all__ = ["SocketFeed", "SocketTopic"]

_ASIDE_MOST: Final = 64 << 20
"""Bytes of messages that are put aside for who waits for an answer; then nothing more is received
until somebody takes them."""
_UNDER_WAY_MOST: Final = 1024
"""Messages sent that the gateway has not answered."""
_LOOK_S: Final = 0.05
"""Seconds between two looks while so much is aside."""
_CLOSE_S: Final = 2.0
"""Seconds that `close` waits until the gateway has taken what was sent."""
_MESSAGES_A_TURN: Final = 128
"""How many messages ``async for`` takes before other tasks get their turn."""
_PAUSES: Final[dict[str, Any]] = {
    "reconnect_delay": 0.05,
    "reconnect_delay_max": 2.0,
    "reconnect_reset_after": 5.0,
}
"""Seconds, as `Config` has them, of the pauses between attempts to connect again."""
_MISSING: Final = frozenset(
    ("lag", "note", "received", "request", "skipped", "slot", "topic_state", "writer_alive")
)
"""What a `Feed` has, and a socket doesn't tell."""

_log = logging.getLogger(__name__)


class SocketTopic(NamedTuple):
    """A topic of which a feed knows the name.

    Attributes:
        topic: its id in the ring.
        name: its name.
    """

    topic: int
    name: str


class SocketFeed(Receiver):
    """The server's messages through a gateway; made with ``attach("unix:/PATH")`` and the like.

    It has the methods of a `Feed`. Messages have bytes of their own: holding them holds nobody up.
    Threads may share it: each message goes to one of them. A forked child can't use it; it attaches
    anew.

    It lives longer than its gateway, and than the ring: while there is none, it waits until one is
    back, and `state` says so. Iterating it ends only with `close`, which raises RingClosed in who
    waits. Each `gap` is exact within one ring; when the manager has made another one, of the same
    name, it begins with that one's oldest message, and what was missed of the ring before is not
    known.

    What it can't do: joining work groups, zero-copy (the kernel copies each message once), `lag`,
    `request`, and knowing of topics more than their names.
    """

    def __init__(self, address: ClientAddress, query: Query, *, events: bool) -> None:
        query.check()
        query.target(address)
        self._address = address
        self._query = query
        self._events = events
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._filling = False  # one receives; protected by _changed, as all below
        self._link: Link | None = None
        self._anew = False  # the ring is another one: read it from its beginning
        self._returning = False
        self._closed = threading.Event()
        self._hello: Hello | None = None
        self._note = b""
        self._ended = False
        self._why = "it never was connected"
        self._tickets = Tickets()
        self._watching: dict[_Watched, set[asyncio.Future[None]]] = {}
        self._taken = 0
        self._backoff: Backoff | None = None
        _feeds.add(self)

    @classmethod
    def attach(cls, name: str, *, events: bool = False, **given: Any) -> Self:
        """As the function `attach`; `given` are those of its arguments that have no default value
        here: policy, start, label, topics, others, timeout.

        Raises:
            ConfigError: it is no address.
            shm.RingNotFound: the gateway has no ring now.
            GatewayUnreachable: no gateway answers there, or it doesn't let this client in. It is a
                `shm.RingError` and a ConnectionRefusedError.
            ValueError: a bad argument, or a start that is not published yet.
            SubscriptionRefused, TimeoutError: with `timeout`, as `subscribe`.
        """
        timeout = given.pop("timeout", None)
        address = ClientAddress.parse(name)
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
        until = _deadline(timeout)
        while True:
            self._arrive(_left(until))
            if (message := self._take()) is not None:
                return message
            if time.monotonic() >= until:
                return None

    def batch(self, limit: int = 65536, timeout: float | None = None) -> SocketBatch:
        """What has come, up to `limit` messages; as `Feed.batch`, but what is in it was copied once,
        by the kernel, and the descriptors once more.

        Args:
            limit: how many at most; a batch has no more than came at once, up to 256 KiB.
            timeout: seconds to wait for the first; None waits as long as it takes.

        Returns:
            The batch; an empty one if nothing came in time.

        Raises: as `read` does.
        """
        until = _deadline(timeout)
        while not (batch := self._batch(limit)) and time.monotonic() < until:
            self._arrive(_left(until))
        return batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SocketMessage:
        self._taken += 1
        if self._taken % _MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        while (message := self._take()) is None:
            await self._arrive_async(None)
        return message

    # -- receiving

    def _arrive(self, timeout: float | None, *, messages: bool = True) -> bool:
        """Receive, or wait until another thread has. False: nothing came in time.

        Args:
            timeout: seconds.
            messages: whether messages that are aside are what is waited for.
        """
        self._check_open()
        with self._changed:
            link = self._link
            if self._has_news or (messages and self._has_aside):
                return True
            if link is None:
                self._come_back()
            if link is None or self._filling:
                return self._changed.wait(timeout)
            self._filling = True
        try:
            return self._fill(link, timeout)
        finally:
            self._filled()

    def _fill(self, link: Link, timeout: float | None) -> bool:
        until = _deadline(timeout)
        try:
            with link.used():
                got = link.receive(self)
                while got < 0 and self._link is link and time.monotonic() < until:
                    link.wait(_left(until))
                    got = link.receive(self)
        except OSError as error:
            self._lose(link, error.strerror or str(error))
            return True
        if got == 0:
            self._lose(link, "the gateway has ended the connection")
        return got >= 0

    def _filled(self) -> None:
        with self._changed:
            self._filling = False
            self._changed.notify_all()
        self._wake_tasks()

    async def _arrive_async(self, timeout: float | None, *, messages: bool = True) -> None:
        """As `_arrive`; other tasks go on."""
        self._check_open()
        with self._changed:
            link = self._link
            if link is None:
                self._come_back()
            fills = link is not None and not self._filling
            self._filling = self._filling or fills
        if link is not None and fills:
            try:
                if self._has_news or self._fill(link, 0.0):
                    return
                if link.has_unsent:
                    link.flush()
            except OSError as error:
                self._lose(link, error.strerror or str(error))
                return
            finally:
                self._filled()
        await self._watch(_Watched(asyncio.get_running_loop(), link), timeout, messages=messages)

    async def _watch(self, watched: _Watched, timeout: float | None, *, messages: bool) -> None:
        """Wait until the link has something, or another thread has received."""
        loop, link = watched
        future = loop.create_future()
        with contextlib.ExitStack() as undo:
            with self._changed:
                futures = self._watching.setdefault(watched, set())
                futures.add(future)
            undo.callback(self._watch_no_more, watched, future)
            if link is not None:
                undo.enter_context(link.used())
                undo.callback(self._stop_watching, watched, link.fileno())
                wake = partial(_wake, futures)
                if len(futures) == 1:
                    loop.add_reader(link.fileno(), wake)
                if link.has_unsent:
                    loop.add_writer(link.fileno(), wake)
            if self._link is not link or self._closed.is_set():
                return  # it has changed meanwhile
            if self._has_news or (messages and self._has_aside):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future

    def _watch_no_more(self, watched: _Watched, future: asyncio.Future[None]) -> None:
        with self._changed:
            futures = self._watching.get(watched, set())
            futures.discard(future)
            if not futures:
                self._watching.pop(watched, None)

    def _stop_watching(self, watched: _Watched, descriptor: int) -> None:
        if len(self._watching.get(watched, ())) <= 1:  # the one that leaves
            watched.loop.remove_reader(descriptor)
            watched.loop.remove_writer(descriptor)

    def _wake_tasks(self) -> None:
        if not self._watching:
            return
        with self._changed:
            found = [(watched.loop, set(futures)) for watched, futures in self._watching.items()]
        for loop, futures in found:
            with contextlib.suppress(RuntimeError):  # that loop has been closed
                loop.call_soon_threadsafe(_wake, futures)

    # -- what is not a message; called while messages are looked for

    def _record(self, kind: int, sequence: int, key: int, payload: bytes) -> None:
        match kind:
            case RecordType.HELLO:
                self._greeted(sequence, payload)
            case RecordType.STATE:
                self._note = payload
            case RecordType.ACK:
                self._tickets.settle(key, None)
            case RecordType.REFUSED:
                self._tickets.settle(key, str(payload, "utf-8", "replace"))
            case RecordType.ENDED:
                self._ended = True
                self._why = str(payload, "utf-8", "replace")
            case _:  # a later version's: passed over
                pass

    def _greeted(self, sequence: int, payload: bytes) -> None:
        try:
            hello = Hello.decode(payload)
        except WireError as error:
            self._wrong(CloseCode.PROTOCOL_ERROR, str(error))
            raise shm.LayoutMismatch(str(error)) from None
        same = self._hello is None or self._hello.instance == hello.instance
        if not same and not self._anew:
            self._anew = True
            self._stop()
            self._lose(self._link, "the ring is another one")
            return
        self._hello = hello
        self._anew = self._ended = False
        self._greet(sequence, hello.max_message, same)
        self._tickets.renewed()

    def _control(self, opcode: int, payload: bytes) -> None:
        link = self._link
        if link is None:
            return
        if opcode == Opcode.PING:
            with contextlib.suppress(OSError):  # whoever receives will see
                link.answer(payload)
        elif opcode == Opcode.CLOSE:
            code = (
                struct.unpack(">H", payload[:2])[0]
                if len(payload) > 1
                else CloseCode.NO_STATUS_RCVD
            )
            reason = str(payload[2:], "utf-8", "replace")
            link.close_with(CloseCode.NORMAL_CLOSURE)
            self._stop()
            self._lose(link, f"the gateway has closed: {code} {reason}".rstrip())

    def _wrong(self, code: int, why: str) -> None:
        link = self._link
        if link is not None:
            link.close_with(code, why[:100])
            self._lose(link, why)

    # -- connecting

    def _open(self) -> None:
        """The first time. Raises as `attach` does."""
        link, rest = open_link(self._address, self._query.target(self._address))
        self._install(link, rest)
        until = time.monotonic() + OPEN_TIMEOUT
        while True:
            self._set_aside(_ASIDE_MOST)
            if self._hello is not None:
                break
            if self._link is None:
                raise shm.RingError(f"{self._address.shown} does not serve: {self._why}")
            if time.monotonic() > until:
                raise shm.RingError(f"{self._address.shown} does not say what it serves")
            self._arrive(_left(until))
        start = self._query.start
        if isinstance(start, int) and self.cursor < start:
            raise ValueError(
                f"ring {self.name!r} has not published {start} yet: its next is {self.cursor}"
            )

    def _install(self, link: Link, rest: bytes) -> None:
        with self._changed:
            while self._filling:
                self._changed.wait()
            if self._closed.is_set():
                link.retire()
                return
            self._begin()
            self._feed(rest)
            self._link = link
            self._changed.notify_all()
        self._wake_tasks()

    def _lose(self, link: Link | None, why: str) -> None:
        """This connection has ended."""
        with self._changed:
            if link is None or self._link is not link:
                return
            self._link = None
            if not self._ended:
                self._why = why
            self._tickets.lose()
            if self._backoff is not None:
                self._backoff.connected_for(time.monotonic() - link.since)
            self._changed.notify_all()
        _log.info("%s: %s", self._address.shown, why)
        link.retire()
        self._wake_tasks()

    def _come_back(self) -> None:
        """Have a thread connect again, if there is none; with `_changed` held."""
        if not self._returning and not self._closed.is_set():
            self._returning = True
            arguments = (weakref.ref(self), self._closed)
            threading.Thread(
                target=_come_back, args=arguments, name="ringcast-gateway", daemon=True
            ).start()

    def _pause(self) -> float:
        """Seconds before the next attempt."""
        # Loaded when it is needed: it comes with all that a manager connects with.
        from ..config import Config
        from ..connection.backoff import Backoff

        if self._backoff is None:
            self._backoff = Backoff(Config(name="gateway", url="ws://gateway", **_PAUSES))
        return self._backoff.pause(None)

    def _try_again(self) -> bool:
        """Connect once more. False: it did not work."""
        with contextlib.suppress(shm.RingError):  # what is wrong in it, its connection ended with
            self._set_aside(sys.maxsize)
        start: str | int = self._query.start if self._next is None else self._next
        query = dataclasses.replace(self._query, start="oldest" if self._anew else start)
        try:
            link, rest = open_link(self._address, query.target(self._address))
        except (shm.RingError, ValueError) as error:
            self._why = str(error)
            return False
        self._install(link, rest)
        return True

    def _came_back(self) -> None:
        with self._changed:
            self._returning = False
            self._changed.notify_all()
        self._wake_tasks()

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise shm.RingClosed("this feed is the parent process's: attach anew in the child")
        if self._closed.is_set():
            raise shm.RingClosed("this feed is closed")

    # -- what is known

    @property
    def name(self) -> str:
        """The ring's name, as the gateway says."""
        return self._hello.ring if self._hello is not None else ""

    @property
    def max_message(self) -> int:
        """Bytes of the longest message of the ring."""
        return self._hello.max_message if self._hello is not None else 0

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
        if self._set_aside(_ASIDE_MOST) and self._arrive(0.0, messages=False):
            self._set_aside(_ASIDE_MOST)
        state = ConnectionState.decode(self._note)
        if state is None:
            raise shm.RingError(f"ring {self.name!r} is not a manager's: it has no connection")
        if self._link is None and state.phase is not Phase.STOPPED:
            phase = Phase.STOPPED if self._ended else Phase.ORPHANED
            state = dataclasses.replace(state, phase=phase, last_error=self._why)
        return state

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return self._closed.is_set()

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
            timeout: seconds to wait for the gateway's answer; None waits as long as it takes.
            wait: False does not wait for it.
            snapshot: not over a socket.

        Raises:
            SubscriptionRefused: the gateway can't ask for a topic.
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
        """Want these no more, as they were given to `attach` and `subscribe`. What is not wanted any
        more may still come for a moment: what is under way is not called back.

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
            query.check()
            query.target(self._address)  # which must not become too long
            self._query = query

    def _wish(
        self, kind: RecordType, topics: Iterable[str], timeout: float | None, *, wait: bool
    ) -> None:
        names = tuple(topics)
        if not names:
            return
        until = _deadline(timeout)
        sent = self._try_wish(kind, names)
        while sent == 0 and self._link is not None and time.monotonic() < until:
            self._work(until)
            sent = self._try_wish(kind, names)
        if not wait:
            return
        while not self._tickets.is_answered(sent) or self._link is None:
            if time.monotonic() >= until:
                raise TimeoutError("no answer of the gateway in time: the wish stands")
            self._work(until)
        why = self._tickets.outcome(sent)
        if why:
            raise SubscriptionRefused(
                f"{', '.join(names[:3])}: {why}", dict.fromkeys(sorted(names), why)
            )

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
            timeout: seconds to wait while there is no gateway, its socket is full, or 1,024 messages
                are under way; None waits as long as it takes.

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
        until = _deadline(timeout)
        record = self._message(payload, kind)
        while (ticket := self._try_send(record)) is None:
            if time.monotonic() >= until:
                raise shm.RingFull(_no_room(self))
            self._work(until)
        return ticket

    def try_send(self, payload: str | Buffer, *, kind: MessageKind | None = None) -> int | None:
        """As `send`, but waits for nothing: the ticket, or None if the message can't be sent now. Of
        one that the socket takes in part, the rest goes with the next call of any method that sends,
        reads or flushes.

        Raises: as `send` does, without RingFull.
        """
        record = self._message(payload, kind)
        if self._tickets.under_way >= _UNDER_WAY_MOST:
            self._work(0.0)
        return self._try_send(record)

    async def asend(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `send`, for asyncio: other tasks go on while it waits. Cancelled while it waits, it has
        sent nothing.

        Raises: as `send` does.
        """
        until = _deadline(timeout)
        record = self._message(payload, kind)
        while (ticket := self._try_send(record)) is None:
            if time.monotonic() >= until:
                raise shm.RingFull(_no_room(self))
            await self._work_async(until)
        return ticket

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
        until = _deadline(timeout)
        number = self._tickets.last if ticket is None else ticket
        while not self._is_done(number):
            if time.monotonic() >= until:
                raise TimeoutError(f"message {number} was not delivered in time; it may still be")
            self._work(until)

    async def aflush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """As `flush`, for asyncio: other tasks go on while it waits.

        Raises: as `flush` does.
        """
        until = _deadline(timeout)
        number = self._tickets.last if ticket is None else ticket
        while not self._is_done(number):
            if time.monotonic() >= until:
                raise TimeoutError(f"message {number} was not delivered in time; it may still be")
            await self._work_async(until)

    def _is_done(self, ticket: int) -> bool:
        self._check_open()
        self._set_aside(_ASIDE_MOST)
        self._tickets.check()
        return not self._tickets.is_under_way(ticket)

    def _message(self, payload: str | Buffer, kind: MessageKind | None) -> Record:
        self._check_open()
        self._tickets.check()
        view, number = encoded(payload, kind)
        if view.nbytes > self.max_message:
            raise shm.MessageTooLarge(
                f"a message of {view.nbytes} bytes is longer than the {self.max_message} that go"
                " through here, a quarter of the ring's capacity"
            )
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

    def _try_post(self, data: bytes) -> bool:
        """Send a record, with `_changed` held. False: it can't be sent now."""
        link = self._link
        if link is None or self._hello is None:
            self._come_back()
            return False
        try:
            return link.try_send(data)
        except OSError as error:
            self._lose(link, error.strerror or str(error))
            return False

    def _work(self, until: float) -> None:
        """See what has come, and wait for more; messages are put aside."""
        if self._set_aside(_ASIDE_MOST):
            self._arrive(_left(until), messages=False)
        else:
            with self._changed:
                self._changed.wait(min(_LOOK_S, max(0.0, until - time.monotonic())))
        self._set_aside(_ASIDE_MOST)

    async def _work_async(self, until: float) -> None:
        """As `_work`; other tasks go on."""
        if self._set_aside(_ASIDE_MOST):
            await self._arrive_async(_left(until), messages=False)
        else:
            await asyncio.sleep(_LOOK_S)
        self._set_aside(_ASIDE_MOST)

    # -- closing

    def close(self) -> None:
        """End the connection; calls that wait raise RingClosed. What was sent is sent. Closing twice
        is fine."""
        with self._changed:
            link, self._link = self._link, None
            drains = link is not None and self._tickets.under_way > 0 and not self._filling
            self._closed.set()
            self._changed.notify_all()
        self._forget()
        if link is not None:
            if os.getpid() == self._pid:
                link.close_with(CloseCode.NORMAL_CLOSURE)
                if drains:
                    link.drain(_CLOSE_S)
                link.retire()
            else:
                link.abandon()
        self._wake_tasks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Watched(NamedTuple):
    """What tasks wait for: something on a link, in their loop; None: a link."""

    loop: asyncio.AbstractEventLoop
    link: Link | None


def _wake(futures: set[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _come_back(reference: weakref.ref[SocketFeed], closed: threading.Event) -> None:
    """Connect again, until that works or nobody needs it."""
    feed = reference()
    try:
        while feed is not None:
            pause = feed._pause()
            del feed  # it may be dropped meanwhile
            closed.wait(pause)
            feed = reference()
            if feed is None or closed.is_set() or feed._try_again():
                return
    finally:
        feed = reference()
        if feed is not None:
            feed._came_back()


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _left(until: float) -> float | None:
    return None if until == math.inf else max(0.0, until - time.monotonic())


def _no_room(feed: SocketFeed) -> str:
    return f"{feed!r} could not send in time: the gateway is not there, or behind"


# ---- forks -----------------------------------------------------------------------------------

_feeds: weakref.WeakSet[SocketFeed] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child: the messages are the parent's, and so is a lock that a thread of it held."""
    for feed in list(_feeds):
        feed._forget()
        feed._changed = threading.Condition()


os.register_at_fork(after_in_child=_after_fork)
