"""The order in which tasks have their turn."""

from __future__ import annotations

import asyncio

__all__ = ["Turns"]


class Turns:
    """Locks what one task at a time may do, in the order in which the tasks came. A program may run
    one event loop after another; an `asyncio.Lock` serves one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    def lock(self) -> asyncio.Lock:
        """That of the loop that runs."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock
