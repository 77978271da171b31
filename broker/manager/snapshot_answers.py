"""Whose an answer is that brings a snapshot: the worker's that asked, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..topics.subscriptions import SnapshotAsked

__all__ = ["EVERYONE", "SnapshotAnswers"]

_ASKED_MAX: Final = 1024
"""Requests that are remembered; the oldest is forgotten first."""
EVERYONE: Final = 0
"""The destination of a message that all workers get."""


class SnapshotAnswers:
    """The requests for snapshots of this connection, by their ids.

    A request may have several answers, one for each topic, so it is remembered as long as its
    worker and the connection last.
    """

    def __init__(self) -> None:
        self._asked: dict[str, SnapshotAsked] = {}
        self._answered: set[str] = set()

    def asked(self, requests: Iterable[SnapshotAsked]) -> None:
        """These were sent. Without an id, nobody knows whose an answer is: all get it."""
        for request in requests:
            if request.id is None:
                continue
            if len(self._asked) >= _ASKED_MAX:
                self._forget(next(iter(self._asked)))
            self._asked[request.id] = request

    @property
    def are_expected(self) -> bool:
        """May a message be an answer?"""
        return bool(self._asked)

    def destination(self, ids: Iterable[str]) -> int:
        """For a message that bears these ids: the slot of its worker, + 1, or `EVERYONE`."""
        for number in ids:
            request = self._asked.get(number)
            if request is not None:
                self._answered.add(number)
                return request.slot + 1
        return EVERYONE

    def leave(self, slot: int) -> None:
        """The worker in this slot is another from now on, or none."""
        for number in [number for number, r in self._asked.items() if r.slot == slot]:
            self._forget(number)

    def _forget(self, number: str) -> None:
        del self._asked[number]
        self._answered.discard(number)

    def disconnected(self) -> list[SnapshotAsked]:
        """The connection is gone. Returns the requests to which no answer has come."""
        unanswered = [r for number, r in self._asked.items() if number not in self._answered]
        self._asked.clear()
        self._answered.clear()
        return unanswered
