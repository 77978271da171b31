"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from typing import Final

from ..config import Config

__all__ = ["Backoff"]

_DOUBLINGS_MAX: Final = 64
"""A float stays finite, and every configured bound is reached long before."""


class Backoff:
    """Pauses between attempts: exponential with full jitter (M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015), so that many clients do not come back all at once.

    Attributes:
        attempts: pauses since the last stable connection.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.attempts = 0

    def pause(self, asked_for: float | None) -> float:
        """Seconds until the next attempt; at least what the server asked for."""
        doubled = self._config.reconnect_delay * 2.0 ** min(self.attempts, _DOUBLINGS_MAX)
        self.attempts += 1
        pause = random.uniform(0, min(doubled, self._config.reconnect_delay_max))
        return max(pause, asked_for or 0.0)

    def connected_for(self, seconds: float) -> None:
        """A connection has ended; after a stable one the pauses start anew."""
        if seconds >= self._config.reconnect_reset_after:
            self.attempts = 0
