"""Requests of the gateway's clients, and whose the answers are.

    client ── the id replaced by one of the gateway's ──▶ uplink ──▶ manager ══▶ server
    client ◀── its own id put back ◀── the gateway's reader ◀── destination ◀── manager ◀══ server

All clients' requests bear the number of the gateway's one reader, so their answers come through the
ring to it alone, and in their place among the messages. The counter in the id says which client has
asked. Where a server answers one request again and again, all answers go the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ..topics.request_counters import OPEN_MAX, Numbered, RequestCounters
from ..topics.requests import IdPlace

if TYPE_CHECKING:
    from ..worker.state import ConnectionState
    from .client import Client

__all__ = ["ClientAnswer", "ClientRequests"]

_OF_ONE_MAX: Final = 1024
"""Requests of one client whose answers are still its own."""


class _Asked(NamedTuple):
    """A request, and the client's number for it."""

    request: Numbered
    key: int


class ClientAnswer(NamedTuple):
    """An answer as its client is to get it.

    Attributes:
        client: who has asked.
        payload: with the id that the request had.
        key: the client's number for the request; 0 if it has none.
    """

    client: Client
    payload: bytes
    key: int


class ClientRequests:
    """The requests of all clients.

    Args:
        slot, generation: of the gateway's reader.

    Attributes:
        dropped: answers whose client had gone, or that came after too many others.
    """

    def __init__(self, slot: int, generation: int) -> None:
        self._slot = slot
        self._generation = generation
        self._counters = RequestCounters()
        self._clients: dict[int, Client] = {}  # by counter
        self._asked: dict[Client, dict[int, _Asked]] = {}  # those heard of last are at the end
        self._place: IdPlace | None = None
        self.dropped = 0

    def look(self, state: ConnectionState) -> None:
        """Where the manager looks for ids now."""
        now = (state.request_id, state.request_id_is_text)
        place = self._place
        if now[0] is None:
            self._place = None
        elif place is None or now != (place.pointer, place.as_text):
            self._place = IdPlace(now[0], as_text=now[1])

    @property
    def are_possible(self) -> bool:
        """Does the manager look for ids?"""
        return self._place is not None

    def readdress(self, client: Client, payload: bytes, key: int = 0) -> bytes:
        """A client's request, with an id that says whose it is.

        Args:
            client: who asks.
            payload: the request.
            key: the client's number for it. One that has this number already and is not ended goes
                on: what is sent bears the same id. Without a number, a request without an id stays
                as it is: its client could not tell an answer.

        Raises:
            ValueError: it is no request; see `IdPlace.readdress`.
        """
        if self._place is None:
            raise ValueError("the manager knows no ids: configure request_id, or a venue that does")
        open_one = self._asked_as(client, key) if key else None
        if open_one is not None:
            return self._place.readdress(payload, open_one.number).payload
        new = self._counters.readdress(self._place, payload, self._slot, self._generation)
        if new.original is None and not key:
            self._counters.give_up(new.counter)
            return payload
        self._make_room(client)
        self._clients[new.counter] = client
        self._asked.setdefault(client, {})[new.counter] = _Asked(new, key)
        return new.payload

    def answer(self, payload: bytes) -> ClientAnswer | None:
        """Whose answer this is; None: nobody's any more."""
        found = self._place.find(payload) if self._place is not None else None
        counter = found.id.counter if found is not None else -1
        if found is None or counter not in self._clients:
            self.dropped += 1
            self._counters.heard(counter)
            return None
        client = self._clients[counter]
        asked = self._asked[client].pop(counter)
        self._asked[client][counter] = asked
        return ClientAnswer(client, found.restored(payload, asked.request.original), asked.key)

    def end(self, client: Client, key: int) -> None:
        """A client wants no more answers to what it numbered so."""
        request = self._asked_as(client, key)
        if request is not None:
            self._forget(client, request.counter)

    def forget(self, client: Client) -> None:
        """A client has gone."""
        for counter in list(self._asked.get(client, ())):
            self._forget(client, counter)

    def _asked_as(self, client: Client, key: int) -> Numbered | None:
        asked = self._asked.get(client, {})
        return next((each.request for each in asked.values() if each.key == key), None)

    def _make_room(self, client: Client) -> None:
        if len(self._asked.get(client, ())) >= _OF_ONE_MAX:
            most = client
        elif len(self._clients) >= OPEN_MAX - 1:
            most = max(self._asked, key=lambda each: len(self._asked[each]))
        else:
            return
        self._forget(most, next(iter(self._asked[most])))

    def _forget(self, client: Client, counter: int) -> None:
        del self._clients[counter]
        del self._asked[client][counter]
        if not self._asked[client]:
            del self._asked[client]
        self._counters.give_up(counter)
