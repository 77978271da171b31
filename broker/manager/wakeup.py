"""What wakes the manager's thread out of poll(2)."""

from __future__ import annotations

import contextlib
import os

__all__ = ["StopRequest", "Wakeup"]


class Wakeup:
    """A descriptor that any thread makes readable: an eventfd, closed with its last reference.

    Attributes:
        fd: to poll for reading.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)

    def set(self) -> None:
        """Make the descriptor readable; from any thread, or a signal handler."""
        os.eventfd_write(self.fd, 1)

    def clear(self) -> bool:
        """Make it unreadable again; returns whether it was set."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
            return True
        return False


class StopRequest:
    """The wish to stop, which signal handlers may make: no lock is taken, for a handler may
    interrupt whoever holds it.

    Attributes:
        is_made: stop in order.
        at_once: stop and wait for nothing.
        wakeup: set whenever the wish is made.
    """

    def __init__(self) -> None:
        self.is_made = False
        self.at_once = False
        self.wakeup = Wakeup()

    def make(self) -> None:
        """Ask for an orderly stop, and the second time for one at once."""
        self.at_once = self.is_made
        self.is_made = True
        self.wakeup.set()
