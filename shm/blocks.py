"""Making the shared-memory blocks of rings and uplinks, and opening those that exist.

Blocks are made with `multiprocessing.shared_memory` and semaphores with `posix_ipc`; opening is
native (native/attach.h). The control segment is made first and removed last: its inode carries the
locks, so the process that holds its writer lock may work on all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker, shared_memory
from types import FunctionType, ModuleType
from typing import Any, Literal

import posix_ipc

from . import _endpoint, _group, _uplink, semaphores
from .errors import RingError, RingNotFound
from .names import (
    SHM,
    SegmentName,
    check_name,
    control_name,
    data_name,
    group_segments,
    queue_segments,
    ring_semaphores,
    roster_segments,
    uplink_name,
    uplink_semaphores,
)

__all__ = [
    "OpenedRing",
    "OpenedUplink",
    "RingSizes",
    "check_mode",
    "check_sizes",
    "fill_ring",
    "fill_uplink",
    "make",
    "make_stub",
    "open_endpoint",
    "open_ring",
    "open_uplink",
    "remove_group",
    "remove_queue",
    "remove_ring",
    "remove_uplink",
    "ring_geometry",
    "shared_mode",
]

MODES = (0o600, 0o640)


class _NoTracker(ModuleType):
    """Stands in for multiprocessing.resource_tracker: the tracker of a killed creator would unlink
    the ring within a second, and before Python 3.13 an attaching process's does so at its exit."""

    @staticmethod
    def register(name: str, rtype: str) -> None:
        """Do not."""

    @staticmethod
    def unregister(name: str, rtype: str) -> None:
        """Do not."""


def _untracked(method: Any) -> Any:
    """The same method, looking up ``resource_tracker`` in a namespace of its own: the module's is
    left alone, so blocks that others make in the same process stay tracked."""
    names = {**vars(shared_memory), "resource_tracker": _NoTracker(resource_tracker.__name__)}
    copy = FunctionType(method.__code__, names, method.__name__, method.__defaults__)
    copy.__kwdefaults__ = method.__kwdefaults__
    return copy


class _SharedMemory(shared_memory.SharedMemory):
    """A block that no resource tracker hears of."""

    __init__ = _untracked(shared_memory.SharedMemory.__init__)
    unlink = _untracked(shared_memory.SharedMemory.unlink)

    def allocate(self, mode: int) -> None:
        """Take every page and set the permissions: through the descriptor it was made with, since
        the name may lead elsewhere before anybody holds its lock."""
        fd: int = self._fd  # type: ignore[attr-defined]
        os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
        os.fchmod(fd, mode)


@dataclass(frozen=True, slots=True)
class OpenedRing:
    """A ring's segments, mapped, and the descriptor that is to hold this end's lock."""

    segments: _endpoint.Segments
    endpoint: _endpoint.Endpoint


@dataclass(frozen=True, slots=True)
class OpenedUplink:
    """An uplink's segment, mapped, and the descriptor that is to hold this end's lock."""

    uplink: _uplink.Uplink
    endpoint: _endpoint.Endpoint


# ---- making --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RingSizes:
    """What a ring holds.

    Attributes:
        slots: messages.
        capacity: bytes of payload.
        max_readers, max_topics: readers at once, and rows of the topic table.
    """

    slots: int
    capacity: int
    max_readers: int
    max_topics: int


def check_sizes(sizes: RingSizes) -> None:
    """Raise ValueError for sizes that no ring can have."""
    for what, value, low, high in (
        ("slots", sizes.slots, _endpoint.SLOTS_MIN, _endpoint.SLOTS_MAX),
        ("capacity", sizes.capacity, _endpoint.CAPACITY_MIN, _endpoint.CAPACITY_MAX),
    ):
        if not low <= value <= high or value & (value - 1):
            near = min(max(1 << max(value - 1, 0).bit_length(), low), high)
            raise ValueError(
                f"{what}={value} is not a power of two from {low} to {high}: take {near}"
            )
    for what, value, high in (
        ("max_readers", sizes.max_readers, _endpoint.READERS_MAX),
        ("max_topics", sizes.max_topics, _endpoint.TOPICS_MAX),
    ):
        if not 1 <= value <= high:
            raise ValueError(f"{what}={value} is not from 1 to {high}")


