"""The manager: one process that holds the connection, writes the ring, and sends for workers."""

from __future__ import annotations

from .loop import Manager, ManagerError

__all__ = ["Manager", "ManagerError"]
