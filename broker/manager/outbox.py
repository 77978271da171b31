"""What goes to the server: the workers' messages, in the order of their tickets, at a bounded rate.

    workers ── lanes, tickets ──▶ Outbox ── frames, many a write ──▶ socket

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
from typing import TYPE_CHECKING, Final

from ringcast import shm
from ringcast.shm import mpsc

from ..config import Config
from ..logs import Bell, tell
from ..worker import parts

if TYPE_CHECKING:
    from ..connection.upstream import Connection

__all__ = ["Bucket", "Outbox"]

_SHARE: Final = 2
"""Messages that a worker may have under way while the rate is limited: one on its way, the next one
ready. So nobody's message waits for more than two of each other worker's."""
_BACKLOG: Final = 1 << 16
"""Bytes not yet taken by the socket above which nothing more is taken from the uplink."""
_BATCH: Final = 256
_BATCHES: Final = 16
"""In one turn."""
_LOOK: Final = 0.1


class Bucket:
    """A token bucket: `rate` messages a second, at most `burst` at once after a pause.

    Servers count every frame, pings and pongs included; those can't wait, and are paid for later.
    """

    def __init__(self, rate: float | None, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._filled = time.monotonic()

    def _fill(self, rate: float) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * rate)
        self._filled = now

    def whole_tokens(self) -> int:
        """How many messages may be sent now."""
        if self._rate is None:
            return _BATCH
        self._fill(self._rate)
        return max(0, int(self._tokens))

    def spend(self, count: int = 1) -> None:
        """So many were sent."""
        if self._rate is not None:
            self._fill(self._rate)
            # A server that pings without end is not to keep workers from sending for ever.
            self._tokens = max(-self._burst, self._tokens - count)

    def ready_in(self) -> float:
        """Seconds until one may be sent."""
        if self._rate is None:
            return 0.0
        self._fill(self._rate)
        return max(0.0, (1.0 - self._tokens) / self._rate)


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A message on its way, or in its place among those that are.

    Attributes:
        sent: a worker's; None for one of `Config.initial_messages`.
        payload: what is sent for it; None for nothing: it is a part of a later one, or rejected.
        text: and not binary.
        rejected: its sender is told, in its turn.
    """

    sent: mpsc.Envelope | None
    payload: bytes | None = None
    text: bool = False
    rejected: bool = False


class _Waker:
    """Rings the manager's bell when a worker sends: a semaphore can't be polled, so one thread
    sleeps on it, without the GIL. It sleeps only when it is told to."""

    def __init__(self, receiver: mpsc.Receiver, bell: Bell) -> None:
        self._receiver = receiver
        self._bell = bell
        self._armed = threading.Semaphore(0)
        self._asleep = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._thread.start()

    def arm(self) -> None:
        """Ring at the next message, or for one that is there already."""
        if not self._asleep:
            self._asleep = True
            self._armed.release()

    def rang(self) -> bool:
        """Has it rung since it was armed? Then it is to be armed again, some time."""
        if not self._bell.hush():
            return False
        self._asleep = False
        return True

    def _run(self) -> None:
        while True:
            self._armed.acquire()
            if self._ended or not self._receiver.wait_into(self._bell.fd):
                return

    def end(self) -> None:
        """No more; the receiver is closed, so the thread wakes."""
        self._ended = True
        self._armed.release()
        self._thread.join()


