"""One WebSocket connection, any number of worker processes.

from ringcast import Config, Manager, attach

Manager(Config(name="md", url="wss://example.org/stream")).run()   # one process: the connection

with attach("md") as feed:                                         # any other process
    for message in feed: ...

The rooms below each have one subject and say in their `__init__` what may enter. Imports go down
only: cli, then exchange, then manager and worker, then connection and config, then `ringcast.shm`.
Only what most programs need is exported here.
"""

from __future__ import annotations

from .config import Config, ConfigError
from .manager import Manager, ManagerError
from .worker import ConnectionState, Feed, Phase, attach

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
