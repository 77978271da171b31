"""Requests whose answers come to whoever asked, though the connection is everybody's.

    worker ── the id replaced by one of its own ──▶ uplink ──▶ manager ══▶ server
    worker ◀── its own reader slot ◀── destination, by the id ◀── manager ◀══ server

A request's answer goes to a reader slot that is for answers alone, and that nobody iterates: so
whoever reads the feed meanwhile misses nothing. The slot is taken with the first request and has a
thread that waits for its messages, without the GIL.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import json
import os
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ringcast import shm
from ringcast.shm import broadcast

from ..topics._scan import REQUEST_COUNTERS, make_request_id
from ..topics.requests import IdPlace
from .sending import MessageSender
from .state import ConnectionState, Phase
from .threads import in_thread

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["REQUEST_TIMEOUT", "Answer", "Requests"]

REQUEST_TIMEOUT: Final = 10.0
"""Seconds. A request of a connection that is lost is never answered, so there is a limit unless
somebody wants none."""
_OPEN_MAX: Final = REQUEST_COUNTERS // 4
"""Requests of one feed that wait for their answers at once."""
_UNANSWERED_MAX: Final = REQUEST_COUNTERS // 4
"""Requests without an answer whose ids are not used again; the oldest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to a request, as a copy: it holds nothing in the ring.

    Attributes:
        payload: the message, with the id that the request had when it was given to `request`. If it
            had none, the id is the one that was added.
        sequence, time_ns, kind: of the message in the ring.
    """

    payload: bytes
    sequence: int
    time_ns: int
    kind: shm.Kind | int

    def json(self) -> Any:
        """The payload decoded as JSON."""
        return json.loads(self.payload)

    def text(self) -> str:
        """The payload decoded as UTF-8. Raises UnicodeDecodeError."""
        return self.payload.decode()

    def __bytes__(self) -> bytes:
        return self.payload

    def __len__(self) -> int:
        return len(self.payload)


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """One that waits for its answer."""

    counter: int
    payload: bytes
    original: bytes | None
    answer: concurrent.futures.Future[Answer]


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
        self._unanswered: collections.deque[int] = collections.deque(maxlen=_UNANSWERED_MAX)
        self._last = -1
        self._ended: Exception | None = None  # why nothing is answered any more
        self.dropped = 0

    # -- asking

    def request(
        self,
        payload: str | Buffer | Mapping[str, Any],
        timeout: float | None,
        state: ConnectionState,
    ) -> Answer:
        until = _deadline(timeout)
        data = _encoded(payload)
        place = self._place_of(state)
        request = self._begin(data, place, self._attached())
        try:
            self._messages.send(request.payload, shm.Kind.TEXT, _left(until))
            try:
                return request.answer.result(_left(until))
            except TimeoutError:
                raise _no_answer(timeout) from None
        finally:
            self._end(request)

    async def arequest(
        self,
        payload: str | Buffer | Mapping[str, Any],
        timeout: float | None,
        state: ConnectionState,
    ) -> Answer:
        until = _deadline(timeout)
        data = _encoded(payload)
        place = self._place_of(state)
        reader = self._reader
        if reader is None:  # it may take a moment, and nobody needs to hear of an error
            reader = await in_thread(lambda _cancelled: self._attached(), lambda _error: None)
        request = self._begin(data, place, reader)
        try:
            await self._messages.asend(request.payload, shm.Kind.TEXT, _left(until))
            try:
                async with asyncio.timeout(_left(until)):
                    return await asyncio.wrap_future(request.answer)
            except TimeoutError:
                raise _no_answer(timeout) from None
        finally:
            self._end(request)

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
            place = self._place = IdPlace(state.request_id, as_text=state.request_id_is_text)
        return place

    def _begin(self, payload: bytes, place: IdPlace, reader: broadcast.Reader) -> _Request:
        """Give a request an id, and wait for its answer from now on."""
        with self._lock:
            if self._ended is not None:
                raise self._ended
            if len(self._open) >= _OPEN_MAX:
                raise shm.RingFull(f"{_OPEN_MAX} requests of this feed wait for their answers")
            counter = (self._last + 1) % REQUEST_COUNTERS
            while counter in self._open or counter in self._unanswered:  # at most half of them are
                counter = (counter + 1) % REQUEST_COUNTERS
            number = make_request_id(reader.slot, reader.generation, counter)
            changed, original = place.readdress(payload, number)
            self._last = counter
            request = _Request(counter, changed, original, concurrent.futures.Future())
            self._open[counter] = request
        return request

    def _end(self, request: _Request) -> None:
        """Nobody waits for its answer any more."""
        with self._lock:
            if self._open.pop(request.counter, None) is not None:
                self._unanswered.append(request.counter)

    # -- answers

    def deliver(self, message: broadcast.Message) -> None:
        """A message for this worker alone has come."""
        payload = bytes(message)
        with self._lock:
            place = self._place
            found = place.read(payload) if place is not None else None
            request = self._open.pop(found.counter, None) if found is not None else None
            if request is None:
                self.dropped += 1
                if found is not None and found.counter in self._unanswered:
                    self._unanswered.remove(found.counter)
                return
        assert place is not None
        restored = place.restore(payload, request.original)
        answer = Answer(restored, message.sequence, message.time_ns, message.kind)
        if request.answer.set_running_or_notify_cancel():
            request.answer.set_result(answer)

    def end(self, why: Exception) -> None:
        """Nothing is answered any more; who waits is told why."""
        with self._lock:
            self._ended = self._ended or why
            requests = list(self._open.values())
            self._open.clear()
        for request in requests:
            if request.answer.set_running_or_notify_cancel():
                request.answer.set_exception(why)

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
        self.end(shm.RingClosed("this feed is closed"))
        if os.getpid() == self._pid:
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


def _encoded(payload: str | Buffer | Mapping[str, Any]) -> bytes:
    if isinstance(payload, Mapping):
        payload = json.dumps(
            dict(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    return payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))


def _deadline(timeout: float | None) -> float:
    if timeout is None:
        return float("inf")
    if not timeout >= 0:
        raise ValueError(f"timeout is seconds, 0 or more, or None for no limit, not {timeout!r}")
    return time.monotonic() + timeout


def _left(until: float) -> float | None:
    return None if until == float("inf") else max(0.0, until - time.monotonic())


def _no_answer(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"no answer within {timeout} s; one that comes later is dropped")
