"""The connection of a `SocketFeed`: opening it, waiting on it, and opening it again.

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
import os
import struct
import sys
import threading
import time
import weakref
from functools import partial
from typing import Final, NamedTuple, Self

from websockets.frames import CloseCode, Opcode

from ringcast import shm

from ..backoff import Backoff
from ._socket_feed import Receiver
from .addresses import ClientAddress
from .answers import Answer
from .deadlines import deadline, seconds_to
from .gateway_link import OPEN_TIMEOUT, Link, Query, open_link
from .socket_requests import SocketRequests
from .tickets import Tickets
from .wire import Hello, Record, RecordType, WireError

__all__ = ["GatewayConnection"]

_ASIDE_MOST: Final = 64 << 20
"""Bytes of messages that are put aside for who waits for an answer; then nothing more is received
until somebody takes them."""
_LOOK_S: Final = 0.05
"""Seconds between two looks while so much is aside."""
_CLOSE_S: Final = 2.0
"""Seconds that `close` waits until the gateway has taken what was sent."""
_PAUSE_FIRST: Final = 0.05
_PAUSE_MAX: Final = 2.0
"""Seconds between two attempts to connect again: at most so many, the first time and later."""
_STABLE: Final = 5.0
"""A connection that has lasted for so many seconds makes the pauses short again."""
_log = logging.getLogger(__name__)


class GatewayConnection(Receiver):
    """Has the next message come, whatever that takes; `SocketFeed` is what programs see of it."""

    def __init__(self, address: ClientAddress, query: Query, *, events: bool) -> None:
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
        self._note: bytes | None = None  # the newest state
        self._ended = False
        self._why = "it never was connected"
        self._tickets = Tickets()
        self._requests = SocketRequests()
        self._watching: dict[_Watched, set[asyncio.Future[None]]] = {}
        self._backoff = Backoff(_PAUSE_FIRST, _PAUSE_MAX, _STABLE)
        _feeds.add(self)

    @property
    def name(self) -> str:
        """The ring's name, as the gateway says."""
        return self._hello.ring if self._hello is not None else ""

    @property
    def max_message(self) -> int:
        """Bytes of the longest message of the ring."""
        return self._hello.max_message if self._hello is not None else 0

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return self._closed.is_set()

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
        until = deadline(timeout)
        try:
            with link.used():
                got = self._receive_from(link)
                while got < 0 and self._link is link and time.monotonic() < until:
                    link.wait(seconds_to(until))
                    got = self._receive_from(link)
        except OSError as error:
            self._lose(link, error.strerror or str(error))
            return True
        if got == 0:
            self._lose(link, "the gateway has ended the connection")
        return got >= 0

    def _receive_from(self, link: Link) -> int:
        """How many bytes have come; 0: it has ended, -1: none. Raises OSError."""
        if not link.is_encrypted:
            return self._receive(link.fileno())
        with self._room() as room:
            got = link.receive_into(room)
        if got > 0:
            self._came(got)
        return got

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

    def _record(self, record: Record) -> None:
        payload = bytes(record.payload)
        match record.type:
            case RecordType.HELLO:
                self._greeted(record.sequence, payload)
            case RecordType.STATE:
                self._note = payload
            case RecordType.ACK:
                self._tickets.settle(record.key, None)
            case RecordType.REFUSED:
                why = str(payload, "utf-8", "replace")
                if not self._requests.refused(record.key, why):
                    self._tickets.settle(record.key, why)
            case RecordType.ANSWER:
                kind = shm.Kind(record.kind)
                answer = Answer(payload, record.sequence, record.time_ns, kind)
                self._requests.answer(record.key, answer)
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
        if self._next is None and isinstance(self._query.start, int):
            sequence = max(sequence, self._query.start)  # the gateway may be a moment behind
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
        self._install(link, rest, self._query.topics)
        until = time.monotonic() + OPEN_TIMEOUT
        while True:
            self._look_through()
            if self._hello is not None and self._note is not None:
                break
            if self._link is None:
                raise shm.RingError(f"{self._address.shown} does not serve: {self._why}")
            if time.monotonic() > until:
                raise shm.RingError(f"{self._address.shown} does not say what it serves")
            self._arrive(seconds_to(until))

    def _install(self, link: Link, rest: bytes, topics: tuple[str, ...] | None) -> bool:
        """Receive from this link from now on. False: other topics are wanted by now."""
        with self._changed:
            while self._filling:
                self._changed.wait()
            if self._closed.is_set() or topics != self._query.topics:
                link.retire()
                return self._closed.is_set()
            self._begin()
            self._feed(rest)
            self._link = link
            self._changed.notify_all()
        self._wake_tasks()
        return True

    def _lose(self, link: Link | None, why: str) -> None:
        """This connection has ended."""
        with self._changed:
            if link is None or self._link is not link:
                return
            self._link = None
            if not self._ended:
                self._why = why
            self._tickets.lose()
            self._requests.end(_unanswered)
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
        return self._install(link, rest, query.topics)

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

    def _try_post(self, data: bytes, *, wait: bool = True) -> bool:
        """Send records, with `_changed` held. False: they can't be sent now. `wait` is as
        `Link.try_send` has it."""
        link = self._link
        if link is None or self._hello is None:
            self._come_back()
            return False
        try:
            return link.try_send(data, wait=wait)
        except OSError as error:
            self._lose(link, error.strerror or str(error))
            return False

    def _look_through(self) -> bool:
        """See what has come; messages are put aside. False: too much is there already."""
        return self._set_aside(_ASIDE_MOST)

    def work(self, until: float) -> None:
        """See what has come, and wait for more; messages are put aside."""
        if self._look_through():
            self._arrive(seconds_to(until), messages=False)
        else:
            with self._changed:
                self._changed.wait(min(_LOOK_S, max(0.0, until - time.monotonic())))
        self._look_through()

    async def work_async(self, until: float) -> None:
        """As `work`; other tasks go on."""
        if self._look_through():
            await self._arrive_async(seconds_to(until), messages=False)
        else:
            await asyncio.sleep(_LOOK_S)
        self._look_through()

    # -- closing

    def close(self) -> None:
        """End the connection; calls that wait raise RingClosed. What was sent is sent. Closing
        twice is fine."""
        with self._changed:
            link, self._link = self._link, None
            drains = link is not None and self._awaits_end() and not self._filling
            self._closed.set()
            self._changed.notify_all()
        self._forget()
        self._requests.end(lambda: shm.RingClosed("this feed is closed"))
        if link is not None:
            if os.getpid() == self._pid:
                link.close_with(CloseCode.NORMAL_CLOSURE)
                if drains:
                    link.drain(_CLOSE_S)
                link.retire()
            else:
                link.abandon()
        self._wake_tasks()

    def _awaits_end(self) -> bool:
        """Is the gateway to have read what was sent before the connection goes?"""
        return self._tickets.under_way > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Watched(NamedTuple):
    """What tasks wait for: something on a link, in their loop; None: a link."""

    loop: asyncio.AbstractEventLoop
    link: Link | None


def _unanswered() -> Exception:
    return shm.SendUnconfirmed(
        "the connection to the gateway ended before the answer came: nobody knows whether the"
        " request was delivered",
        1,
    )


def _wake(futures: set[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _come_back(reference: weakref.ref[GatewayConnection], closed: threading.Event) -> None:
    """Connect again, until that works or nobody needs it."""
    feed = reference()
    try:
        while feed is not None:
            pause = feed._backoff.pause(None)
            del feed  # it may be dropped meanwhile
            closed.wait(pause)
            feed = reference()
            if feed is None or closed.is_set() or feed._try_again():
                return
    finally:
        feed = reference()
        if feed is not None:
            feed._came_back()


# ---- forks -----------------------------------------------------------------------------------

_feeds: weakref.WeakSet[GatewayConnection] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child: the messages are the parent's, and so is a lock that a thread of it held."""
    for feed in list(_feeds):
        feed._forget()
        feed._changed = threading.Condition()
        feed._requests = SocketRequests()


os.register_at_fork(after_in_child=_after_fork)
