"""What the manager's parts share: the log, and the bell that wakes its thread."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any, Final

__all__ = ["Bell", "log", "tell"]

log: Final = logging.getLogger("ringcast")


def tell(level: int, event: str, **fields: Any) -> None:
    """Log one line, `event` and its fields; a structured handler finds them in the record."""
    text = " ".join(f"{key}={value!r}" for key, value in fields.items() if value is not None)
    log.log(level, "%s %s", event, text, extra={"event": event, "fields": fields})


class Bell:
    """Wakes the manager's thread: an eventfd, closed with the last that refers to it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)

    def ring(self) -> None:
        """Make the descriptor readable."""
        os.eventfd_write(self.fd, 1)

    def hush(self) -> bool:
        """Make it unreadable again; did it ring?"""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
            return True
        return False