class Outbox:
    """Takes what workers send and hands it to the connection.

    Attributes:
        bell: rings when there is something to take.
    """

    def __init__(self, receiver: mpsc.Receiver, config: Config) -> None:
        self._receiver = receiver
        self._config = config
        self._longest = max(config.capacity // 4, receiver.max_message)
        self._bucket = Bucket(config.send_rate, config.send_burst)
        self._say: collections.deque[str | bytes] = collections.deque()
        self._again: collections.deque[_UnderWay] = collections.deque()
        self._assemblies: dict[int, parts.Assembly] = {}
        self._under_way: collections.deque[_UnderWay] = collections.deque()
        self._handed_over = 0
        self._more = False  # in the uplink than the rate or the socket let through
        self._connected = False
        self.bell = Bell()
        self._waker = _Waker(receiver, self.bell)
        receiver.limit_in_flight(_SHARE if config.send_rate is not None else 0)
        self._refuse(config.offline_sends == "reject")
        self._waker.arm()

    def _refuse(self, rejecting: bool) -> None:
        self._receiver.reject_sends(rejecting)

    def spend(self) -> None:
        """A control frame was sent."""
        self._bucket.spend()

    def connected(self) -> None:
        """A connection is open: say what is configured first, then what was held."""
        self._connected = True
        self._handed_over = 0
        self._say.extend(self._config.initial_messages)
        self._refuse(False)
        self._more = True

    def disconnected(self, connection: Connection) -> None:
        """It is gone."""
        self._settle(connection)
        left = [entry for entry in self._under_way if entry.sent is not None]
        self._under_way.clear()
        self._say.clear()
        self._connected = False
        if self._config.offline_sends == "reject":
            self._refuse(True)
            self._refuse_all(left)
            self._more = True
        else:
            self._again.extendleft(reversed(left))

    def turn(self, connection: Connection | None) -> None:
        """Do what can be done. `connection` is the open one, or None."""
        if self._waker.rang():
            self._more = True
        self._receiver.look_around()
        if connection is not None and self._connected:
            self._settle(connection)
            self._hand_over(connection)
            self._settle(connection)
        elif self._config.offline_sends == "reject" and self._more:
            self._drop()

    def deadline(self, connection: Connection | None) -> float | None:
        """When `turn` is to be called again though the bell does not ring, time.monotonic()."""
        if not (self._more or self._say or self._again):
            return None
        if connection is None:  # what is held may be a dead worker's, whose lane somebody wants
            return time.monotonic() + _LOOK
        return time.monotonic() + self._bucket.ready_in() if self._has_room(connection) else None

    def _has_room(self, connection: Connection) -> bool:
        return connection.backlog < _BACKLOG

    def _hand_over(self, connection: Connection) -> None:
        """Put many frames into one write, and again as long as there are more; for a while, since
        there is a connection to be read, too."""
        for _ in range(_BATCHES):
            allowed = self._bucket.whole_tokens()
            if not allowed or not self._has_room(connection):
                break
            batch = self._next(min(allowed, _BATCH))
            if not batch:
                break
            for entry in batch:
                self._put(connection, entry)
            connection.flush()

    def _next(self, limit: int) -> list[_UnderWay]:
        """What goes next, at most `limit` messages; none if there are none."""
        batch: list[_UnderWay] = []
        while self._say and len(batch) < limit:
            said = self._say.popleft()
            payload = said.encode() if isinstance(said, str) else said
            batch.append(_UnderWay(None, payload, text=isinstance(said, str)))
        while self._again and len(batch) < limit:
            batch.append(self._again.popleft())
        if self._more and len(batch) < limit:
            wanted = limit - len(batch)
            taken = self._receiver.read_available(wanted)
            batch.extend(map(self._judge, taken))
            if len(taken) < wanted:
                self._more = False
                self._waker.arm()
        return batch

    def _judge(self, sent: mpsc.Envelope) -> _UnderWay:
        """What is to become of a worker's message."""
        payload, kind = bytes(sent), sent.kind
        if kind == parts.KIND:
            assembly = self._assemblies.setdefault(sent.sender, parts.Assembly(self._longest))
            try:
                whole = assembly.add(payload)
            except parts.BadPartError as error:
                return self._evict(sent, str(error))
            except LookupError:  # a manager died with the beginning
                return _UnderWay(sent, rejected=True)
            if whole is None:
                return _UnderWay(sent)
            payload, kind = whole
        if kind == shm.Kind.BINARY:
            return _UnderWay(sent, payload)
        if kind == shm.Kind.TEXT and _is_text(payload):
            return _UnderWay(sent, payload, text=True)
        return self._evict(sent, "it sent a text that is not UTF-8, or a kind that is not known")

    def _evict(self, sent: mpsc.Envelope, why: str) -> _UnderWay:
        """A worker is not to make the server close everybody's connection."""
        self._receiver.evict(sent.sender)
        tell(logging.WARNING, "evicted", ring=self._config.name, lane=sent.sender, why=why)
        return _UnderWay(sent, rejected=True)

    def _put(self, connection: Connection, entry: _UnderWay) -> None:
        self._under_way.append(entry)
        if entry.payload is not None:
            connection.put(entry.payload, text=entry.text)
            self._bucket.spend()

    def _settle(self, connection: Connection) -> None:
        """Acknowledge what the socket has taken whole, in the order of the tickets."""
        taken = connection.sent - self._handed_over
        self._handed_over = connection.sent
        delivered: list[mpsc.Envelope] = []
        while self._under_way and (taken or self._under_way[0].payload is None):
            entry = self._under_way.popleft()
            taken -= entry.payload is not None
            if entry.rejected:
                self._receiver.ack(delivered)
                delivered = []
                self._refuse_all([entry])
            elif entry.sent is not None:
                delivered.append(entry.sent)
        if delivered:
            self._receiver.ack(delivered)

    def _refuse_all(self, entries: Iterable[_UnderWay]) -> None:
        sent = [entry.sent for entry in entries if entry.sent is not None]
        self._receiver.ack(sent, rejected=True)

    def _drop(self) -> None:
        """Not connected, and nothing is held: those who sent are told."""
        for _ in range(_BATCHES):
            taken = self._receiver.read_available(_BATCH)
            self._receiver.ack(taken, rejected=True)
            if len(taken) < _BATCH:
                self._more = False
                self._waker.arm()
                break

    def close(self) -> None:
        """End the uplink. What was held or is still in it will not be sent: senders are told."""
        self._refuse(True)
        self._refuse_all(self._again)
        self._again.clear()
        self._drop()
        self._receiver.close()
        self._waker.end()


def _is_text(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
