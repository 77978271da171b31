"""What goes to the server: the workers' messages, in the order of their tickets, at a bounded rate.

    workers ── lanes, tickets ──▶ Outbox ── frames, many a write ──▶ socket
    Wishes ── requests for topics ──▶ ┘

After connecting, the first messages go first, then the requests for topics, then what was held.
A message is taken from the uplink when the socket has room and the rate allows, and acknowledged
when the last of its bytes was handed to the socket. One that was not, because the connection ended,
is sent again on the next one (`Config.offline_sends` is "buffer"), or rejected ("reject"):
the server can't have acted on a frame that it did not get whole.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ringcast import shm
from ringcast.shm import mpsc

from ..config import Config
from ..connection import Connection
from ..logs import log_event
from ..topics.rate import TokenBucket
from ..topics.venue import Venue
from ..worker import parts
from .wakeup import Wakeup
from .wishes import Wishes

__all__ = ["Outbox"]

_IN_FLIGHT_AT_A_RATE: Final = 2
"""Messages that each worker may have in flight while the rate is limited, unless configured: one on
its way, the next one ready. So nobody's message waits for more than two of each other worker's."""
_NO_LIMIT: Final = 0
_BACKLOG_MAX: Final = 1 << 16
"""Bytes not yet taken by the socket above which nothing more is taken from the uplink."""
_BATCH: Final = 256
"""Messages that are put into one write."""
_BATCHES_MAX: Final = 16
"""In one turn."""
_HOLD_MOST: Final = 10.0
"""Seconds that workers' messages wait, at most, until topics were asked for after connecting."""
_OFFLINE_LOOK: Final = 0.1
"""Seconds between two looks at held messages while there is no connection."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A message on its way, or in its place among those that are.

    Attributes:
        envelope: as the worker sent it; None for one of `Config.initial_messages`, and for what the
            manager sends by itself.
        payload: what is sent for it; None for nothing: it is a part of a later one, or rejected.
        text: and not binary.
        rejected: this is reported to its sender, in its turn.
        is_request: it is for topics, and was counted as sent when it was made.
    """

    envelope: mpsc.Envelope | None
    payload: bytes | None = None
    text: bool = False
    rejected: bool = False
    is_request: bool = False


class _UplinkWatcher:
    """Wakes the manager when a worker sends: a semaphore can't be polled, so one thread sleeps on
    it, without the GIL, each time it is armed.

    Attributes:
        wakeup: set when a worker has sent.
    """

    def __init__(self, receiver: mpsc.Receiver) -> None:
        self.wakeup = Wakeup()
        self._receiver = receiver
        self._armed = threading.Semaphore(0)
        self._asleep = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._thread.start()

    def arm(self) -> None:
        """Watch for the next message, or one that is there already."""
        if not self._asleep:
            self._asleep = True
            self._armed.release()

    def has_fired(self) -> bool:
        """Has a worker sent since it was armed? Then it is to be armed again, some time."""
        if not self.wakeup.clear():
            return False
        self._asleep = False
        return True

    def _run(self) -> None:
        while True:
            self._armed.acquire()
            if self._ended or not self._receiver.wait_into(self.wakeup.fd):
                return

    def end(self) -> None:
        """No more; the receiver is closed, so the thread wakes."""
        self._ended = True
        self._armed.release()
        self._thread.join()


