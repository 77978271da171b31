"""The requests that wait for an answer, and whose an answer is that names nothing.

If the venue confirms by order, there is only one request at a time, and such an answer is its.
Elsewhere such an answer is a refusal. From then on, to the end of the connection, requests go out
one at a time, too. If several are out just then, nobody knows which one is refused: they are left
to their other answers and to the timeout.

While they do, an answer that comes after its timeout would be taken for the next request's. So
the answers are counted that may still come, the strays, and no request goes out before they have
come or their time has passed. Only a request that is made once more goes out at once: an answer to
the first attempt is as good as one to the second. An answer that takes longer than two timeouts is
not reckoned with.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .ledger import Asked
from .venue import Answer, Confirmation, Outcome, Venue

__all__ = ["IN_FLIGHT_MAX", "InFlight"]

IN_FLIGHT_MAX: Final = 1024
"""Requests without an answer above which no more are sent."""

_REST: Final = 1.0
"""Seconds that the rest of a batch's answers may come after a refusal that names no topic."""


class InFlight:
    """The requests that were sent and are not answered.

    Args:
        venue: whose answers they wait for.
    """

    def __init__(self, venue: Venue) -> None:
        self._confirmation = venue.confirmation
        self._answer_timeout = venue.answer_timeout
        self._requests: OrderedDict[Asked, None] = OrderedDict()  # the oldest first
        self._by_id: dict[str, Asked] = {}
        self._one_at_a_time = False
        self._strays = 0
        self._strays_until: float | None = None
        self.clear()

    def clear(self) -> None:
        """The connection is gone."""
        self._requests.clear()
        self._by_id.clear()
        self._one_at_a_time = self._confirmation is Confirmation.ORDER
        self._strays = 0
        self._strays_until = None

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def may_send(self) -> bool:
        """May one more be sent?"""
        most = 1 if self._one_at_a_time else IN_FLIGHT_MAX
        return len(self._requests) < most and self._strays_until is None

    @property
    def unsubscribing(self) -> list[Asked]:
        """Those that unsubscribe."""
        return [asked for asked in self._requests if not asked.request.subscribing]

    def sent(self, asked: Asked, now: float) -> None:
        """This one was sent."""
        asked.sent = now
        asked.deadline = now + self._answer_timeout
        self._requests[asked] = None
        if asked.request.id is not None:
            self._by_id[asked.request.id] = asked

    # ---- time

    @property
    def deadline(self) -> float | None:
        """When a request is overdue, or strays are no more waited for."""
        overdue = next((asked.deadline for asked in self._requests), None)
        times = [time for time in (overdue, self._strays_until) if time is not None]
        return min(times, default=None)

    def overdue(self, now: float) -> Asked | None:
        """The oldest request, if its answer should have come. The caller `give_up`s it."""
        asked = next(iter(self._requests), None)
        return asked if asked is not None and asked.deadline <= now else None

    def give_up(self, asked: Asked, now: float, *, repeated: bool) -> None:
        """Nobody waits for its answer any more. Unless it is made once more, for the same topics
        (`repeated`), no other request is sent while the answer may come."""
        if self._one_at_a_time:
            self._strays += 1
            if not repeated and self._strays > 0:
                self._strays_until = now + self._answer_timeout
        self._drop(asked)

    def end_of_strays(self, now: float) -> bool:
        """Is the time over in which strays were waited for? They are forgotten."""
        if self._strays_until is None or self._strays_until > now:
            return False
        self._forget_strays()
        return True

    def _forget_strays(self) -> None:
        self._strays = 0
        self._strays_until = None

    # ---- answers

    def with_id(self, number: str) -> Asked | None:
        """The request with this id."""
        return self._by_id.get(number)

    def answered_by(self, unnamed: Answer) -> Asked | None:
        """The request that an answer without id and names belongs to, if that can be known."""
        in_order = self._confirmation is Confirmation.ORDER
        refused = unnamed.outcome is Outcome.REFUSED
        if self._confirmation is Confirmation.ID or not (in_order or refused):
            return None  # a worker's own message may have brought it
        if not self._requests:
            self._strays = max(0, self._strays - 1)
            if not self._strays:
                self._strays_until = None
            return None
        self._one_at_a_time = True
        if len(self._requests) > 1:
            self._strays -= 1  # the answer to one that will be overdue has come
            return None
        return next(iter(self._requests))

    def refused_in_part(self, asked: Asked, reason: str, now: float) -> None:
        """The server has refused one topic of several and does not say which. Its other answers
        show it, which come soon."""
        asked.refusals += 1
        asked.reason = reason
        asked.deadline = min(asked.deadline, now + _REST)

    def answered(self, asked: Asked) -> None:
        """Nothing of this request waits for an answer any more."""
        self._drop(asked)
        if self._strays > 0 and asked.sent is not None:
            # It was made twice, and one of two answers has come.
            self._strays_until = asked.sent + 2 * self._answer_timeout

    def _drop(self, asked: Asked) -> None:
        self._requests.pop(asked, None)
        self._by_id.pop(asked.request.id or "", None)
        if not self._requests:
            self._strays = max(0, self._strays)
