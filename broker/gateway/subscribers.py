"""Clients that subscribe as they would at the exchange, and are answered as it would answer.

What such a client asks for becomes a wish, counted with those of all clients and workers. So the
server is asked once, and one client's unsubscribing takes nothing from another. A client is
answered when the server has said yes or no, and gets the topic's messages after that answer: if the
first of them comes before the answer was looked for, it is looked for then. Where one answer is for
a whole request, and a topic of it waits for the server, messages of the others do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ringcast import shm

from ..topics.dialogue import Answering, Ask, Dialogue
from ..topics.venue import Venue
from .wishes import Wishes

if TYPE_CHECKING:
    from ._fanout import Addressed
    from .client import Client

__all__ = ["Subscribers"]

FIXED_TOPICS: Final = "a group's topics are fixed when it is made"
READ_ONLY: Final = "this gateway is read-only"


@dataclass(eq=False, slots=True)
class _Unanswered:
    """A request to subscribe, how the exchange talks that was asked, and the topics for which it is
    not answered yet."""

    ask: Ask
    dialogue: Dialogue
    names: list[str]


class Subscribers:
    """The subscribing of plain clients.

    Args:
        venue: the exchange.
        dialogue: how its server talks.
        wishes: of all clients.
        read_only: topics that the server does not send already are refused.
        chosen: called when a client wants other topics than before.
    """

    def __init__(
        self,
        venue: Venue,
        dialogue: Dialogue,
        wishes: Wishes,
        *,
        read_only: bool,
        chosen: Callable[[Client], None],
    ) -> None:
        self._venue = venue
        self._dialogue = dialogue
        self._wishes = wishes
        self._read_only = read_only
        self._chosen = chosen
        self._want_snapshots: set[Client] = set()
        self._unanswered: dict[Client, list[_Unanswered]] = {}

    def speak_for(self, venue: Venue, dialogue: Dialogue) -> None:
        """The manager has another venue. Requests that wait are answered as they were asked."""
        self._venue = venue
        self._dialogue = dialogue

    def asked(self, client: Client, ask: Ask) -> None:
        """A client subscribes or unsubscribes."""
        if client.member is not None:
            self._answer(client, ask, dict.fromkeys(ask.names, FIXED_TOPICS))
            return
        if client.topics is None:  # from now on it gets what it asks for
            client.topics = []
            self._chosen(client)
        if ask.subscribing:
            self._subscribe(client, ask)
        else:
            self._unsubscribe(client, ask)

    def _subscribe(self, client: Client, ask: Ask) -> None:
        assert client.topics is not None
        new = [n for n in ask.names if n not in client.topics and n not in client.pending]
        if self._read_only and not all(self._wishes.is_had(name) for name in new):
            self._answer(client, ask, dict.fromkeys(ask.names, READ_ONLY))
            return
        try:
            self._wishes.want(new, snapshot=True)
        except (shm.RingError, ValueError) as error:
            self._answer(client, ask, dict.fromkeys(ask.names, str(error)))
            return
        if any(self._venue.snapshot(name).kind == "request" for name in new):
            self._want_snapshots.add(client)
        waits = [name for name in ask.names if name not in client.topics]
        client.pending.update(waits)
        self._chosen(client)
        request = _Unanswered(ask, self._dialogue, list(ask.names))
        self._unanswered.setdefault(client, []).append(request)
        self._wishes.when_answered(client, waits, partial(self._settle, client, request))

    def _unsubscribe(self, client: Client, ask: Ask) -> None:
        assert client.topics is not None
        had = [name for name in ask.names if name in client.topics or name in client.pending]
        client.pending.difference_update(had)
        client.topics = [name for name in client.topics if name not in had]
        self._wishes.give_up(had)
        self._chosen(client)
        self._answer(client, ask)

    # -- answers

    def _settle(self, client: Client, request: _Unanswered, reasons: dict[str, str]) -> None:
        """The server has answered for all of a request's topics."""
        requests = self._unanswered.get(client)
        if client.topics is None or requests is None:
            return  # it has gone
        requests.remove(request)
        ask, waited = request.ask, [name for name in request.ask.names if name in client.pending]
        client.pending.difference_update(waited)
        is_whole = reasons and request.dialogue.answering is Answering.WHOLE
        refused = waited if is_whole else [name for name in waited if name in reasons]
        self._wishes.give_up(refused)
        client.topics += [name for name in waited if name not in refused]
        self._answer(client, replace(ask, names=tuple(request.names)), reasons, request.dialogue)
        self._chosen(client)

    def data_comes(self, client: Client, name: str) -> None:
        """A message of a topic comes for which a client waits."""
        self._wishes.look()
        if name not in client.pending or client.topics is None:
            return
        # The rest of its request is not answered; the topic's messages need not wait for that.
        client.pending.discard(name)
        client.topics.append(name)
        for request in self._unanswered.get(client, ()):
            if name in request.names and request.dialogue.answering is Answering.EACH:
                request.names.remove(name)
                self._answer(client, replace(request.ask, names=(name,)), None, request.dialogue)

    def snapshot_comes(self, message: Addressed, payload: bytes) -> None:
        """A snapshot that was asked for by a request of its own. It does not say which client is
        meant: all that have asked for one get it, as a state that is newer than theirs."""
        for client in list(self._want_snapshots):
            client.insert_message(message.sequence, payload, message.kind)

    def _answer(
        self,
        client: Client,
        ask: Ask,
        refused: Mapping[str, str] | None = None,
        dialogue: Dialogue | None = None,
    ) -> None:
        speaks = dialogue or self._dialogue
        for text in speaks.answers(ask, refused, held=client.topics or ()):
            client.send_message(text.encode(), is_text=True)

    # -- the end

    def forget(self, client: Client) -> None:
        """A client has gone."""
        self._want_snapshots.discard(client)
        self._unanswered.pop(client, None)
