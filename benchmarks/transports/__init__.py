"""The ways of carrying messages that are compared, behind one interface (`base`).

A new one is a class in one of these modules, and stands in `TRANSPORTS`.
"""

from __future__ import annotations

from typing import Any, Final

from . import peers, rings, servers, stdlib
from .base import BATCH_SIZE, LinkSender, Memory, Transport, Usage, Wait

__all__ = [
    "BATCH_SIZE",
    "TRANSPORTS",
    "LinkSender",
    "Memory",
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
"""All transports, ringcast's own first."""


def available() -> tuple[list[type[Transport]], dict[str, Any]]:
    """Return the transports that can be used here, and for the parameters of a report, under "not
    measured", the others and why they cannot be used."""
    why = {transport: transport.missing() for transport in TRANSPORTS}
    missing = {transport.name: reason for transport, reason in why.items() if reason is not None}
    return [t for t in TRANSPORTS if why[t] is None], {"not measured": missing} if missing else {}
