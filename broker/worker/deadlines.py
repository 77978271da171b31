"""Deadlines of calls that wait: a time of `time.monotonic`, infinite where there is no limit."""

from __future__ import annotations

import math
import time

__all__ = ["check_timeout", "deadline", "seconds_to"]


def check_timeout(timeout: float | None) -> None:
    """Raise ValueError unless it is seconds to wait, or None for no limit."""
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout is seconds, 0 or more, or None for no limit, not {timeout!r}")


def deadline(timeout: float | None) -> float:
    """When so many seconds are over; None: never."""
    return math.inf if timeout is None else time.monotonic() + timeout


def seconds_to(until: float) -> float | None:
    """How long to wait at most, so that a deadline is kept; None waits as long as it takes."""
    return None if until == math.inf else max(0.0, until - time.monotonic())
