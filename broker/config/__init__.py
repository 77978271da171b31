"""What a manager is to do: keys and their checks, files, and what is kept secret.

Nothing here connects or writes. Every room above reads its settings from a checked `Config`; a new
setting is a field of `fields.Config`, written once, and what may hold it is a kind in `kinds`.
"""

from __future__ import annotations

from .fields import KEYS, Config, OfflineSends
from .keys import Key
from .kinds import ConfigError, Seconds

__all__ = ["KEYS", "Config", "ConfigError", "Key", "OfflineSends", "Seconds"]