class Outbox:
    """Takes what workers send, and what is asked for topics, and hands it to the connection.

    Args:
        receiver: of the uplink.
        config: the manager's.
        venue: its limits and first messages; or None.
        wishes: what is asked for topics; None without a venue.

    Attributes:
        wakeup: set when there is something to take.
    """

    def __init__(
        self,
        receiver: mpsc.Receiver,
        config: Config,
        venue: Venue | None = None,
        wishes: Wishes | None = None,
    ) -> None:
        self._receiver = receiver
        self._config = config
        self._longest = max(config.capacity // 4, receiver.max_message)
        rate, burst = config.send_rate, config.send_burst
        if rate is None and venue is not None and venue.messages_per_second is not None:
            rate, burst = venue.messages_per_second, venue.burst
        self._bucket = TokenBucket(rate, burst)
        self._counts_everything = venue is None or venue.counts_everything
        self._wishes = wishes
        self._holding_until = 0.0  # workers' messages wait until topics were asked for
        self._first = (*(venue.initial if venue is not None else ()), *config.initial_messages)
        self._initial: collections.deque[str | bytes] = collections.deque()  # still to be sent
        self._again: collections.deque[_InFlight] = collections.deque()
        self._assemblies: dict[int, parts.Assembly] = {}
        self._in_flight: collections.deque[_InFlight] = collections.deque()
        self._handed_over = 0
        self._more = False  # in the uplink than the rate or the socket let through
        self._connected = False
        self._reading = True
        self._watcher = _UplinkWatcher(receiver)
        self.wakeup = self._watcher.wakeup
        receiver.limit_in_flight(_max_in_flight(config, rate))
        receiver.reject_sends(config.offline_sends == "reject")
        self._watcher.arm()

    def control_frame_sent(self) -> None:
        """A ping or pong was sent."""
        if self._counts_everything:
            self._spend(1)

    def _spend(self, count: int, *, requests: int = 0) -> None:
        """So many messages were sent, `requests` of them for topics."""
        self._bucket.spend(count, time.monotonic())
        if self._wishes is not None and count > requests:
            self._wishes.spent(count - requests)

    def connected(self) -> None:
        """A connection is open: send what is configured first, then what was held."""
        self._connected = True
        self._handed_over = 0
        self._initial.extend(self._first)
        if self._wishes is not None:
            self._wishes.connected()
            self._holding_until = time.monotonic() + _HOLD_MOST
        self._receiver.reject_sends(False)
        self._more = True

    def disconnected(self, connection: Connection) -> None:
        """It is gone."""
        self._settle(connection)
        left = [entry for entry in self._in_flight if entry.envelope is not None]
        self._in_flight.clear()
        self._initial.clear()
        self._connected = False
        if self._wishes is not None:
            self._wishes.disconnected()
        if self._config.offline_sends == "reject":
            self._receiver.reject_sends(True)
            self._reject(left)
            self._more = True
        else:
            self._again.extendleft(reversed(left))

    def turn(self, connection: Connection | None, *, reading: bool = True) -> None:
        """Do what can be done.

        Args:
            connection: the open one, or None.
            reading: False while the ring is full, and answers of the server can't be read: then
                nothing is asked for topics.
        """
        self._reading = reading
        if self._wishes is not None:
            self._wishes.turn()
        if self._watcher.has_fired():
            self._more = True
        self._receiver.look_around()
        if connection is not None and self._connected:
            self._settle(connection)
            self._send_urgent(connection)
            self._hand_over(connection)
            self._settle(connection)
        elif self._config.offline_sends == "reject" and self._more:
            self._reject_waiting()

    def deadline(self, connection: Connection | None) -> float | None:
        """When `turn` is to be called again though `wakeup` is not set, time.monotonic()."""
        times = [self._next_message(connection)]
        if self._wishes is not None:
            times.append(self._wishes.deadline(connected=connection is not None))
        return min((at for at in times if at is not None), default=None)

    def _next_message(self, connection: Connection | None) -> float | None:
        """When one of the messages that wait may go."""
        now = time.monotonic()
        waiting = self._more or self._again
        if not (waiting or self._initial):
            return None
        if connection is None:  # what is held may be a dead worker's, whose lane is needed
            return now + _OFFLINE_LOOK
        if not self._has_room(connection):
            return None
        if not self._initial and self._is_holding():
            return self._holding_until
        return now + self._bucket.ready_in(now)

    def _is_holding(self) -> bool:
        """After connecting, topics are asked for before workers' messages are sent."""
        if self._wishes is None or time.monotonic() >= self._holding_until:
            return False
        if not self._initial and not self._wishes.is_behind:
            self._holding_until = 0.0
            return False
        return True

    def _send_urgent(self, connection: Connection) -> None:
        """Signs of life go first, and are paid for later."""
        texts = self._wishes.urgent() if self._wishes is not None else []
        for text in texts:
            self._put(connection, _InFlight(None, text.encode(), text=True))
        if texts:
            if self._counts_everything:
                self._spend(len(texts), requests=len(texts))  # `urgent` has told the wishes
            connection.flush()

    def _has_room(self, connection: Connection) -> bool:
        return connection.backlog < _BACKLOG_MAX

    def _hand_over(self, connection: Connection) -> None:
        """Put many frames into one write, and again as long as there are more; for a while, since
        there is a connection to be read, too."""
        for _ in range(_BATCHES_MAX):
            allowed = self._bucket.whole_tokens(time.monotonic())
            if not allowed or not self._has_room(connection):
                break
            batch = self._next(min(allowed, _BATCH))
            if not batch:
                break
            for entry in batch:
                self._put(connection, entry)
            sent = [entry for entry in batch if entry.payload is not None]
            self._spend(len(sent), requests=sum(entry.is_request for entry in sent))
            connection.flush()

    def _next(self, limit: int) -> list[_InFlight]:
        """What goes next, at most `limit` messages; none if there are none."""
        batch: list[_InFlight] = []
        while self._initial and len(batch) < limit:
            message = self._initial.popleft()
            payload = message.encode() if isinstance(message, str) else message
            batch.append(_InFlight(None, payload, text=isinstance(message, str)))
        if self._wishes is not None and self._reading:
            for text in self._wishes.take(limit - len(batch)):
                batch.append(_InFlight(None, text.encode(), text=True, is_request=True))
        if self._is_holding():
            return batch
        while self._again and len(batch) < limit:
            batch.append(self._again.popleft())
        if self._more and len(batch) < limit:
            wanted = limit - len(batch)
            taken = self._receiver.read_available(wanted)
            batch.extend(map(self._checked, taken))
            if len(taken) < wanted:
                self._more = False
                self._watcher.arm()
        return batch

    def _checked(self, envelope: mpsc.Envelope) -> _InFlight:
        """What is sent for a worker's message, if anything."""
        payload, kind = bytes(envelope), envelope.kind
        if kind == parts.KIND:
            assembly = self._assemblies.setdefault(envelope.sender, parts.Assembly(self._longest))
            try:
                whole = assembly.add(payload)
            except parts.BadPartError as error:
                return self._evict(envelope, str(error))
            except LookupError:  # a manager died with the beginning
                return _InFlight(envelope, rejected=True)
            if whole is None:
                return _InFlight(envelope)
            payload, kind = whole
        if kind == shm.Kind.BINARY:
            return _InFlight(envelope, payload)
        if kind == shm.Kind.TEXT and _is_text(payload):
            return _InFlight(envelope, payload, text=True)
        return self._evict(
            envelope, "it sent a text that is not UTF-8, or a kind that is not known"
        )

    def _evict(self, envelope: mpsc.Envelope, why: str) -> _InFlight:
        """A worker is not to make the server close everybody's connection."""
        self._receiver.evict(envelope.sender)
        log_event(logging.WARNING, "evicted", ring=self._config.name, lane=envelope.sender, why=why)
        return _InFlight(envelope, rejected=True)

    def _put(self, connection: Connection, entry: _InFlight) -> None:
        self._in_flight.append(entry)
        if entry.payload is not None:
            connection.put(entry.payload, text=entry.text)

    def _settle(self, connection: Connection) -> None:
        """Acknowledge what the socket has taken whole, in the order of the tickets."""
        sent = connection.protocol.sent
        taken = sent - self._handed_over
        self._handed_over = sent
        delivered: list[mpsc.Envelope] = []
        while self._in_flight and (taken or self._in_flight[0].payload is None):
            entry = self._in_flight.popleft()
            taken -= entry.payload is not None
            if entry.rejected:
                self._receiver.ack(delivered)
                delivered = []
                self._reject([entry])
            elif entry.envelope is not None:
                delivered.append(entry.envelope)
        if delivered:
            self._receiver.ack(delivered)

    def _reject(self, entries: Iterable[_InFlight]) -> None:
        envelopes = [entry.envelope for entry in entries if entry.envelope is not None]
        self._receiver.ack(envelopes, rejected=True)

    def _reject_waiting(self) -> None:
        """Not connected, and nothing is held: reject what is in the uplink."""
        for _ in range(_BATCHES_MAX):
            taken = self._receiver.read_available(_BATCH)
            self._receiver.ack(taken, rejected=True)
            if len(taken) < _BATCH:
                self._more = False
                self._watcher.arm()
                break

    def close(self) -> None:
        """End the uplink. What was held or is still in it is not sent, and is rejected."""
        self._receiver.reject_sends(True)
        self._reject(self._again)
        self._again.clear()
        self._reject_waiting()
        self._receiver.close()
        self._watcher.end()


def _max_in_flight(config: Config, rate: float | None) -> int:
    if config.max_in_flight is not None:
        return config.max_in_flight
    return _IN_FLIGHT_AT_A_RATE if rate is not None else _NO_LIMIT


def _is_text(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
