"""How long to wait before the next attempt to connect, or to start what has ended."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Backoff"]

_DOUBLINGS_MAX: Final = 64
"""A float stays finite, and every configured bound is reached long before."""


class Backoff:
    """Pauses between attempts: exponential with full jitter (M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015), so that many clients do not come back all at once.

    Args:
        delay: seconds that the first pause has at most; those after it twice as many each time.
        delay_max: seconds that no pause exceeds.
        reset_after: seconds after which a connection, or what was started, counts as stable.

    Attributes:
        attempts: pauses since the last stable connection.
    """

    def __init__(self, delay: float, delay_max: float, reset_after: float) -> None:
        self._delay = delay
        self._delay_max = delay_max
        self._reset_after = reset_after
        self.attempts = 0

    def pause(self, asked_for: float | None) -> float:
        """Seconds until the next attempt; at least what the server asked for."""
        doubled = self._delay * 2.0 ** min(self.attempts, _DOUBLINGS_MAX)
        self.attempts += 1
        pause = random.uniform(0, min(doubled, self._delay_max))
        return max(pause, asked_for or 0.0)

    def connected_for(self, seconds: float) -> None:
        """A connection has ended; after a stable one the pauses start anew."""
        if seconds >= self._reset_after:
            self.attempts = 0
