"""Who owns a ring or an uplink: claiming a name, taking over from the dead, removing.

Each end of a ring holds the lock on its byte for as long as it lives; the kernel releases it at any
death, SIGKILL included, and at no other time. So nothing is handed on but by a process that has
taken the lock, and nothing is concluded from silence. See native/endpoint.h for forks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self

import posix_ipc

from . import _endpoint, _uplink, blocks
from .blocks import OpenedRing, OpenedUplink, RingSizes
from .counters import RingCounters, UplinkCounters
from .errors import RingClosed, RingError, RingExists, RingNotFound
from .names import (
    SegmentName,
    check_name,
    control_name,
    ring_names,
    uplink_name,
    uplink_names,
)

__all__ = ["RING", "UPLINK", "Owner", "Part", "create_ring", "create_uplink", "unlink"]

_TRIES: Final = 20


@dataclass(frozen=True, slots=True)
class Part:
    """What is made and removed as one: a ring, or an uplink.

    Attributes:
        what: "ring" or "uplink".
        segment: which segment carries the locks.
        lock: the byte of its owner: the one writer, or receiver.
        owner: what that is called; `resume` is how another takes over.
        remove: unlinks all of it; for the process that holds the lock.
        is_closed: whether its owner has ended it.
        names: those that have left anything.
    """

    what: str
    segment: SegmentName
    lock: int
    owner: str
    resume: str
    remove: Callable[[str], None]
    is_closed: Callable[[str], bool]
    names: Callable[[], list[str]]

    def claim(self, name: str, size: int, mode: int) -> _endpoint.Endpoint:
        """Make the segment that carries the locks, and take the owner's.

        Raises:
            RingExists: there is one that lives, or that can be resumed.
        """
        for _ in range(_TRIES):
            try:
                blocks.make(self.segment(name), size, mode)
            except FileExistsError:
                self._clear(name)
                continue
            endpoint = blocks.open_endpoint(name, self.segment)
            if endpoint is None:
                continue
            if endpoint.try_lock(self.lock) and endpoint.leads_here(self.segment(name)):
                return endpoint
            endpoint.close()
        raise RingExists(
            f"{self.what} {name!r} is being created by several processes at once: let one do it"
        )

    @contextlib.contextmanager
    def removed_if_it_fails(self, name: str, endpoint: _endpoint.Endpoint) -> Iterator[None]:
        """What was claimed goes again when the rest of it can't be made."""
        try:
            yield
        except BaseException as error:
            self.remove(name)
            endpoint.close()
            if isinstance(error, OSError | posix_ipc.Error) and not isinstance(error, RingError):
                raise RingError(f"cannot create {self.what} {name!r}: {error}") from error
            raise

    def _clear(self, name: str) -> None:
        """A segment is in the way of a new one: remove what a dead creator left, or what was
        closed; raise RingExists for anything that somebody may still want."""
        endpoint = blocks.open_endpoint(name, self.segment)
        if endpoint is None:
            return
        try:
            if not endpoint.try_lock(self.lock):
                raise RingExists(f"{self.what} {name!r} exists, and its {self.owner} is alive")
            if not endpoint.leads_here(self.segment(name)):
                return
            if self._is_finished(name):
                self.remove(name)
                return
        finally:
            endpoint.close()
        raise RingExists(
            f"{self.what} {name!r} exists; its {self.owner} died. {self.resume}({name!r}) goes on"
            f" with it, shm.unlink({name!r}) removes it"
        )

    def _is_finished(self, name: str) -> bool:
        """Was it closed by its owner, or its creation never finished?"""
        try:
            return self.is_closed(name)
        except RingNotFound:
            return True

    def take_over(
        self,
        name: str,
        endpoint: _endpoint.Endpoint,
        counters: Callable[[], RingCounters | UplinkCounters],
    ) -> None:
        """Become the owner of one whose owner died.

        Args:
            name: its name.
            endpoint: of the segment that carries the locks.
            counters: reads its header.

        Raises:
            RingExists: its owner lives.
            RingNotFound: the name leads elsewhere by now.
            RingClosed: it was ended.
        """
        if not endpoint.try_lock(self.lock):
            found = counters()
            pid = found.writer_pid if isinstance(found, RingCounters) else found.receiver_pid
            raise RingExists(f"{self.what} {name!r} has a living {self.owner}, process {pid}")
        if not endpoint.leads_here(self.segment(name)):
            raise RingNotFound(f"{self.what} {name!r} was replaced while it was opened: try again")
        if counters().closed:  # read under the lock: until then its owner could still end it
            raise RingClosed(
                f"{self.what} {name!r} was ended by its {self.owner}: create a new one"
            )

    def unlink(self, name: str) -> None:
        """Remove it, unless somebody holds its lock."""
        for _ in range(_TRIES):
            if name not in self.names():
                return
            endpoint = blocks.open_endpoint(name, self.segment)
            if endpoint is None:  # only the holder of the lock may remove: make what carries it
                blocks.make_stub(self.segment(name))
                continue
            if self._unlink_locked(name, endpoint, None):
                return
        raise RingExists(f"{self.what} {name!r} is being made anew over and over")

    def unlink_if(self, name: str, inode: tuple[int, int]) -> None:
        """Remove the one of this very segment, if it still has the name and no new owner."""
        endpoint = blocks.open_endpoint(name, self.segment)
        if endpoint is not None:
            with contextlib.suppress(RingExists):
                self._unlink_locked(name, endpoint, inode)

    def _unlink_locked(
        self, name: str, endpoint: _endpoint.Endpoint, inode: tuple[int, int] | None
    ) -> bool:
        """The same through this endpoint, which is closed; False: the name leads elsewhere."""
        try:
            if not endpoint.try_lock(self.lock):
                raise RingExists(
                    f"{self.what} {name!r} has a living {self.owner}: stop that process first"
                )
            if not endpoint.leads_here(self.segment(name)):
                return False
            if inode not in (None, endpoint.inode):
                return False
            self.remove(name)
            return True
        finally:
            endpoint.close()