def ring_geometry(sizes: RingSizes) -> _endpoint.Geometry:
    """How large a ring's segments are."""
    return _endpoint.Geometry(sizes.slots, sizes.capacity, sizes.max_readers, sizes.max_topics)


def check_mode(mode: int) -> None:
    """Raise ValueError for permissions that are not offered."""
    if mode not in MODES:
        given = oct(mode) if isinstance(mode, int) else repr(mode)
        raise ValueError(
            f"mode={given}: 0o600 keeps the ring to one user, 0o640 lets its group attach;"
            " no other is offered, since readers write the control segment"
        )


def shared_mode(mode: int) -> int:
    """The mode of what readers and senders write, too."""
    return mode | (mode & 0o040) >> 1


def make(name: str, size: int, mode: int) -> None:
    """Make one zeroed segment and take its pages now: a full /dev/shm is an error here rather than
    a SIGBUS at some later store.

    Raises:
        FileExistsError: there is one of this name.
        RingError: /dev/shm has no room, or the system refuses.
    """
    block = _SharedMemory(name.removeprefix("/"), create=True, size=size)
    try:
        block.allocate(mode)
    except OSError as error:
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_shared_memory(name)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise RingError(f"cannot make {name}: {error.strerror}") from error
        free = os.statvfs(SHM).f_bavail * os.statvfs(SHM).f_frsize
        raise RingError(
            f"/dev/shm has no room for {name}: {size >> 10} KiB are needed, {free >> 10} KiB"
            " are free. Make the ring smaller (capacity=, slots=), remove what is stale, or"
            " enlarge /dev/shm (in a container: --shm-size)"
        ) from error
    finally:
        block.close()


def make_stub(name: str) -> None:
    """Make an empty segment for its locks alone, unless there is one of this name."""
    with contextlib.suppress(FileExistsError):
        _SharedMemory(name.removeprefix("/"), create=True, size=1).close()


