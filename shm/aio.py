"""asyncio's bridge to a reader: an event loop can't poll a semaphore; it can poll an eventfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from typing import Final

from . import _reader

__all__ = ["MESSAGES_A_TURN", "EventBridge"]

MESSAGES_A_TURN: Final = 128
"""How many messages ``async for`` takes before other tasks get their turn."""


class _EventFd:
    """A kernel counter that an event loop can watch; closed with the last that refers to it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


class EventBridge:
    """Lets an event loop wait for a reader: a semaphore can't be polled, an eventfd can.

    One thread per reader sleeps on the reader's semaphore, without the GIL, and writes the eventfd
    when there is reason to look. It sleeps only while some task waits, and ends with the reader.
    """

    def __init__(self, reader: _reader.Reader) -> None:
        self._event = _EventFd()
        self._armed = threading.Semaphore(0)
        self._in_flight = False  # the thread was armed and its eventfd not read since
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Future[None]] = set()
        ended = threading.Event()
        threading.Thread(
            target=_sleep_for,
            args=(weakref.ref(reader), self._event, self._armed, ended),
            name=f"ringcast-{reader.name}-{reader.slot}",
            daemon=True,
        ).start()
        weakref.finalize(reader, _end, ended, self._armed)

    async def wait(self) -> None:
        """Return when there is reason to look at the reader again."""
        loop = asyncio.get_running_loop()
        if self._tasks and self._loop is not loop:
            raise RuntimeError("tasks of another event loop wait in this reader: attach one each")
        self._loop = loop
        if not self._tasks:
            loop.add_reader(self._event.fd, self._woken)
        future = loop.create_future()
        self._tasks.add(future)
        if not self._in_flight:
            self._in_flight = True
            self._armed.release()
        try:
            await future
        finally:
            self._tasks.discard(future)
            if not self._tasks:
                loop.remove_reader(self._event.fd)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event.fd)
            self._in_flight = False
        for future in self._tasks:
            if not future.done():
                future.set_result(None)


def _sleep_for(
    reader: weakref.ref[_reader.Reader],
    event: _EventFd,
    armed: threading.Semaphore,
    ended: threading.Event,
) -> None:
    """The thread: sleep for the reader each time it is armed."""
    while True:
        armed.acquire()
        alive = None if ended.is_set() else reader()
        if alive is None or not alive.wait_into(event.fd):
            return
        del alive  # between waits the thread keeps no reader from being dropped


def _end(ended: threading.Event, armed: threading.Semaphore) -> None:
    ended.set()
    armed.release()
