"""Requests whose answers come to whoever asked, though the connection is everybody's.

    worker ── the id replaced by one of its own ──▶ uplink ──▶ manager ══▶ server
    worker ◀── its own reader slot ◀── destination, by the id ◀── manager ◀══ server

A request's answer goes to a reader slot that is for answers alone, and that nobody iterates: so
whoever reads the feed meanwhile misses nothing. The slot is taken with the first request and has a
thread that waits for its messages, without the GIL.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ringcast import shm
from ringcast.shm import broadcast

from ..topics.request_counters import OPEN_MAX, Numbered, RequestCounters
from .answers import Answer, Following, OneAnswer, Payload, Sink, encoded_request, no_answer
from .deadlines import check_timeout, deadline, seconds_to
from .sending import MessageSender
from .state import ConnectionState, Phase
from .threads import in_thread

if TYPE_CHECKING:
    from ..topics.requests import IdPlace

__all__ = ["Requests"]

_OPEN_MAX: Final = OPEN_MAX // 2
"""Requests of one feed that wait for their answers at once."""


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """One that waits for answers."""

    sent: Numbered
    sink: Sink


class Requests:
    """One worker's requests. `Feed` says what its methods do and raise.

    Args:
        name: the ring's.
        label, owner: as `attach` has them.
        messages: through which requests are sent.

    Attributes:
        dropped: answers that came when nobody waited for them any more.
    """

    def __init__(
        self, name: str, *, label: str | None, owner: int | None, messages: MessageSender
    ) -> None:
        self._name = name
        self._label = f"{label} (answers)" if label else "answers"
        self._owner = owner
        self._messages = messages
        self._pid = os.getpid()
        self._attaching = threading.Lock()
        self._lock = threading.Lock()  # of all below
        self._reader: broadcast.Reader | None = None
        self._place: IdPlace | None = None
        self._open: dict[int, _Request] = {}
        self._counters = RequestCounters()
        self._ended: Exception | None = None  # why nothing is answered any more
        self.dropped = 0

    # -- asking

    def request(
        self,
        payload: Payload,
        timeout: float | None,
        state: ConnectionState,
    ) -> Answer:
        until = _deadline(timeout)
        one = OneAnswer()
        request = self._begin(encoded_request(payload), self._place_of(state), one)
        try:
            self._messages.send(request.sent.payload, shm.Kind.TEXT, seconds_to(until))
            try:
                return one.future.result(seconds_to(until))
            except TimeoutError:
                raise no_answer(timeout) from None
        finally:
            self._end(request)

    async def arequest(
        self,
        payload: Payload,
        timeout: float | None,
        state: ConnectionState,
    ) -> Answer:
        until = _deadline(timeout)
        one = OneAnswer()
        request = await self._abegin(payload, state, one)
        try:
            await self._messages.asend(request.sent.payload, shm.Kind.TEXT, seconds_to(until))
            try:
                async with asyncio.timeout(seconds_to(until)):
                    return await asyncio.wrap_future(one.future)
            except TimeoutError:
                raise no_answer(timeout) from None
        finally:
            self._end(request)

    def follow(self, payload: Payload, timeout: float | None, state: ConnectionState) -> Following:
        until = _deadline(timeout)
        following = Following()
        request = self._begin(encoded_request(payload), self._place_of(state), following)
        try:
            self._messages.send(request.sent.payload, shm.Kind.TEXT, seconds_to(until))
        except BaseException:
            self._end(request)
            raise
        return self._following(request, following)

    async def afollow(
        self, payload: Payload, timeout: float | None, state: ConnectionState
    ) -> Following:
        until = _deadline(timeout)
        following = Following()
        request = await self._abegin(payload, state, following)
        try:
            await self._messages.asend(request.sent.payload, shm.Kind.TEXT, seconds_to(until))
        except BaseException:
            self._end(request)
            raise
        return self._following(request, following)

    def _following(self, request: _Request, following: Following) -> Following:
        def send(payload: Payload) -> int:
            place = self._place
            assert place is not None  # the request had one
            changed = place.readdress(encoded_request(payload), request.sent.number).payload
            return self._messages.send(changed, shm.Kind.TEXT, None)

        following.began(send, lambda: self._end(request))
        return following

    def _place_of(self, state: ConnectionState) -> IdPlace:
        """Where the manager looks for ids now."""
        if state.phase is Phase.STOPPED:
            raise shm.RingClosed(f"the manager of {self._name!r} has stopped: nobody is asked")
        if state.request_id is None:
            raise ValueError(
                f"the manager of {self._name!r} does not know whose an answer is: configure"
                ' request_id, such as request_id = "/id", or a venue that has one'
            )
        place = self._place
        if place is None or (place.pointer, place.as_text) != (
            state.request_id,
            state.request_id_is_text,
        ):
            from ..topics.requests import IdPlace  # workers that ask nothing need none of it

            place = self._place = IdPlace(state.request_id, as_text=state.request_id_is_text)
        return place

    async def _abegin(self, payload: Payload, state: ConnectionState, sink: Sink) -> _Request:
        """As `_begin`: attaching may take a moment, so a thread does it."""
        data, place = encoded_request(payload), self._place_of(state)
        if self._reader is None:
            await in_thread(lambda _cancelled: self._attached(), lambda _error: None)
        return self._begin(data, place, sink)

    def _begin(self, payload: bytes, place: IdPlace, sink: Sink) -> _Request:
        """Give a request an id, and wait for its answers from now on."""
        reader = self._attached()
        with self._lock:
            if self._ended is not None:
                raise self._ended
            if len(self._open) >= _OPEN_MAX:
                raise shm.RingFull(f"{_OPEN_MAX} requests of this feed wait for their answers")
            sent = self._counters.readdress(place, payload, reader.slot, reader.generation)
            request = self._open[sent.counter] = _Request(sent, sink)
        return request

    def _end(self, request: _Request) -> None:
        """Nobody waits for its answers any more."""
        with self._lock:
            if self._open.pop(request.sent.counter, None) is not None:
                self._counters.give_up(request.sent.counter)

    # -- answers

    def deliver(self, message: broadcast.Message) -> None:
        """A message for this worker alone has come."""
        payload = bytes(message)
        if message.gap:  # demoted: nobody knows whose the messages were
            self._missed(message.gap)
        with self._lock:
            found = self._place.find(payload) if self._place is not None else None
            request = self._open.get(found.id.counter) if found is not None else None
            if found is None or request is None:
                self.dropped += 1
                if found is not None:
                    self._counters.heard(found.id.counter)
                return
            if request.sink.is_for_one:
                del self._open[request.sent.counter]
                self._counters.give_up(request.sent.counter)
        restored = found.restored(payload, request.sent.original)
        request.sink.deliver(Answer(restored, message.sequence, message.time_ns, message.kind))

    def _missed(self, count: int) -> None:
        with self._lock:
            requests = list(self._open.values())
        for request in requests:
            request.sink.missed(count)

    def end(self, why: Exception) -> None:
        """Nothing is answered any more; who waits is told why."""
        with self._lock:
            self._ended = self._ended or why
            requests = list(self._open.values())
            self._open.clear()
        for request in requests:
            request.sink.end(why)

    # -- attaching and closing

    def _attached(self) -> broadcast.Reader:
        if os.getpid() != self._pid:
            raise shm.RingClosed("this feed is closed; in a forked process attach anew")
        with self._attaching:
            if self._ended is not None:
                raise self._ended
            if self._reader is None:
                self._reader = reader = broadcast.Reader.attach(
                    self._name,
                    label=self._label,
                    owner=self._owner,
                    skip=shm.Kind.EVENT,
                    topics=[],
                )
                weakref.finalize(self, reader.close)  # the thread ends with it
                threading.Thread(
                    target=_listen,
                    args=(reader, weakref.ref(self)),
                    name="ringcast-answers",
                    daemon=True,
                ).start()
            return self._reader

    def close(self) -> None:
        """Give the reader slot back; calls that wait raise RingClosed."""
        if os.getpid() != self._pid:
            return  # a fork: another thread may have held a lock
        self.end(shm.RingClosed("this feed is closed"))
        with self._attaching:
            if self._reader is not None:
                self._reader.close()


def _listen(reader: broadcast.Reader, owner: weakref.ref[Requests]) -> None:
    """Take answers until the ring or the reader ends. No feed lives on for it that its user has
    given up."""
    try:
        while (message := reader.read()) is not None and (requests := owner()) is not None:
            requests.deliver(message)
            del requests, message
    except shm.RingError as error:
        if (requests := owner()) is not None:
            requests.end(error)


def _deadline(timeout: float | None) -> float:
    check_timeout(timeout)
    return deadline(timeout)