@contextlib.contextmanager
def _descriptor(name: str) -> Iterator[int]:
    """A descriptor on a segment that was just made, closed at the end of the block."""
    fd = os.open(
        SHM / name.removeprefix("/"), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        yield fd
    finally:
        os.close(fd)


def _map_new(name: str, size: int) -> _endpoint.NewMapping:
    with _descriptor(name) as fd:
        return _endpoint.NewMapping(fd, size)


def fill_ring(name: str, sizes: RingSizes, mode: int) -> _endpoint.Segments:
    """Make the rest of a ring whose control segment is there; the caller holds its writer lock."""
    geometry = ring_geometry(sizes)
    size = geometry.data_size
    try:
        make(data_name(name), size, mode)
    except FileExistsError:  # without a control segment nobody can be using it
        posix_ipc.unlink_shared_memory(data_name(name))
        make(data_name(name), size, mode)
    instance = secrets.randbits(63) | 1
    semaphores.create(ring_semaphores(name, instance, sizes.max_readers), shared_mode(mode))
    data = _map_new(data_name(name), size)
    control = _map_new(control_name(name), geometry.control_size)
    _endpoint.format_ring(data, control, geometry, instance)
    return _endpoint.Segments(name, "write", None)


def fill_uplink(name: str, max_senders: int, lane_bytes: int, mode: int) -> _uplink.Uplink:
    """Make the rest of an uplink whose segment is there; the caller holds its receiver's lock."""
    instance = secrets.randbits(63) | 1
    semaphores.create(uplink_semaphores(name, instance, max_senders), shared_mode(mode))
    mapping = _map_new(uplink_name(name), _uplink.segment_size(max_senders, lane_bytes))
    _uplink.format_uplink(mapping, max_senders, lane_bytes, instance)
    return _uplink.Uplink(name, "write", None)


# ---- opening -------------------------------------------------------------------------------


def open_endpoint(name: str, segment: SegmentName) -> _endpoint.Endpoint | None:
    """The segment that carries the locks, opened for them; None if there is none."""
    try:
        return _endpoint.Endpoint(segment(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = ""
        if isinstance(error, PermissionError):
            hint = ". It belongs to another user; its owner lets a group attach with mode=0o640"
        raise RingError(f"cannot open ring {name!r}: {error.strerror}{hint}") from error


def open_ring(
    name: str,
    *,
    access: Literal["look", "change", "write"] = "look",
    owner: int | None = None,
) -> OpenedRing:
    """Open a ring that exists; everything is checked before it is mapped.

    Args:
        name: the ring's.
        access: "write": map both segments for writing (the writer); "change": the control segment
            alone; "look": neither, and no page is touched before it is looked at.
        owner: user id the segments must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: see `shm.errors`.
    """
    check_name(name)
    endpoint = open_endpoint(name, control_name)
    if endpoint is None:
        raise RingNotFound(
            f"there is no ring {name!r}: start its writer or manager; `ringcast ls` lists the rings"
        )
    try:
        segments = _endpoint.Segments(name, access, owner)
        return OpenedRing(segments, endpoint)
    except BaseException:
        endpoint.close()
        raise


def open_uplink(name: str, *, writable: bool = False, owner: int | None = None) -> OpenedUplink:
    """Open an uplink that exists; everything is checked before it is mapped.

    Raises: as `open_ring` does.
    """
    check_name(name)
    endpoint = open_endpoint(name, uplink_name)
    if endpoint is None:
        raise RingNotFound(
            f"there is no uplink {name!r}: start its receiver or manager;"
            " `ringcast ls` lists the rings"
        )
    try:
        return OpenedUplink(_uplink.Uplink(name, "write" if writable else "look", owner), endpoint)
    except BaseException:
        endpoint.close()
        raise


# ---- removing ------------------------------------------------------------------------------


def remove_ring(name: str) -> None:
    """Unlink whatever there is of a ring. The caller holds the writer lock. Processes that have it
    mapped keep their mapping."""
    semaphores.remove(name, uplink=False)
    for queue in queue_segments(name):
        remove_queue(queue)
    segments = (*group_segments(name), *roster_segments(name), data_name(name))
    _remove_segments(*segments, control_name(name))


def remove_group(name: str, group: str, *, owner: int | None = None) -> None:
    """Remove a work group without members, from its ring and from /dev/shm.

    Raises:
        RingNotFound: there is no such ring, or no such group of it.
        RingError: it has living members, or a process that makes or joins a group comes to no end.
    """
    check_name(group, "group")
    opened = open_ring(name, owner=owner, access="change")
    with contextlib.closing(opened.endpoint):
        space, wishes = ring_semaphores(name, opened.segments.instance, 0)
        if not _group.remove_group(
            opened.segments, opened.endpoint, _endpoint.Semaphores([space, wishes]), group
        ):
            raise RingNotFound(
                f"ring {name!r} has no group {group!r}: `ringcast group {name}` lists them"
            )
        _remove_segments(_group.segment_name(name, group))


def remove_uplink(name: str) -> None:
    """The same for an uplink, whose receiver's lock the caller holds."""
    semaphores.remove(name, uplink=True)
    _remove_segments(uplink_name(name))


def remove_queue(queue: str) -> None:
    """Unlink a message queue, and the segment that lists it. Processes that have it open read what
    is in it, and then find that it has no name any more."""
    try:
        posix_ipc.unlink_message_queue(queue)
    except posix_ipc.ExistentialError:
        pass
    except posix_ipc.Error as error:
        raise RingError(f"cannot remove message queue {queue}: {error}") from error
    _remove_segments(queue)


def _remove_segments(*segments: str) -> None:
    for segment in segments:
        try:
            posix_ipc.unlink_shared_memory(segment)
        except posix_ipc.ExistentialError:
            continue
        except OSError as error:
            raise RingError(f"cannot remove {segment}: {error.strerror}; do it by hand") from error
