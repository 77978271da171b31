"""Requests through a gateway, and the server's answers to them.

    SocketFeed ── REQUEST, numbered ──▶ gateway ── the id replaced by one of its own ──▶ manager ══▶
    SocketFeed ◀── ANSWER, the number ── gateway ◀── destination, by the id ◀── manager ◀══ server

The number is the feed's own, and the gateway puts the request's id back. What was asked over a
connection that has ended is not answered any more: whoever waits gets an error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringcast import shm

from .answers import Answer, Following, Sink
from .deadlines import deadline, seconds_to

if TYPE_CHECKING:
    from .socket_feed import SocketFeed

__all__ = ["SocketFollowing", "SocketRequests"]


class SocketRequests:
    """The requests of one feed that are not ended.

    Attributes:
        dropped: answers that came when nobody waited for them any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Sink] = {}
        self.dropped = 0

    def began(self, number: int, sink: Sink) -> None:
        """A request with this number is about to be sent."""
        with self._lock:
            self._open[number] = sink

    def ended(self, number: int) -> bool:
        """Nobody waits for its answers any more. Returns whether somebody did."""
        with self._lock:
            return self._open.pop(number, None) is not None

    def answer(self, number: int, answer: Answer) -> None:
        """An answer has come."""
        with self._lock:
            sink = self._open.get(number)
            if sink is None:
                self.dropped += 1
                return
            if sink.is_for_one:
                del self._open[number]
        sink.deliver(answer)

    def refused(self, number: int, why: str) -> bool:
        """The gateway does not send a request. Returns whether the number is one's."""
        with self._lock:
            sink = self._open.pop(number, None)
        if sink is not None:
            sink.end(shm.SendRejected(why, 1))
        return sink is not None

    def end(self, why: Callable[[], Exception]) -> None:
        """None of them is answered any more."""
        with self._lock:
            sinks = list(self._open.values())
            self._open.clear()
        for sink in sinks:
            sink.end(why())


class SocketFollowing(Following):
    """A `Following` through a gateway: whoever reads it receives for its feed.

    Args:
        feed: it was asked through.
    """

    def __init__(self, feed: SocketFeed) -> None:
        super().__init__()
        self._feed = feed

    def read(self, timeout: float | None = None) -> Answer | None:
        """As `Following.read`. When the connection to the gateway ends, it raises
        shm.SendUnconfirmed: ask again."""
        self._check_process()
        until = deadline(timeout)
        while (answer := self.take()) is None:
            if seconds_to(until) == 0.0:
                return None
            self._feed.work(until)
        return answer

    async def __anext__(self) -> Answer:
        self._check_process()
        while True:
            try:
                answer = self.take()
            except shm.RingClosed:
                raise StopAsyncIteration from None
            if answer is not None:
                return answer
            await self._feed.work_async(deadline(None))
