"""What the gateway's clients say to the server, want of it, and are answered.

plain client ── subscribes, as at the exchange ──▶ `Subscribers` ──▶ wishes
── pings, logs in                 ──▶ answered here
── a request with an id           ──▶ `ClientRequests` ──▶ uplink
── anything else                  ──▶ uplink
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from websockets.frames import CloseCode

from ringcast import shm

from ..topics.dialogue import Ask, Dialogue, Login, Ping
from ..topics.venue import Venue
from ..topics.venue_file import VenueError, load_venue
from ..worker import wire
from ..worker.feed import Feed
from ..worker.sending import MessageSender
from ..worker.state import ConnectionState
from .client import Refused, Upward
from .client_requests import ClientRequests
from .subscribers import FIXED_TOPICS, READ_ONLY, Subscribers
from .wishes import Wishes

if TYPE_CHECKING:
    from ._fanout import Addressed
    from .client import Client
    from .options import ClientOptions

__all__ = ["Upstream"]

_TOPIC_SEPARATOR: Final = "\0"

_log = logging.getLogger(__name__)


class Upstream:
    """What goes up, for one ring.

    Args:
        feed: the gateway's reader of the ring.
        owner: user id of the ring's manager, if it is another's.
        read_only: clients send nothing, and want no topics that the server does not send already.
        forward_login: logins go up though the manager has logged in.
        chosen: called when a client wants other topics than before.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        owner: int | None,
        read_only: bool,
        forward_login: bool,
        chosen: Callable[[Client], None],
    ) -> None:
        self._feed = feed
        self._owner = owner
        self._read_only = read_only
        self._forward_login = forward_login
        self._chosen = chosen
        self._requests = ClientRequests(feed.slot, feed.generation)
        self._wishes: Wishes | None = None
        self._subscribers: Subscribers | None = None
        self._note = b""
        self._state: ConnectionState | None = None
        self._venue_named: str | None = None
        self._venue: Venue | None = None
        self._dialogue: Dialogue | None = None

    # -- what the manager says of itself

    def look(self) -> None:
        """Look at the connection's state: a manager that has resumed the ring may have another
        venue."""
        note = self._feed.note
        if note == self._note:
            return
        self._note = note
        self._state = state = ConnectionState.decode(note)
        if state is None:
            return
        self._requests.look(state)
        if state.venue != self._venue_named:
            self._venue_named = state.venue
            self._venue = _venue(state.venue)
            self._dialogue = Dialogue(self._venue) if self._venue is not None else None
            if self._subscribers and self._venue and self._dialogue:
                self._subscribers.speak_for(self._venue, self._dialogue)

    def _wishes_now(self) -> Wishes:
        if self._wishes is None:
            self._wishes = Wishes(self._feed.name, self._owner)
        return self._wishes

    # -- what a URL asks for

    def admit(self, client: Client, options: ClientOptions) -> None:
        """Want what a client's URL names. Raises Refused."""
        self.look()
        topics = options.topics
        if topics is None and self._dialogue is not None:
            topics = self._dialogue.topics_of_url(options.path, options.rest)
        if topics is not None:
            self._want(topics)
            client.topics = list(topics)

    def _want(self, topics: Sequence[str]) -> None:
        """Raises Refused."""
        try:
            wishes = self._wishes_now()
            if self._read_only:
                for name in topics:
                    if "*" not in name and not wishes.is_had(name):
                        raise Refused(403, f"{READ_ONLY}, and the server does not send {name!r}")
            wishes.want(topics)
        except (shm.RingError, ValueError) as error:
            raise Refused(503 if isinstance(error, shm.RingError) else 400, str(error)) from error

    # -- what a client says

    def received(self, client: Client, sent: Upward) -> Upward | None:
        """A client has said something. Returns what is to be handed in again when there is room for
        it; None: it is done."""
        record = sent.record
        if sent.is_ready:
            return self._send(client, sent)
        if record is None:
            return self._said(client, sent)
        if record.type == wire.RecordType.SEND:
            return self._send(client, sent)
        if record.type == wire.RecordType.REQUEST:
            return self._request(client, sent, record.key)
        if record.type == wire.RecordType.END_REQUEST:
            self._requests.end(client, record.key)
        elif record.type in (wire.RecordType.SUBSCRIBE, wire.RecordType.UNSUBSCRIBE):
            if not self._may_ask(client):
                return sent
            self._change_topics(client, record, sent.payload)
        elif client.member is None or not client.member.received(record):
            client.close(CloseCode.UNSUPPORTED_DATA, f"a record of type {record.type} is unknown")
        return None

    def _said(self, client: Client, sent: Upward) -> Upward | None:
        """A plain client has: what its exchange would understand is understood."""
        self.look()
        payload = sent.payload
        dialogue = self._dialogue if sent.is_text else None
        understood = dialogue.read(payload) if dialogue is not None else None
        if isinstance(understood, Ask):
            if not self._may_ask(client):
                return sent
            try:
                self._subscribing().asked(client, understood)
            except shm.RingError as error:  # such as: no slot is left for a reader
                client.close(CloseCode.TRY_AGAIN_LATER, str(error))
            return None
        if isinstance(understood, Ping) or (isinstance(understood, Login) and self._is_logged_in):
            client.send_message(understood.answer.encode(), is_text=True)
            return None
        if self._requests.are_possible and not self._read_only:
            with contextlib.suppress(ValueError):  # no request: it goes up as it is
                payload = self._requests.readdress(client, payload)
        return self._send(client, dataclasses.replace(sent, payload=payload, is_ready=True))

    def _may_ask(self, client: Client) -> bool:
        """May it ask for topics now, or do too many of its requests wait for the server?"""
        return self._wishes is None or self._wishes.may_ask(client)

    @property
    def _is_logged_in(self) -> bool:
        """Is there nothing to log in for?"""
        is_in = self._state is not None and self._state.is_logged_in
        return is_in and not self._forward_login

    def _subscribing(self) -> Subscribers:
        if self._subscribers is None:
            assert self._venue is not None
            assert self._dialogue is not None
            self._subscribers = Subscribers(
                self._venue,
                self._dialogue,
                self._wishes_now(),
                read_only=self._read_only,
                chosen=self._chosen,
            )
        return self._subscribers

    def _request(self, client: Client, sent: Upward, key: int) -> Upward | None:
        self.look()
        if self._read_only:
            client.refuse(key, READ_ONLY)
            return None
        try:
            payload = self._requests.readdress(client, sent.payload, key)
        except ValueError as error:
            client.refuse(key, str(error))
            return None
        return self._send(
            client, dataclasses.replace(sent, payload=payload, is_text=True, is_ready=True)
        )

    def _send(self, client: Client, sent: Upward) -> Upward | None:
        if self._read_only:
            self._refuse(client, sent, CloseCode.POLICY_VIOLATION, READ_ONLY)
            return None
        if client.sender is None:
            client.sender = MessageSender(
                self._feed.name,
                label=client.label,
                owner=self._owner,
                max_message=self._feed.max_message,
            )
        try:
            ticket = client.try_send(sent)
        except shm.MessageTooLarge as error:
            self._refuse(client, sent, CloseCode.MESSAGE_TOO_BIG, str(error))
        except shm.RingError as error:
            self._refuse(client, sent, CloseCode.SERVICE_RESTART, str(error))
        else:
            if ticket is None:
                return sent
            if sent.record is not None:
                client.sent_as(ticket, sent.record.key)
        return None

    def _refuse(self, client: Client, sent: Upward, code: int, why: str) -> None:
        """What a client has sent goes nowhere: a plain one can be told by its end alone."""
        if sent.record is None:
            client.close(code, why)
        else:
            client.refuse(sent.record.key, why)

    def _change_topics(self, client: Client, record: wire.Record, payload: bytes) -> None:
        if client.member is not None:
            client.refuse(record.key, FIXED_TOPICS)
            return
        if client.topics is None:
            client.refuse(record.key, "it gets every topic: connect with ?topics=")
            return
        try:
            names = payload.decode().split(_TOPIC_SEPARATOR)
            if record.type == wire.RecordType.SUBSCRIBE:
                new = [name for name in dict.fromkeys(names) if name not in client.topics]
                self._want(new)
                client.topics += new
                self._wishes_now().when_answered(
                    client, names, partial(self._answer_wish, client, record.key)
                )
            else:
                had = [name for name in dict.fromkeys(names) if name in client.topics]
                client.topics = [name for name in client.topics if name not in had]
                self._give_up(had)
                client.acknowledge(record.key, 0)
        except (Refused, UnicodeDecodeError) as error:
            client.refuse(record.key, error.reason)
            return
        self._chosen(client)

    def _answer_wish(self, client: Client, key: int, reasons: dict[str, str]) -> None:
        """The server has answered for all of a SUBSCRIBE. What is refused stays wanted, as a
        worker's does: it may be had later."""
        if reasons:
            client.refuse(key, "\n".join(f"{name}\t{why}" for name, why in reasons.items()))
        else:
            client.acknowledge(key, 0)

    # -- what comes for one client

    def data_comes(self, client: Client, name: str) -> None:
        """A message of a topic comes for which a client waits."""
        if self._subscribers is not None:
            self._subscribers.data_comes(client, name)

    def answered(self, message: Addressed, payload: bytes) -> None:
        """A message for one reader has come: perhaps for this gateway, and one of its clients."""
        reader = (message.slot, message.generation)
        if self._wishes is not None and reader == self._wishes.reader:
            if self._subscribers is not None:
                self._subscribers.snapshot_comes(message, payload)
            return
        if reader != (self._feed.slot, self._feed.generation):
            return
        answer = self._requests.answer(payload)
        if answer is None:
            return
        if not answer.client.records:
            answer.client.insert_message(message.sequence, answer.payload, message.kind)
            return
        record = wire.Record(
            wire.RecordType.ANSWER,
            answer.payload,
            kind=message.kind,
            sequence=message.sequence,
            time_ns=message.time_ns,
            key=answer.key,
        )
        answer.client.insert_message(message.sequence, wire.encode(record), shm.Kind.BINARY)

    # -- the end

    def gone(self, client: Client) -> None:
        """A client is no more."""
        self._requests.forget(client)
        if self._subscribers is not None:
            self._subscribers.forget(client)
        if self._wishes is not None:
            self._wishes.forget(client)
        self._give_up([*(client.topics or ()), *client.pending])

    def _give_up(self, topics: Sequence[str]) -> None:
        if self._wishes is not None and topics:
            with contextlib.suppress(shm.RingClosed):  # the ring has ended, and all wishes with it
                self._wishes.give_up(topics)

    def close(self) -> None:
        """The ring has ended."""
        if self._wishes is not None:
            self._wishes.close()


def _venue(named: str | None) -> Venue | None:
    try:
        return load_venue(named) if named is not None else None
    except VenueError as error:
        _log.warning("what clients say goes up as it is: %s", error)
        return None
