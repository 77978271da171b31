"""Which numbers requests bear in their ids, so that no late answer is taken for another's.

A request's id has a counter of a few bits (request_ids.h). One that is given up may still be
answered, once or for ever, so it is not used again for as long as can be remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ._scan import REQUEST_COUNTERS, make_request_id

if TYPE_CHECKING:
    from .requests import IdPlace

__all__ = ["OPEN_MAX", "Numbered", "RequestCounters"]

OPEN_MAX: Final = REQUEST_COUNTERS // 2
"""Requests that wait for answers at once."""
_GIVEN_UP_MAX: Final = REQUEST_COUNTERS // 4


class Numbered(NamedTuple):
    """A request that bears an id of its requester's.

    Attributes:
        counter: in the id.
        number: the id.
        payload: the request.
        original: the id that it had, as it was spelled; None if it had none.
    """

    counter: int
    number: int
    payload: bytes
    original: bytes | None


class RequestCounters:
    """The counters of one requester. At most `OPEN_MAX` are to be in use."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._given_up: dict[int, None] = {}  # those heard of last are at the end
        self._last = -1

    def readdress(self, place: IdPlace, payload: bytes, slot: int, generation: int) -> Numbered:
        """A new request, with an id that no other has, and that says which reader gets the answers.
        Raises as `IdPlace.readdress` does."""
        counter = self._take()
        number = make_request_id(slot, generation, counter)
        try:
            changed = place.readdress(payload, number)
        except ValueError:
            self.give_up(counter)
            raise
        return Numbered(counter, number, changed.payload, changed.original)

    def _take(self) -> int:
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
