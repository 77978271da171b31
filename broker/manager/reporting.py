"""What the manager says of itself: in the ring's note, as EVENT records, and in the log.

The members of the note and of the records are listed in `ringcast.broker.worker.state`.
"""

from __future__ import annotations

import collections
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ringcast import shm
from ringcast.shm import broadcast

from ..logs import log_event
from ..worker.state import ConnectionState, Phase

__all__ = ["Counters", "Reporter"]

_REFRESH: Final = 1.0
"""Seconds after which changed counters are shown again."""
_WAITING_MAX: Final = 16
"""Records that wait for room; of more, the oldest go."""
_DENSE: Final = (",", ":")


@dataclass(frozen=True, slots=True)
class Counters:
    """Figures of the session, at one moment.

    Attributes:
        connections: opened so far.
        rtt_ns: of the last ping that was answered, or None.
        received, sent: messages, all connections together.
        answers_dropped: those received that answer a request whose worker is gone.
    """

    connections: int
    rtt_ns: int | None
    received: int
    sent: int
    answers_dropped: int


class Reporter:
    """Reports each change of phase, and the counters now and then.

    Args:
        writer: of the ring.
        url: of the connection, without secrets.
        request_id, request_id_is_text, venue, is_logged_in, demote_after: see `ConnectionState`.
        counters: returns the session's present ones.

    Attributes:
        phase: the present one.
        last_error: what ended the last connection or attempt, or None.
        refresh_at: when `show` is due again, time.monotonic() seconds.
        has_waiting: are there records for which the ring had no room?
    """

    def __init__(
        self,
        writer: broadcast.Writer,
        url: str,
        counters: Callable[[], Counters],
        *,
        request_id: str | None,
        request_id_is_text: bool,
        venue: str | None,
        is_logged_in: bool,
        demote_after: float | None,
    ) -> None:
        self._writer = writer
        self._url = url
        self._request_id = request_id
        self._request_id_is_text = request_id_is_text
        self._venue = venue
        self._is_logged_in = is_logged_in
        self._demote_after = demote_after
        self._counters = counters
        self._waiting: collections.deque[dict[str, Any]] = collections.deque()
        self._coalesced = 0  # records that went since the last one was published
        self._since_ns = time.time_ns()
        self._shown = b""
        self.phase = Phase.STARTING
        self.last_error: str | None = None
        self.refresh_at = 0.0

    def enter(self, phase: Phase, event: str, level: int = logging.INFO, **fields: Any) -> None:
        """Change the phase: in the note at once, among the messages when `publish` finds room."""
        self.phase = phase
        self._since_ns = time.time_ns()
        self.announce(event, level, **fields)
        self.show()

    def announce(self, event: str, level: int = logging.INFO, **fields: Any) -> None:
        """Report something that changes no phase: in the log at once, among the messages when
        `publish` finds room."""
        log_event(level, event, ring=self._writer.name, url=self._url, **fields)
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.popleft()
            self._coalesced += 1
        record = {"event": event, "time_ns": time.time_ns(), "url": self._url}
        self._waiting.append({**record, "connection": self._counters().connections, **fields})

    def show(self) -> None:
        """Bring the note up to date."""
        counters = self._counters()
        note = ConnectionState(
            phase=self.phase,
            url=self._url,
            since_ns=self._since_ns,
            epoch=self._writer.epoch,
            rtt_ns=counters.rtt_ns,
            received=counters.received,
            sent=counters.sent,
            reconnects=max(0, counters.connections - 1),
            last_error=self.last_error,
            request_id=self._request_id,
            request_id_is_text=self._request_id_is_text,
            answers_dropped=counters.answers_dropped,
            venue=self._venue,
            is_logged_in=self._is_logged_in,
            demote_after=self._demote_after,
        ).encode()
        if note != self._shown:
            self._writer.note = note
            self._shown = note
        self.refresh_at = time.monotonic() + _REFRESH

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def publish(self, timeout: float) -> bool:
        """Put the records that wait into the ring; False if it is full for `timeout` seconds."""
        while self._waiting:
            record = self._waiting[0]
            if self._coalesced:
                record = {**record, "coalesced": self._coalesced}
            try:
                self._writer.publish(
                    json.dumps(record, separators=_DENSE).encode(),
                    kind=shm.Kind.EVENT,
                    timeout=timeout,
                )
            except shm.RingFull:
                return False
            except shm.MessageTooLarge:  # a ring of a few kilobytes: what happened, at least
                self._waiting[0] = {key: record[key] for key in ("event", "time_ns")}
                self._coalesced = 0
                continue
            self._waiting.popleft()
            self._coalesced = 0
        return True
