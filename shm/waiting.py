"""How an endpoint waits: the strategies, chosen by the caller as objects."""

from __future__ import annotations

from . import _endpoint

__all__ = ["Blocking", "BusySpin", "WaitStrategy", "Yielding"]

WaitStrategy = _endpoint.WaitStrategy

_BUSY_SPIN, _YIELDING, _BLOCKING = range(3)
"""rc_wait_kind of native/base.h."""


class BusySpin(_endpoint.WaitStrategy):
    """Look without a pause: the lowest latency, and a core for each endpoint that waits (after the
    LMAX Disruptor's BusySpinWaitStrategy)."""

    def __new__(cls) -> BusySpin:
        """Make one; it has no parameters and may serve any number of rings."""
        return super().__new__(cls, _BUSY_SPIN, 0.0)

    def __repr__(self) -> str:
        return "BusySpin()"


class Yielding(_endpoint.WaitStrategy):
    """Look, and offer the core to others between looks (sched_yield)."""

    def __new__(cls) -> Yielding:
        """Make one; it has no parameters and may serve any number of rings."""
        return super().__new__(cls, _YIELDING, 0.0)

    def __repr__(self) -> str:
        return "Yielding()"


class Blocking(_endpoint.WaitStrategy):
    """Look for `spin_us` microseconds, then sleep on a semaphore. The default.

    While it looks it offers the core to others now and then: what it waits for may need it. A
    reader or receiver whose last two waits each lasted four times as long, or longer, sleeps at
    once until a wait was short: looking would be in vain. A wait of more than 100 ms counts as
    several of 100 ms, so an endpoint that looks for more than 25,000 microseconds always does."""

    spin_us: float

    def __new__(cls, spin_us: float = 50) -> Blocking:
        """Make one that looks for `spin_us` microseconds (0: sleeps at once)."""
        if not 0 <= spin_us <= 1e6:
            raise ValueError(f"spin_us is from 0 to 1,000,000 microseconds, not {spin_us!r}")
        strategy = super().__new__(cls, _BLOCKING, spin_us)
        strategy.spin_us = spin_us
        return strategy

    def __repr__(self) -> str:
        return f"Blocking(spin_us={self.spin_us:g})"
