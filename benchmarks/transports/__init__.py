"""The ways of carrying messages that are compared, behind one interface."""

from __future__ import annotations

from typing import Any, Final

from . import peers, rings, servers, stdlib
from .base import GROUP, Memory, Outlet, Transport, Usage, Wait

__all__ = [
    "GROUP",
    "TRANSPORTS",
    "Memory",
    "Outlet",
    "Transport",
    "Usage",
    "Wait",
    "available",
]

TRANSPORTS: Final[tuple[type[Transport], ...]] = (
    rings.Ring,
    rings.BatchedRing,
    rings.SmallRing,
    rings.LossyRing,
    rings.SleepingRing,
    rings.Uplink,
    stdlib.UnixStream,
    stdlib.UnixStreamGrouped,
    stdlib.UnixSeqpacket,
    stdlib.TcpLoopback,
    stdlib.Pipe,
    stdlib.Queue,
    stdlib.PosixQueue,
    peers.PushPull,
    peers.PubSub,
    peers.Iceoryx,
    peers.Kickmsg,
    peers.FasterFifo,
    peers.FasterFifoBatched,
    servers.Redis,
    servers.RedisBatched,
    servers.Nats,
)
"""All of them, ringcast's own first."""


def available() -> tuple[list[type[Transport]], dict[str, Any]]:
    """The transports that can be used here; and what else there is and why it can't, under
    "not measured", for a report's parameters."""
    why = {transport: transport.missing() for transport in TRANSPORTS}
    missing = {transport.name: reason for transport, reason in why.items() if reason is not None}
    return [t for t in TRANSPORTS if why[t] is None], {"not measured": missing} if missing else {}
