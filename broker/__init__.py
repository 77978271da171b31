"""One WebSocket connection, any number of worker processes.

from ringcast import Config, Manager, attach

Manager(Config(name="md", url="wss://example.org/stream")).run()   # one process: the connection

with attach("md") as feed:                                         # any other process
    for message in feed: ...
"""

from __future__ import annotations

from .config import Config, ConfigError
from .feed import Feed, attach
from .manager import Manager, ManagerError
from .state import ConnectionState, Phase

__all__ = [
    "Config",
    "ConfigError",
    "ConnectionState",
    "Feed",
    "Manager",
    "ManagerError",
    "Phase",
    "attach",
]
