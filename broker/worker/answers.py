"""The server's answers to a worker's requests, and where they wait for who asked: one answer, or
all that bear the id of one request."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, Union

from ringcast import shm

from .deadlines import deadline, seconds_to

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "REQUEST_TIMEOUT",
    "Answer",
    "Following",
    "OneAnswer",
    "Payload",
    "Sink",
    "encoded_request",
    "no_answer",
]

Payload = Union[str, "Buffer", Mapping[str, Any]]
"""JSON, an object: as text, as bytes of UTF-8, or as a mapping."""
REQUEST_TIMEOUT: Final = 10.0
"""Seconds. A request of a connection that is lost is never answered, so there is a limit unless
somebody wants none."""


_WAITING_MAX: Final = 4096
"""Answers of a `Following` that wait to be taken; of more, the oldest go."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to a request, as a copy: it holds nothing in the ring.

    Attributes:
        payload: the message, with the id that the request had when the worker gave it. If it had
            none, the id is the one that was added.
        sequence, time_ns, kind: of the message in the ring.
        gap: of a `Following`: messages that were missed just before it; else 0. They are answers to
            the same request that waited too long to be taken; and if the manager demoted this
            worker's reader of answers, messages of the ring, whatever they were.
    """

    payload: bytes
    sequence: int
    time_ns: int
    kind: shm.Kind | int
    gap: int = 0

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


class Sink(Protocol):
    """What gets the answers to one request; from any thread."""

    @property
    def is_for_one(self) -> bool:
        """Is the first answer the last one, too?"""

    def deliver(self, answer: Answer) -> None:
        """One has come."""

    def missed(self, count: int) -> None:
        """So many messages went by unseen, and may have been answers."""

    def end(self, why: Exception) -> None:
        """None will come any more."""


class OneAnswer:
    """Waits for one answer.

    Attributes:
        future: has it, or the error instead.
    """

    is_for_one = True

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

    def deliver(self, answer: Answer) -> None:
        """It has come."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)

    def missed(self, count: int) -> None:
        """It may have been missed: then nothing comes in time."""

    def end(self, why: Exception) -> None:
        """It will not come."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(why)


class Following:
    """All messages that bear the id of one request; made with `Feed.follow`.

    Iterating it, plainly or with ``async for``, waits for them and ends with the ring, or when it
    is closed. Threads may share it: each message goes to one of them. At most 4,096 messages wait
    to be taken; of more, the oldest go, and the next one's `gap` says how many.
    """

    is_for_one = False

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: collections.deque[Answer] = collections.deque()
        self._pid = os.getpid()
        self._gap = 0  # just before the next one that comes
        self._tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._ended: Exception | None = None
        self._leave: Callable[[], None] = lambda: None
        self._send: Callable[[Payload], int] | None = None

    def began(
        self,
        send: Callable[[Payload], int],
        leave: Callable[[], None],
    ) -> None:
        """It has been asked: how more is sent under its id, and how it ends."""
        self._send, self._leave = send, leave

    # -- what comes

    def deliver(self, answer: Answer) -> None:
        """One has come."""
        with self._changed:
            self._waiting.append(replace(answer, gap=self._gap) if self._gap else answer)
            self._gap = 0
            if len(self._waiting) > _WAITING_MAX:
                gone, first = self._waiting.popleft(), self._waiting.popleft()
                self._waiting.appendleft(replace(first, gap=gone.gap + 1 + first.gap))
            self._wake_up()

    def missed(self, count: int) -> None:
        """So many messages went by unseen, and may have been answers."""
        with self._changed:
            self._gap += count

    def end(self, why: Exception) -> None:
        """None will come any more."""
        with self._changed:
            self._ended = self._ended or why
            self._wake_up()

    def _wake_up(self) -> None:
        self._changed.notify_all()
        tasks, self._tasks = self._tasks, []
        for loop, future in tasks:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(_settle, future)

    # -- taking it

    def take(self) -> Answer | None:
        """The next one that has come, or None. Raises as `read` does."""
        with self._changed:
            return self._take()

    def _take(self) -> Answer | None:
        """The next one, or None; the lock is held. Raises why there will be none."""
        if self._waiting:
            return self._waiting.popleft()
        if self._ended is not None:
            raise self._ended
        return None

    def read(self, timeout: float | None = None) -> Answer | None:
        """The next one, or None after `timeout` seconds; None waits as long as it takes.

        Raises:
            shm.RingClosed: the ring has ended, or this, or its feed, was closed.
            shm.Evicted: the manager evicted this worker's reader of answers.
        """
        self._check_process()
        until = deadline(timeout)
        with self._changed:
            while (answer := self._take()) is None:
                left = seconds_to(until)
                if left == 0.0:
                    return None
                self._changed.wait(left)
            return answer

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Answer:
        try:
            answer = self.read()
        except shm.RingClosed:
            raise StopIteration from None
        assert answer is not None
        return answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        self._check_process()
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                try:
                    answer = self._take()
                except shm.RingClosed:
                    raise StopAsyncIteration from None
                if answer is not None:
                    return answer
                future = loop.create_future()
                self._tasks.append((loop, future))
            await future

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # another thread may have held the lock when it was forked
            raise shm.RingClosed("this is the parent process's: attach and ask anew")

    # -- more to the server, and the end

    def send(self, payload: Payload) -> int:
        """Send another message under the id of this request, such as the one that ends it at the
        server. Its own id is replaced as the request's was.

        Returns: its ticket.
        Raises: as `Feed.request` does.
        """
        if self._ended is not None or self._send is None:
            raise shm.RingClosed("this is closed")
        return self._send(payload)

    def close(self) -> None:
        """Take no more: messages with this id that come later are dropped, and counted. The server
        is not told: `send` what tells it before."""
        if os.getpid() != self._pid:
            return
        self._leave()
        self.end(shm.RingClosed("this is closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def encoded_request(payload: Payload) -> bytes:
    """A request as it is sent. Raises as `json.dumps` does."""
    if isinstance(payload, Mapping):
        payload = json.dumps(
            dict(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    return payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))


def no_answer(timeout: float | None) -> TimeoutError:
    """What who has waited in vain gets."""
    return TimeoutError(f"no answer within {timeout} s; one that comes later is dropped")
