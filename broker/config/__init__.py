"""What one manager is told to do: fields and their checks, files, and what is kept secret.

Nothing here connects or writes; every room above reads its settings from a checked `Config`.
"""

from __future__ import annotations

from .fields import Config, ConfigError

__all__ = ["Config", "ConfigError"]
