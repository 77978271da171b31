"""The signs of life that a venue wants: messages again and again, and answers to the server's.

    Heartbeats ── take(now), at `deadline` and after `heard` ──▶ texts to send, before all others

WebSocket pings are not among them: those are `connection.Protocol`'s.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .venue import Venue

__all__ = ["REPLIES_MAX", "Heartbeats"]

REPLIES_MAX: Final = 64
"""Replies that wait to be sent. A server that asks and does not read gets no more of them: it is
not to fill the memory."""


class Heartbeats:
    """What a venue's connection sends to stay alive.

    All times are seconds of one monotonic clock, the caller's.

    Args:
        venue: says what, and how often.
    """

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._replies: deque[str] = deque()
        self._next: float | None = None

    def connected(self, now: float) -> None:
        """A connection is open: the first heartbeat goes out after the venue's interval."""
        self._replies.clear()
        heartbeat = self._venue.heartbeat
        self._next = now + heartbeat.every if heartbeat is not None else None

    def disconnected(self) -> None:
        """It is gone: nothing is sent."""
        self._replies.clear()
        self._next = None

    def heard(self, payload: bytes) -> bool:
        """A control message of the server, which may want a reply. Returns whether it does."""
        replies = self._venue.replies(payload)
        for reply in replies:
            if len(self._replies) < REPLIES_MAX:
                self._replies.append(reply)
        return bool(replies)

    @property
    def deadline(self) -> float | None:
        """When `take` has a heartbeat; what `heard` brings is there at once."""
        return self._next

    def take(self, now: float) -> list[str]:
        """What is to be sent now: it can't wait, and counts as messages where the venue counts
        them. Heartbeats that were missed are not made up for."""
        texts = list(self._replies)
        self._replies.clear()
        heartbeat = self._venue.heartbeat
        if heartbeat is not None and self._next is not None and now >= self._next:
            texts.append(heartbeat.send)
            self._next = now + heartbeat.every
        return texts
