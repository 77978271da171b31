"""The manager: one process that holds the connection, writes the ring, and sends for workers.

What decides over the session may enter: when to connect and to stop, what to report, which reader
is too slow, what is sent next. Frames and sockets are the connection room's, below.
"""

from __future__ import annotations

from .manager import Manager, ManagerError

__all__ = ["Manager", "ManagerError"]
