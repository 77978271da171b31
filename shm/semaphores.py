"""The named semaphores of rings and uplinks: made, and removed.

A semaphore is a wake-up token, never a lock: see "Sleeping" in native/broadcast.h. Names,
permissions and removal are posix_ipc's; a post or a wait without the GIL needs the ``sem_t``, which
the native core opens by the same name.
"""

from __future__ import annotations

import contextlib
from typing import Final

import posix_ipc

from .names import SHM, is_uplink_semaphore

__all__ = ["create", "remove"]

_PRIVATE: Final = 0o600


def create(semaphores: list[str], mode: int) -> None:
    """Make semaphores, without tokens."""
    for semaphore in semaphores:
        posix_ipc.Semaphore(semaphore, posix_ipc.O_CREX, mode=mode).close()
        if mode != _PRIVATE:  # the umask has had its say, and mode is what was asked for
            (SHM / f"sem.{semaphore.removeprefix('/')}").chmod(mode)


def remove(name: str, *, uplink: bool) -> None:
    """Unlink every semaphore of any ring, or of any uplink, of this name."""
    for entry in SHM.iterdir():
        if not entry.name.startswith(f"sem.rc.{name}."):
            continue
        if is_uplink_semaphore(entry.name) is uplink:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_semaphore("/" + entry.name.removeprefix("sem."))