def _is_ring_closed(name: str) -> bool:
    return _endpoint.Segments(name, "look", None).counters().closed


def _is_uplink_closed(name: str) -> bool:
    return _uplink.Uplink(name, "look", None).counters().closed


RING: Final = Part(
    what="ring",
    segment=control_name,
    lock=_endpoint.LOCK_WRITER,
    owner="writer",
    resume="Writer.resume",
    remove=blocks.remove_ring,
    is_closed=_is_ring_closed,
    names=ring_names,
)

UPLINK: Final = Part(
    what="uplink",
    segment=uplink_name,
    lock=_uplink.LOCK_RECEIVER,
    owner="receiver",
    resume="Receiver.resume",
    remove=blocks.remove_uplink,
    is_closed=_is_uplink_closed,
    names=uplink_names,
)


def create_ring(name: str, sizes: RingSizes, mode: int) -> OpenedRing:
    """Make a new ring's segments and semaphores and take its writer lock.

    Raises:
        ValueError: a size or the mode is out of range.
        RingExists: a ring of this name lives, or its writer died and left it to be resumed.
        RingError: /dev/shm has no room, or the system refuses.
    """
    blocks.check_sizes(sizes)
    blocks.check_mode(mode)
    check_name(name)
    size = blocks.ring_geometry(sizes).control_size
    endpoint = RING.claim(name, size, blocks.shared_mode(mode))
    with RING.removed_if_it_fails(name, endpoint):
        return OpenedRing(blocks.fill_ring(name, sizes, mode), endpoint)


def create_uplink(name: str, max_senders: int, lane_bytes: int, mode: int) -> OpenedUplink:
    """Make a new uplink's segment and semaphores and take its receiver's lock.

    Raises: as `create_ring` does.
    """
    _uplink.check_sizes(max_senders, lane_bytes)
    blocks.check_mode(mode)
    check_name(name)
    size = _uplink.segment_size(max_senders, lane_bytes)
    endpoint = UPLINK.claim(name, size, blocks.shared_mode(mode))
    with UPLINK.removed_if_it_fails(name, endpoint):
        return OpenedUplink(blocks.fill_uplink(name, max_senders, lane_bytes, mode), endpoint)


def unlink(name: str) -> None:
    """Remove a ring that nobody writes, and an uplink that nobody receives: ended, left by the
    dead, or leftovers. Attached readers keep their mapping, read what is there, and then get
    RingClosed.

    Raises:
        RingNotFound: there is nothing of that name.
        RingExists: its writer or receiver is alive; stop it first.
    """
    check_name(name)
    parts = [part for part in (RING, UPLINK) if name in part.names()]
    if not parts:
        raise RingNotFound(f"there is no ring {name!r}")
    for part in parts:
        part.unlink(name)


class Owner:
    """What a writer and a receiver have in common in Python: the name they are found by. Stands
    before the native class, which has `name`, `closed`, `abandoned`, `_end` and `_release`."""

    __slots__ = ()

    _part: ClassVar[Part]
    _endpoint: _endpoint.Endpoint

    if TYPE_CHECKING:  # the native class has them

        @property
        def name(self) -> str: ...
        @property
        def closed(self) -> bool: ...
        @property
        def abandoned(self) -> bool: ...
        def _end(self) -> bool: ...
        def _release(self) -> None: ...

    def unlink(self) -> None:
        """Remove the names, so that nobody can attach any more; attached processes go on. Does
        nothing if the name already leads to another one."""
        if not self.closed:
            self._remove()
        elif not self._endpoint.forked:
            self._part.unlink_if(self.name, self._endpoint.inode)

    def _remove(self) -> None:
        """Remove the names, while the lock is held."""
        if self._endpoint.leads_here(self._part.segment(self.name)):
            self._part.remove(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._end():
            self._remove()
            self._release()
        elif not self.abandoned:
            self.unlink()
