"""A ring's rosters: files in which processes that serve the ring to others say whom they serve.

An operator's command reads them without a connection to such a process. `/dev/shm/rc.NAME.gw-N` is
one process's; N is the lowest number that was free. Its bytes are that process's own matter.

*Who lives.* The process holds the lock of the file's byte 0, as all ends of a ring do. A file
without it was left by the dead. Only the holder may replace or remove the file, so a process that
has taken the lock of a file that the name still leads to has the number.

*Whole or not at all.* A roster is replaced by a new file, which is written under a name of its
own, locked, and renamed. So the name of a living process's roster always leads to a locked file. A
reader whose file has just been replaced finds that the name leads elsewhere, and looks again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple, Self

from . import _endpoint
from .errors import RingError
from .names import ROSTER_DRAFT, SHM, control_name, roster_name, roster_segments

__all__ = ["ROSTERS_MAX", "FoundRoster", "Roster", "read_rosters", "remove_stale_rosters"]

ROSTERS_MAX: Final = 64
"""Of one ring."""
_SIZE_MAX: Final = 1 << 20
"""Bytes of a roster: more is neither written nor read."""
_MODE: Final = 0o600
_LOCK: Final = 0
_TRIES: Final = 20
"""Of reading a roster that is replaced meanwhile, which happens once per second."""


class FoundRoster(NamedTuple):
    """A living process's roster.

    Attributes:
        number: which of the ring's.
        data: what the process has written. Anybody who may write the file can have written it.
    """

    number: int
    data: bytes


class Roster:
    """A process's own roster, made with `claim`. It is removed by `remove`, or by the next process
    that claims one if this one is killed.

    Attributes:
        number: which of the ring's.
    """

    def __init__(self, name: str, number: int, endpoint: _endpoint.Endpoint) -> None:
        self.number = number
        self._segment = roster_name(name, number)
        self._endpoint = endpoint

    @classmethod
    def claim(cls, name: str, data: bytes) -> Self:
        """Take the lowest number that no living process has.

        Args:
            name: the ring's.
            data: the roster's first content.

        Raises:
            RingError: all numbers are taken, there is no such ring any more, or the system
                refuses.
        """
        for number in range(1, ROSTERS_MAX + 1):
            if not _path(control_name(name)).exists():  # what is made now would stay
                raise RingError(f"there is no ring {name!r} any more")
            try:
                endpoint = _claimed(roster_name(name, number))
            except OSError as error:
                raise RingError(f"cannot make a roster of ring {name!r}: {error.strerror}") from (
                    error
                )
            if endpoint is not None:
                roster = cls(name, number, endpoint)
                try:
                    roster.write(data)
                except BaseException:
                    roster.remove()
                    raise
                return roster
        raise RingError(
            f"ring {name!r} has {ROSTERS_MAX} rosters already, or files of other users have their"
            " names: `ringcast clean` removes those of dead processes"
        )

    def write(self, data: bytes) -> None:
        """Replace the roster. Does nothing if it was removed with its ring.

        Raises:
            RingError: it is longer than 1 MiB, or the system refuses; the old one stays.
        """
        if len(data) > _SIZE_MAX:
            raise RingError(f"a roster has at most {_SIZE_MAX} bytes, not {len(data)}")
        if not self._endpoint.leads_here(self._segment):
            return
        try:
            self._replace(data)
        except OSError as error:
            _path(self._segment + ROSTER_DRAFT).unlink(missing_ok=True)
            raise RingError(f"cannot write {self._segment}: {error.strerror}") from error

    def _replace(self, data: bytes) -> None:
        draft = self._segment + ROSTER_DRAFT
        _path(draft).unlink(missing_ok=True)  # a predecessor's, killed while it wrote
        file = os.open(_path(draft), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            written = os.write(file, data)
        finally:
            os.close(file)
        if written < len(data):  # /dev/shm is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        endpoint = _endpoint.Endpoint(draft)
        if not endpoint.try_lock(_LOCK):
            endpoint.close()
            raise BlockingIOError(errno.EAGAIN, "another process holds its lock")
        _path(draft).rename(_path(self._segment))
        self._endpoint.close()
        self._endpoint = endpoint

    def remove(self) -> None:
        """Remove the roster. Does nothing if the name leads to another one by now."""
        if self._endpoint.leads_here(self._segment):
            _path(self._segment).unlink(missing_ok=True)
        self._endpoint.close()


def read_rosters(name: str, *, owner: int | None = None) -> list[FoundRoster]:
    """The rosters of the living processes that serve a ring, by number.

    Args:
        name: the ring's.
        owner: user id that a roster may belong to, too; those of the caller's own and of root are
            read in any case, and others are passed over.
    """
    users = {os.geteuid(), 0} if owner is None else {os.geteuid(), 0, owner}
    found = []
    for segment in roster_segments(name):
        if segment.endswith(ROSTER_DRAFT):
            continue
        data = _read(segment, users)
        if data is not None:
            found.append(FoundRoster(int(segment.rpartition("-")[2]), data))
    return sorted(found)


def remove_stale_rosters(name: str, *, dry_run: bool = False) -> list[str]:
    """Remove the rosters that dead processes have left.

    Args:
        name: the ring's.
        dry_run: only say which they are.

    Returns:
        The names of their files.
    """
    removed = []
    for segment in roster_segments(name):
        if segment.endswith(ROSTER_DRAFT) and _is_held(segment.removesuffix(ROSTER_DRAFT)):
            continue  # it is being written
        with contextlib.suppress(OSError):  # another user's, or it has gone meanwhile
            if _is_stale(segment, remove=not dry_run):
                removed.append(segment.removeprefix("/"))
    return removed


def _is_held(segment: str) -> bool:
    try:
        endpoint = _endpoint.Endpoint(segment)
    except OSError:
        return False
    with contextlib.closing(endpoint):
        return endpoint.is_held(_LOCK)


def _is_stale(segment: str, *, remove: bool) -> bool:
    """Has a dead process left this file? Then it is removed, if that is wished."""
    endpoint = _endpoint.Endpoint(segment)
    with contextlib.closing(endpoint):
        if not endpoint.try_lock(_LOCK) or not endpoint.leads_here(segment):
            return False
        if remove:
            _path(segment).unlink()
        return True


def _claimed(segment: str) -> _endpoint.Endpoint | None:
    """The file of this name, made if there is none, and locked; None if another has it."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(_path(segment), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        try:
            endpoint = _endpoint.Endpoint(segment)
        except FileNotFoundError:  # it has gone meanwhile
            continue
        except OSError:  # another user's, or no file
            return None
        if endpoint.try_lock(_LOCK) and endpoint.leads_here(segment):
            return endpoint
        replaced = not endpoint.leads_here(segment)
        endpoint.close()
        if not replaced:
            return None
    return None


def _read(segment: str, users: set[int]) -> bytes | None:
    """A roster's content; None if its process is dead, or it is none to be read."""
    for _ in range(_TRIES):
        try:
            endpoint = _endpoint.Endpoint(segment)
        except OSError:
            return None
        with contextlib.closing(endpoint):
            alive = endpoint.is_held(_LOCK)
            data = _content(segment, endpoint.inode, users) if alive else None
            if endpoint.leads_here(segment):
                return data
    return None


def _content(segment: str, inode: tuple[int, int], users: set[int]) -> bytes | None:
    """What a file has, if it is this very one, a file of these users, and not too long."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(_path(segment), flags)
    except OSError:
        return None
    try:
        found = os.fstat(file)
        is_it = (found.st_dev, found.st_ino) == inode
        if not (is_it and stat.S_ISREG(found.st_mode) and found.st_uid in users):
            return None
        data = os.read(file, _SIZE_MAX + 1)
    finally:
        os.close(file)
    return data if len(data) <= _SIZE_MAX else None


def _path(segment: str) -> Path:
    return SHM / segment.removeprefix("/")
