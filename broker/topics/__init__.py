"""Topics: what a message is about, and how an exchange is asked for it.

A venue (`venue`, `venue_file`) is an exchange as data: a TOML file that says how its topics are
named, asked for, acknowledged and found in messages. The scanner (`_scan`, `patterns`) finds topics
in messages natively. `subscriptions` keeps what an exchange sends equal to what workers want, and
`heartbeat` keeps its connection alive, both without socket and clock. `dialogue` speaks for the
exchange to programs that think they talk to it. `states` is what workers see
of it. Nothing here connects, sends or waits.
"""

from __future__ import annotations

from ._scan import Finder, FunctionScanner, Scanner
from .found import Found, What
from .patterns import load_function

__all__ = ["Finder", "Found", "FunctionScanner", "Scanner", "What", "load_function"]
