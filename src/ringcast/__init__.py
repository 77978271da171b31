"""ringcast: one process holds the WebSocket connection, any number of worker processes read it.

Most programs need only what is here:

    from ringcast import attach

    with attach("md") as feed:              # any process: a worker
        for message in feed: ...

    from ringcast import Config, Manager

    Manager(Config(name="md", url="wss://example.org/stream")).run()      # one process: the manager

`ringcast.shm` has the rings themselves, which need no connection. Names are loaded when they are
first used (PEP 562), so a program that needs only `ringcast.shm` loads no WebSocket client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .broker.config import Config, ConfigError
    from .broker.manager import Manager, ManagerError
    from .broker.topics.states import TopicState
    from .broker.worker import (
        Answer,
        ConnectionState,
        Feed,
        Following,
        GroupFeed,
        Phase,
        SubscriptionRefused,
        attach,
    )
    from .broker.worker.gateway_link import GatewayUnreachable
    from .broker.worker.queue_feed import QueueFeed
    from .broker.worker.socket_feed import SocketFeed
    from .shm.errors import (
        Evicted,
        LayoutMismatch,
        MessageTooLarge,
        RingClosed,
        RingCorrupt,
        RingError,
        RingExists,
        RingFull,
        RingNotFound,
        SendRejected,
        SendUnconfirmed,
        TooManyReaders,
        TooManySenders,
        TooManyTopics,
    )

__all__ = [
    "Answer",
    "Config",
    "ConfigError",
    "ConnectionState",
    "Evicted",
    "Feed",
    "Following",
    "GatewayUnreachable",
    "GroupFeed",
    "LayoutMismatch",
    "Manager",
    "ManagerError",
    "MessageTooLarge",
    "Phase",
    "QueueFeed",
    "RingClosed",
    "RingCorrupt",
    "RingError",
    "RingExists",
    "RingFull",
    "RingNotFound",
    "SendRejected",
    "SendUnconfirmed",
    "SocketFeed",
    "SubscriptionRefused",
    "TooManyReaders",
    "TooManySenders",
    "TooManyTopics",
    "TopicState",
    "attach",
]

_ROOMS = {
    ".broker.config": ("Config", "ConfigError"),
    ".broker.manager": ("Manager", "ManagerError"),
    ".broker.topics.states": ("TopicState",),
    ".broker.worker": (
        "Answer",
        "ConnectionState",
        "Feed",
        "Following",
        "GroupFeed",
        "Phase",
        "SubscriptionRefused",
        "attach",
    ),
    ".broker.worker.gateway_link": ("GatewayUnreachable",),
    ".broker.worker.queue_feed": ("QueueFeed",),
    ".broker.worker.socket_feed": ("SocketFeed",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'ringcast' has no attribute {name!r}")
    module = importlib.import_module(_ROOM_OF.get(name, ".shm.errors"), __name__)
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
