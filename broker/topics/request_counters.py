"""Which numbers requests bear in their ids, so that no late answer is taken for another's.

A request's id has a counter of a few bits (request_ids.h). One that is given up may still be
answered, once or for ever, so it is not used again for as long as can be remembered.
"""

from __future__ import annotations

from typing import Final

from ._scan import REQUEST_COUNTERS

__all__ = ["OPEN_MAX", "RequestCounters"]

OPEN_MAX: Final = REQUEST_COUNTERS // 2
"""Requests that wait for answers at once."""
_GIVEN_UP_MAX: Final = REQUEST_COUNTERS // 4


class RequestCounters:
    """The counters of one requester. At most `OPEN_MAX` are to be in use."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._given_up: dict[int, None] = {}  # those heard of last are at the end
        self._last = -1

    def take(self) -> int:
        """A counter for a new request."""
        counter = (self._last + 1) % REQUEST_COUNTERS
        while counter in self._open or counter in self._given_up:  # at most three of four are
            counter = (counter + 1) % REQUEST_COUNTERS
        self._last = counter
        self._open.add(counter)
        return counter

    def give_up(self, counter: int) -> None:
        """Nobody waits for its answers any more; those that come are nobody's."""
        self._open.discard(counter)
        if len(self._given_up) >= _GIVEN_UP_MAX:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[counter] = None

    def heard(self, counter: int) -> None:
        """An answer has come: if nobody waits for it, the server goes on with what was asked."""
        if counter in self._given_up:
            del self._given_up[counter]
            self._given_up[counter] = None
