"""How many messages may be sent: a token bucket without a clock of its own."""

from __future__ import annotations

import math
import sys
from typing import Final

__all__ = ["TokenBucket"]

_ROUNDING: Final = 1e-6
"""Of a token. A token that lacks less has come: at the time that `ready_in` said, the sum may be a
little short."""


class TokenBucket:
    """A token bucket: `rate` messages a second, at most `burst` at once after a pause.

    In any time of t seconds at most ``burst + rate * t`` messages are spent, unless more than
    `whole_tokens` are: those can't wait, and are paid for later.

    Args:
        rate: messages a second; None: no limit.
        burst: messages, at least 1.
    """

    def __init__(self, rate: float | None, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._filled = -math.inf

    def _fill(self, rate: float, now: float) -> None:
        if now > self._filled:
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * rate)
            self._filled = now

    def whole_tokens(self, now: float) -> int:
        """How many messages may be sent now."""
        if self._rate is None:
            return sys.maxsize
        self._fill(self._rate, now)
        return max(0, int(self._tokens + _ROUNDING))

    def spend(self, count: int, now: float) -> None:
        """So many were sent."""
        if self._rate is not None:
            self._fill(self._rate, now)
            # A server that pings without end is not to keep everybody from sending for ever.
            self._tokens = max(-self._burst, self._tokens - count)

    def ready_in(self, now: float, count: int = 1) -> float:
        """Seconds until so many, at most `burst`, may be sent."""
        if self._rate is None:
            return 0.0
        self._fill(self._rate, now)
        lacking = count - self._tokens
        return 0.0 if lacking <= _ROUNDING else lacking / self._rate
