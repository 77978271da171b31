"""The one WebSocket connection: opening it, its protocol, and receiving into the ring.

What knows of sockets, TLS, frames and closing handshakes may enter, and nothing that knows of
workers or of the manager, which drives it from above. `Dialer` opens, `Connection` is the socket,
`Protocol` decides without one, `Ingest` receives into the ring.
"""

from __future__ import annotations

from ._ingest import DRAINED, FULL, MORE, Ingest
from .connection import Connection
from .opening import Dialer
from .outcome import ABNORMAL, Disconnect, OpenSocket
from .protocol import GOING_AWAY, NORMAL, Protocol

__all__ = [
    "ABNORMAL",
    "DRAINED",
    "FULL",
    "GOING_AWAY",
    "MORE",
    "NORMAL",
    "Connection",
    "Dialer",
    "Disconnect",
    "Ingest",
    "OpenSocket",
    "Protocol",
]
