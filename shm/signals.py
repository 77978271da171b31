"""Waking and waiting: the named semaphores, the wait strategies, and asyncio's bridge to both.

A semaphore is a wake-up token, never a lock: see "Sleeping" in broadcast.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from typing import Final

import posix_ipc

from . import _ring

_SHM: Final = "/dev/shm"


# ---- semaphores ----------------------------------------------------------------------------


def reader_semaphore(name: str, instance: int, slot: int) -> str:
    """Name of the semaphore on which the reader in `slot` sleeps."""
    return f"/rc.{name}.{instance:016x}.r{slot}"


def space_semaphore(name: str, instance: int) -> str:
    """Name of the semaphore on which the writer sleeps for room."""
    return f"/rc.{name}.{instance:016x}.space"


def all_semaphores(name: str, instance: int, max_readers: int) -> list[str]:
    """Every reader's, by slot, and the writer's last."""
    readers = [reader_semaphore(name, instance, slot) for slot in range(max_readers)]
    return [*readers, space_semaphore(name, instance)]


def sender_semaphore(name: str, instance: int, lane: int) -> str:
    """Name of the semaphore on which the sender of `lane` sleeps."""
    return f"/rc.{name}.{instance:016x}.s{lane}"


def receiver_semaphore(name: str, instance: int) -> str:
    """Name of the semaphore on which an uplink's receiver sleeps."""
    return f"/rc.{name}.{instance:016x}.up"


def uplink_semaphores(name: str, instance: int, max_senders: int) -> list[str]:
    """Every sender's, by lane, and the receiver's last."""
    senders = [sender_semaphore(name, instance, lane) for lane in range(max_senders)]
    return [*senders, receiver_semaphore(name, instance)]


def is_uplink(semaphore: str) -> bool:
    """Does a semaphore of this name belong to an uplink, or to a ring?"""
    return semaphore.rpartition(".")[2][:1] in ("u", "s") and not semaphore.endswith(".space")


def create(semaphores: list[str], mode: int) -> None:
    """Make semaphores, without tokens."""
    for semaphore in semaphores:
        posix_ipc.Semaphore(semaphore, posix_ipc.O_CREX, mode=mode).close()
        if mode != 0o600:  # the umask has had its say, and mode is what was asked for
            os.chmod(f"{_SHM}/sem.{semaphore.removeprefix('/')}", mode)  # noqa: PTH101


def remove(name: str, *, uplink: bool) -> None:
    """Unlink every semaphore of any ring, or of any uplink, of this name."""
    for entry in os.listdir(_SHM):  # noqa: PTH208
        if entry.startswith(f"sem.rc.{name}.") and is_uplink(entry) is uplink:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_semaphore("/" + entry.removeprefix("sem."))


# ---- wait strategies -----------------------------------------------------------------------


class BusySpin(_ring.Wait):
    """Look without a pause: the lowest latency, and a core for each that waits (after the LMAX
    Disruptor's BusySpinWaitStrategy)."""

    def __new__(cls) -> BusySpin:
        """Make one; it has no parameters and may serve any number of rings."""
        return super().__new__(cls, 0, 0.0)

    def __repr__(self) -> str:
        return "BusySpin()"


class Yielding(_ring.Wait):
    """Look, and offer the core to others between looks (sched_yield)."""

    def __new__(cls) -> Yielding:
        """Make one; it has no parameters and may serve any number of rings."""
        return super().__new__(cls, 1, 0.0)

    def __repr__(self) -> str:
        return "Yielding()"


class Blocking(_ring.Wait):
    """Look for `spin_us` microseconds, then sleep on a semaphore. The default.

    A reader or receiver whose last two waits each lasted four times as long, or longer, sleeps at
    once: to look would be in vain. A wait of more than 100 ms counts as several of 100 ms, so who
    looks for more than 25,000 microseconds always does."""

    spin_us: float

    def __new__(cls, spin_us: float = 50) -> Blocking:
        """Make one that looks for `spin_us` microseconds (0: sleeps at once)."""
        if not 0 <= spin_us <= 1e6:
            raise ValueError(f"spin_us is from 0 to 1,000,000 microseconds, not {spin_us!r}")
        strategy = super().__new__(cls, 2, spin_us)
        strategy.spin_us = spin_us
        return strategy

    def __repr__(self) -> str:
        return f"Blocking(spin_us={self.spin_us:g})"


# ---- asyncio -------------------------------------------------------------------------------


class _EventFd:
    """A kernel counter that an event loop can watch; closed with the last that refers to it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


class Bridge:
    """Lets an event loop wait for a reader: a semaphore can't be polled, an eventfd can.

    One thread a reader sleeps on the reader's semaphore, without the GIL, and writes the eventfd
    when there is reason to look. It sleeps only while some task waits, and ends with the reader.
    """

    def __init__(self, reader: _ring.Reader) -> None:
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
    reader: weakref.ref[_ring.Reader],
    event: _EventFd,
    armed: threading.Semaphore,
    ended: threading.Event,
) -> None:
    """The thread: sleep for the reader each time it is armed."""
    while True:
        armed.acquire()
        alive = None if ended.is_set() else reader()
        if alive is None or not alive._wait_natively(event.fd):
            return
        del alive  # between waits the thread keeps no reader from being dropped


def _end(ended: threading.Event, armed: threading.Semaphore) -> None:
    ended.set()
    armed.release()
