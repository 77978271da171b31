"""A worker's end: attaching by name, reading, sending, and the connection's state.

What a worker process needs may enter, and what it shares with the manager: the form of the state
(state.py) and of messages in parts (parts.py), and with the gateway: its records (wire.py). Where
the ring can't be mapped, a gateway's queue (queue_feed.py) or socket (socket_feed.py and what it
names) takes its place.
"""

from __future__ import annotations

from .answers import Answer, Following
from .feed import Feed, GroupFeed, attach
from .state import ConnectionState, Phase
from .subscribing import SubscriptionRefused

__all__ = [
    "Answer",
    "ConnectionState",
    "Feed",
    "Following",
    "GroupFeed",
    "Phase",
    "SubscriptionRefused",
    "attach",
]
