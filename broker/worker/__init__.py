"""A worker's end: attaching by name, reading, sending, and the connection's state."""

from __future__ import annotations

from .feed import Feed, attach
from .state import ConnectionState, Phase

__all__ = ["ConnectionState", "Feed", "Phase", "attach"]
