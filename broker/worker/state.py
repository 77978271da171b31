"""The state of the connection: what the manager says of it, and anybody can look up.

It stands in the ring's note (`shm.Writer.note`) as JSON, at most 1016 bytes, and each change of
phase is also a record of kind EVENT among the messages, where it happened:

    {"event": "connected", "time_ns": 1700000000000000000, "connection": 2, "url": "wss://…", ...}

=============  ==================================================================================
event          more members
=============  ==================================================================================
connecting     attempt: 1 for the first since the last connection
connected      subprotocol; gap: true unless it is the manager's first connection, when what the
               server said meanwhile was missed; silent_ns: how long no connection was open
closing        code, reason: of the server's close frame, or 1006 if we close first; error: why
disconnected   code, reason: of the close frame, or 1006 if there was none; error: what went wrong
reconnecting   retry_in: seconds until the next attempt; error
restarted      the manager died and another goes on: epoch, sequence, last_phase
stopped        error: why, or null; the last record
=============  ==================================================================================

While the ring is full, records wait; of many that wait the oldest go, and the next one's member
`coalesced` says how many did.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from typing import Any, Final

from ringcast import shm

__all__ = ["ConnectionState", "Phase", "connection"]

_URL_MAX: Final = 250
_ERROR_MAX: Final = 200
_VENUE_MAX: Final = 150
"""Bytes, of JSON."""


class Phase(enum.StrEnum):
    """Where a manager's connection stands."""

    STARTING = "starting"
    CONNECTING = "connecting"
    OPEN = "open"
    RECONNECTING = "reconnecting"
    """Waiting to make the next attempt."""
    CLOSING = "closing"
    STOPPED = "stopped"
    ORPHANED = "orphaned"
    """There is no manager: it died, and another can go on with the ring."""


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A manager's connection.

    Attributes:
        phase: where it stands.
        url: where it goes, without secrets.
        since_ns: when it came into this phase, Unix time.
        epoch: of the ring: 1 for its first manager, one more for each that resumed it.
        rtt_ns: round trip of the last ping that was answered; None before there is one.
        received, sent: messages by this manager, all its connections together.
        reconnects: connections after this manager's first.
        last_error: what ended the last connection or attempt, or None.
        request_id: where requests and answers have their id, a JSON pointer; None: workers can't
            send requests.
        request_id_is_text: an id that is added to a request is text, and not a number.
        answers_dropped: answers, by this manager, whose workers were gone when they came.
        venue: the exchange, as `Config.venue` names it, but with an absolute path; None: there is
            none, its path has more than 150 bytes, or `Config.topic` finds topics in its place.
        is_logged_in: is one of the messages that come first on a connection a login?
        demote_after: seconds for which a reader may keep the ring full; None: for ever.
    """

    phase: Phase
    url: str
    since_ns: int
    epoch: int
    rtt_ns: int | None
    received: int
    sent: int
    reconnects: int
    last_error: str | None
    request_id: str | None = None
    request_id_is_text: bool = False
    answers_dropped: int = 0
    venue: str | None = None
    is_logged_in: bool = False
    demote_after: float | None = None

    def encode(self) -> bytes:
        """As a note; a URL or an error that is too long for it is cut."""
        values = dataclasses.asdict(self)
        values["url"] = _cut(self.url, _URL_MAX)
        values["last_error"] = self.last_error and _cut(self.last_error, _ERROR_MAX)
        if self.venue is not None and _cut(self.venue, _VENUE_MAX) != self.venue:
            values["venue"] = None  # a part of a path names another file
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, note: bytes) -> ConnectionState | None:
        """Read a note; None if it is empty or not a manager's."""
        try:
            values: dict[str, Any] = json.loads(note)
            return cls(**{**values, "phase": Phase(values["phase"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes once JSON has escaped it, and marked where something is missing."""
    if len(json.dumps(text, ensure_ascii=False).encode()) - 2 <= limit:
        return text
    kept = text[:limit]
    while len(json.dumps(kept, ensure_ascii=False).encode()) - 2 > limit - 3:
        kept = kept[:-1]
    return kept + "…"


def connection(status: shm.RingStatus) -> ConnectionState | None:
    """The connection of a ring that `shm.status` has looked at; None if no manager writes it."""
    state = ConnectionState.decode(status.note)
    if state is not None and status.state == "orphaned" and state.phase is not Phase.STOPPED:
        return dataclasses.replace(state, phase=Phase.ORPHANED)
    return state
