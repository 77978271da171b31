"""The shared-memory objects of rings and uplinks: how they are made, opened, listed, removed.

A ring NAME is ``/rc.NAME.d`` (data, written by the writer alone), ``/rc.NAME.c`` (control, written
by readers too) and semaphores ``/rc.NAME.INSTANCE.*``. The control segment is made first, removed
last: its inode carries the locks, so whoever holds its writer lock may work on all of them. An
uplink NAME is ``/rc.NAME.u``, which carries its own, and semaphores.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import posix_ipc

from . import _ring, _uplink, signals
from .errors import RingClosed, RingCorrupt, RingError, RingExists, RingNotFound

SHM: Final = Path("/dev/shm")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,19}")
_TRIES: Final = 20


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

    def settle(self, mode: int) -> None:
        """Take every page and set the permissions: through the descriptor it was made with, since
        the name may lead elsewhere before anybody holds its lock."""
        fd: int = self._fd  # type: ignore[attr-defined]
        os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
        os.fchmod(fd, mode)


@dataclass(frozen=True, slots=True)
class OpenedUplink:
    """An uplink's segment, mapped, and the descriptor that is to hold this end's lock."""

    uplink: _uplink.Uplink
    endpoint: _ring.Endpoint


@dataclass(frozen=True, slots=True)
class Opened:
    """A ring's segments, mapped, and the descriptor that is to hold this end's lock."""

    segments: _ring.Segments
    endpoint: _ring.Endpoint


def check_name(name: str) -> str:
    """Return `name`, or raise ValueError with what is wrong with it."""
    if not isinstance(name, str):
        raise TypeError(f"a ring's name is a string, not {type(name).__name__}")
    if _NAME.fullmatch(name):
        return name
    if not name:
        why = "it is empty"
    elif len(name) > 20:
        why = f"it has {len(name)} characters, at most 20 fit into a semaphore's name"
    elif name[0] in "_-":
        why = f"it starts with {name[0]!r}"
    else:
        bad = next(c for c in name if not re.fullmatch("[a-z0-9_-]", c))
        why = f"it has the character {bad!r}"
    raise ValueError(
        f"{name!r} can't name a ring: {why}. Use 1 to 20 of a-z, 0-9, _ and -, starting with a"
        " letter or digit"
    )


def data_name(name: str) -> str:
    """Shared-memory name of the data segment."""
    return f"/rc.{name}.d"


def control_name(name: str) -> str:
    """Shared-memory name of the control segment."""
    return f"/rc.{name}.c"


def uplink_name(name: str) -> str:
    """Shared-memory name of the uplink's segment."""
    return f"/rc.{name}.u"


Names = Callable[[str], str]
"""`control_name` or `uplink_name`: the segment that carries the locks."""


def _check_sizes(slots: int, capacity: int, max_readers: int, mode: int) -> None:
    for what, value, low, high in (
        ("slots", slots, _ring.SLOTS_MIN, _ring.SLOTS_MAX),
        ("capacity", capacity, _ring.CAPACITY_MIN, _ring.CAPACITY_MAX),
    ):
        if not low <= value <= high or value & (value - 1):
            near = min(max(1 << max(value - 1, 0).bit_length(), low), high)
            raise ValueError(
                f"{what}={value} is not a power of two from {low} to {high}: take {near}"
            )
    if not 1 <= max_readers <= _ring.READERS_MAX:
        raise ValueError(f"max_readers={max_readers} is not from 1 to {_ring.READERS_MAX}")
    _check_mode(mode)


def _check_mode(mode: int) -> None:
    if mode not in (0o600, 0o640):
        given = oct(mode) if isinstance(mode, int) else repr(mode)
        raise ValueError(
            f"mode={given}: 0o600 keeps the ring to one user, 0o640 lets its group attach;"
            " no other is offered, since readers write the control segment"
        )


def create(name: str, slots: int, capacity: int, max_readers: int, mode: int) -> Opened:
    """Make a new ring's segments and semaphores and take its writer lock.

    Raises:
        ValueError: a size or the mode is out of range.
        RingExists: a ring of this name lives, or its writer died and left it to be resumed.
        RingError: /dev/shm has no room, or the system refuses.
    """
    _check_sizes(slots, capacity, max_readers, mode)
    check_name(name)
    endpoint = RING.claim(name, _ring.control_size(max_readers), _shared(mode))
    with RING.removed_if_it_fails(name, endpoint):
        return _fill(name, endpoint, slots, capacity, max_readers, mode)


def _shared(mode: int) -> int:
    """The mode of what readers and senders write, too."""
    return mode | (mode & 0o040) >> 1


def _fill(
    name: str, endpoint: _ring.Endpoint, slots: int, capacity: int, max_readers: int, mode: int
) -> Opened:
    size = _ring.data_size(slots, capacity)
    try:
        _make(data_name(name), size, mode)
    except FileExistsError:  # without a control segment nobody can be using it
        posix_ipc.unlink_shared_memory(data_name(name))
        _make(data_name(name), size, mode)
    instance = secrets.randbits(63) | 1
    semaphores = signals.all_semaphores(name, instance, max_readers)
    signals.create(semaphores, _shared(mode))
    data = _map(data_name(name), size, writable=True, populate=True)
    control = _map(
        control_name(name), _ring.control_size(max_readers), writable=True, populate=True
    )
    _ring.format_segments(data, control, slots, capacity, max_readers, instance)
    return Opened(_ring.Segments(name, data, control), endpoint)


def _make(name: str, size: int, mode: int) -> None:
    """Make one zeroed segment and take its pages now: a full /dev/shm is an error here rather than
    a SIGBUS at some later store."""
    block = _SharedMemory(name.removeprefix("/"), create=True, size=size)
    try:
        block.settle(mode)
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


@contextlib.contextmanager
def _descriptor(name: str, *, read_only: bool = False) -> Iterator[int]:
    """A descriptor on a segment, closed at the end of the block."""
    flags = os.O_RDONLY if read_only else os.O_RDWR
    path = SHM / name.removeprefix("/")
    # Not shm_open: what lies there may be a FIFO, on which that would wait for ever.
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _map(name: str, size: int, *, writable: bool, populate: bool) -> _ring.Mapping:
    with _descriptor(name, read_only=not writable) as fd:
        if os.fstat(fd).st_size != size:
            raise RingCorrupt(f"{name} changed its size while it was opened")
        return _ring.Mapping(fd, size, writable, populate)


def open_endpoint(name: str, segment: Names = control_name) -> _ring.Endpoint | None:
    """The segment that carries the locks opened for them; None if there is none."""
    try:
        return _ring.Endpoint(segment(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RingError(
            f"cannot open ring {name!r}: {error.strerror}. It belongs to another user; its owner"
            " lets a group attach with mode=0o640"
        ) from error


def leads_here(name: str, endpoint: _ring.Endpoint, segment: Names = control_name) -> bool:
    """Does the name still lead to the segment that `endpoint` was opened on?"""
    try:
        there = (SHM / segment(name).removeprefix("/")).lstat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == endpoint.inode


def _check_status(name: str, segment: str, status: os.stat_result, owner: int | None) -> None:
    allowed = {os.geteuid(), 0} if owner is None else {owner}
    if not stat.S_ISREG(status.st_mode):
        raise RingCorrupt(f"{segment} is no shared-memory segment")
    if status.st_uid not in allowed:
        raise RingCorrupt(
            f"{segment} belongs to user {status.st_uid}, not to you or root: attach with"
            f" owner={status.st_uid} if ring {name!r} is meant to be that user's"
        )
    others = 0o022 if segment.endswith(".d") else 0o002
    if status.st_mode & others:
        raise RingCorrupt(
            f"{segment} can be written by others (mode {stat.S_IMODE(status.st_mode):#o}):"
            " ringcast never makes it so; remove it and create the ring again"
        )


def _check_pages(segment: str, status: os.stat_result) -> None:
    """After the header, which a segment that is being made does not have yet."""
    if status.st_blocks * 512 < status.st_size:
        raise RingCorrupt(
            f"{segment} has holes: ringcast takes a ring's memory when it creates it, and reading"
            " holes could take more than there is"
        )


def open_ring(
    name: str, *, writable: bool = False, owner: int | None = None, read_only: bool = False
) -> Opened:
    """Open a ring that exists; everything is checked before it is mapped.

    Args:
        name: the ring's.
        writable: map the data segment for writing (the writer), or PROT_READ (readers).
        read_only: map even the control segment PROT_READ (those who only look).
        owner: user id the segments must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: see `shm.errors`.
    """
    check_name(name)
    endpoint = open_endpoint(name)
    if endpoint is None:
        raise RingNotFound(f"there is no ring {name!r}: start its writer, or see shm.list_rings()")
    try:
        segments = open_segments(name, writable=writable, owner=owner, read_only=read_only)
        return Opened(segments, endpoint)
    except BaseException:
        endpoint.close()
        raise


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the system as errors of rings; `what` is being opened."""
    try:
        yield
    except RingError:
        raise
    except FileNotFoundError as error:
        raise RingNotFound(f"{what} is being made or removed: try again") from error
    except OSError as error:
        raise RingError(f"cannot open {what}: {error}") from error


def open_segments(
    name: str, *, writable: bool, owner: int | None, read_only: bool = False
) -> _ring.Segments:
    """Check and map both segments; `read_only`, for those who only look, maps neither for writing
    and touches no page before it is looked at."""
    with _explained(f"ring {name!r}"):
        return _open_segments(name, writable=writable, owner=owner, read_only=read_only)


def _open_segments(
    name: str, *, writable: bool, owner: int | None, read_only: bool
) -> _ring.Segments:
    found = []
    heads = []
    for segment, head in (
        (data_name(name), _ring.DATA_HEADER),
        (control_name(name), _ring.CONTROL_HEADER),
    ):
        with _descriptor(segment, read_only=True) as fd:
            status = os.fstat(fd)
            _check_status(name, segment, status, owner)
            found.append(status)
            heads.append(os.pread(fd, head, 0))
    sizes = [status.st_size for status in found]
    _ring.check_headers(name, heads[0], sizes[0], heads[1], sizes[1])
    _check_pages(data_name(name), found[0])
    _check_pages(control_name(name), found[1])
    data = _map(data_name(name), sizes[0], writable=writable, populate=not read_only)
    control = _map(control_name(name), sizes[1], writable=not read_only, populate=not read_only)
    return _ring.Segments(name, data, control)


def _is_closed(name: str) -> bool:
    segments = open_segments(name, writable=False, owner=None, read_only=True)
    closed: bool = segments.ring_counters()[0]
    return closed


def remove(name: str) -> None:
    """Unlink whatever there is of a ring. The caller holds the writer lock. Processes that have it
    mapped keep their mapping."""
    signals.remove(name, uplink=False)
    _remove_segments(data_name(name), control_name(name))


def remove_uplink(name: str) -> None:
    """The same for an uplink, whose receiver's lock the caller holds."""
    signals.remove(name, uplink=True)
    _remove_segments(uplink_name(name))


def _remove_segments(*segments: str) -> None:
    for segment in segments:
        try:
            posix_ipc.unlink_shared_memory(segment)
        except posix_ipc.ExistentialError:
            continue
        except OSError as error:
            raise RingError(f"cannot remove {segment}: {error.strerror}; do it by hand") from error


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


@dataclass(frozen=True, slots=True)
class Part:
    """What is made and removed as one: a ring, or an uplink.

    Attributes:
        what: "ring" or "uplink".
        segment: which segment carries the locks.
        lock: the byte of its owner: the one writer, or receiver.
        owner: what that is called; `resume` is how another takes over.
        remove: unlinks all of it; for who holds the lock.
        is_closed: whether its owner has ended it.
        names: those that have left anything.
    """

    what: str
    segment: Names
    lock: int
    owner: str
    resume: str
    remove: Callable[[str], None]
    is_closed: Callable[[str], bool]
    names: Callable[[], list[str]]

    def claim(self, name: str, size: int, mode: int) -> _ring.Endpoint:
        """Make the segment that carries the locks, and take the owner's.

        Raises:
            RingExists: there is one that lives, or that can be resumed.
        """
        for _ in range(_TRIES):
            try:
                _make(self.segment(name), size, mode)
            except FileExistsError:
                self._clear(name)
                continue
            endpoint = open_endpoint(name, self.segment)
            if endpoint is None:
                continue
            if endpoint.try_lock(self.lock) and leads_here(name, endpoint, self.segment):
                return endpoint
            endpoint.close()
        raise RingExists(
            f"{self.what} {name!r} is being created by several processes at once: let one do it"
        )

    @contextlib.contextmanager
    def removed_if_it_fails(self, name: str, endpoint: _ring.Endpoint) -> Iterator[None]:
        """What was claimed goes again when the rest of it can't be made."""
        try:
            yield
        except BaseException as error:
            self.remove(name)
            endpoint.close()
            if isinstance(error, OSError | posix_ipc.Error):
                raise RingError(f"cannot create {self.what} {name!r}: {error}") from error
            raise

    def _clear(self, name: str) -> None:
        """A segment is in the way of a new one: remove what a dead creator left, or what was
        closed; raise RingExists for anything that somebody may still want."""
        endpoint = open_endpoint(name, self.segment)
        if endpoint is None:
            return
        try:
            if not endpoint.try_lock(self.lock):
                raise RingExists(f"{self.what} {name!r} exists, and its {self.owner} is alive")
            if not leads_here(name, endpoint, self.segment):
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
        self, name: str, endpoint: _ring.Endpoint, counters: Callable[[], tuple[Any, ...]]
    ) -> None:
        """Become the owner of one whose owner died.

        Args:
            name: its name.
            endpoint: of the segment that carries the locks.
            counters: reads from it whether it was closed, the epoch, and its owner's process id.

        Raises:
            RingExists: its owner lives.
            RingNotFound: the name leads elsewhere by now.
            RingClosed: it was ended.
        """
        if not endpoint.try_lock(self.lock):
            raise RingExists(
                f"{self.what} {name!r} has a living {self.owner}, process {counters()[2]}"
            )
        if not leads_here(name, endpoint, self.segment):
            raise RingNotFound(f"{self.what} {name!r} was replaced while it was opened: try again")
        if counters()[0]:  # read under the lock: until then its owner could still end it
            raise RingClosed(
                f"{self.what} {name!r} was ended by its {self.owner}: create a new one"
            )

    def watch(self, name: str, endpoint: _ring.Endpoint) -> Callable[[], str | None]:
        """A function that says why nothing can come or go any more, or None while something can.

        A dead owner alone is no reason: another can resume it while its name leads here.
        """

        def gone() -> str | None:
            if endpoint.is_held(self.lock) or leads_here(name, endpoint, self.segment):
                return None
            return (
                f"{self.what} {name!r} has no {self.owner} and was removed, so no message can come"
                " any more"
            )

        return gone

    def unlink(self, name: str) -> None:
        """Remove it, unless somebody holds its lock."""
        for _ in range(_TRIES):
            if name not in self.names():
                return
            endpoint = open_endpoint(name, self.segment)
            if endpoint is None:  # only who holds the lock may remove: make what carries it
                bare = self.segment(name).removeprefix("/")
                with contextlib.suppress(FileExistsError):
                    _SharedMemory(bare, create=True, size=1).close()
                continue
            if self._unlink_locked(name, endpoint, None):
                return
        raise RingExists(f"{self.what} {name!r} is being made anew over and over")

    def unlink_if(self, name: str, inode: tuple[int, int]) -> None:
        """Remove the one of this very segment, if it still has the name and no new owner."""
        endpoint = open_endpoint(name, self.segment)
        if endpoint is not None:
            with contextlib.suppress(RingExists):
                self._unlink_locked(name, endpoint, inode)

    def _unlink_locked(
        self, name: str, endpoint: _ring.Endpoint, inode: tuple[int, int] | None
    ) -> bool:
        """The same through this endpoint, which is closed; False: the name leads elsewhere."""
        try:
            if not endpoint.try_lock(self.lock):
                raise RingExists(
                    f"{self.what} {name!r} has a living {self.owner}: stop that process first"
                )
            if not leads_here(name, endpoint, self.segment) or inode not in (None, endpoint.inode):
                return False
            self.remove(name)
            return True
        finally:
            endpoint.close()


def _found(*, uplink: bool) -> list[str]:
    found = set()
    for entry in os.scandir(SHM):
        parts = entry.name.removeprefix("sem.").split(".")
        if parts[0] == "rc" and len(parts) >= 3 and _NAME.fullmatch(parts[1]):
            of_uplink = parts[-1] == "u" if len(parts) == 3 else signals.is_uplink(entry.name)
            if of_uplink is uplink:
                found.add(parts[1])
    return sorted(found)


def names() -> list[str]:
    """Names of all rings that have left anything in /dev/shm, sorted."""
    return _found(uplink=False)


def uplink_names() -> list[str]:
    """Names of all uplinks that have left anything in /dev/shm, sorted."""
    return _found(uplink=True)


RING: Final = Part(
    what="ring",
    segment=control_name,
    lock=_ring.LOCK_WRITER,
    owner="writer",
    resume="Writer.resume",
    remove=remove,
    is_closed=_is_closed,
    names=names,
)


# ---- uplinks -------------------------------------------------------------------------------


def create_uplink(name: str, max_senders: int, lane_bytes: int, mode: int) -> OpenedUplink:
    """Make a new uplink's segment and semaphores and take its receiver's lock.

    Raises: as `create` does.
    """
    _uplink.check_sizes(max_senders, lane_bytes)
    _check_mode(mode)
    check_name(name)
    size = _uplink.segment_size(max_senders, lane_bytes)
    endpoint = UPLINK.claim(name, size, _shared(mode))
    with UPLINK.removed_if_it_fails(name, endpoint):
        return _fill_uplink(name, endpoint, max_senders, lane_bytes, _shared(mode))


def _fill_uplink(
    name: str, endpoint: _ring.Endpoint, max_senders: int, lane_bytes: int, mode: int
) -> OpenedUplink:
    instance = secrets.randbits(63) | 1
    signals.create(signals.uplink_semaphores(name, instance, max_senders), mode)
    size = _uplink.segment_size(max_senders, lane_bytes)
    mapping = _map(uplink_name(name), size, writable=True, populate=True)
    _uplink.format_segment(mapping, max_senders, lane_bytes, instance)
    return OpenedUplink(_uplink.Uplink(name, mapping), endpoint)


def open_uplink(name: str, *, owner: int | None = None, read_only: bool = False) -> OpenedUplink:
    """Open an uplink that exists; everything is checked before it is mapped.

    Raises: as `open_ring` does.
    """
    check_name(name)
    endpoint = open_endpoint(name, uplink_name)
    if endpoint is None:
        raise RingNotFound(f"there is no uplink {name!r}: start its receiver")
    try:
        with _explained(f"uplink {name!r}"):
            return OpenedUplink(_open_uplink(name, owner=owner, read_only=read_only), endpoint)
    except BaseException:
        endpoint.close()
        raise


def _open_uplink(name: str, *, owner: int | None, read_only: bool) -> _uplink.Uplink:
    segment = uplink_name(name)
    with _descriptor(segment, read_only=True) as fd:
        status = os.fstat(fd)
        _check_status(name, segment, status, owner)
        _uplink.check_header(name, os.pread(fd, _uplink.HEADER, 0), status.st_size)
        _check_pages(segment, status)
    mapping = _map(segment, status.st_size, writable=not read_only, populate=not read_only)
    return _uplink.Uplink(name, mapping)


def _is_uplink_closed(name: str) -> bool:
    with _explained(f"uplink {name!r}"):
        closed: bool = _open_uplink(name, owner=None, read_only=True).counters()[0]
    return closed


UPLINK: Final = Part(
    what="uplink",
    segment=uplink_name,
    lock=_uplink.LOCK_RECEIVER,
    owner="receiver",
    resume="Receiver.resume",
    remove=remove_uplink,
    is_closed=_is_uplink_closed,
    names=uplink_names,
)


# ---- owners --------------------------------------------------------------------------------


class Owner:
    """What a writer and a receiver have in common in Python: the name they are found by. Stands
    before the native class, which has `name`, `closed`, `_end` and `abandon`."""

    __slots__ = ()

    _part: ClassVar[Part]
    _endpoint: _ring.Endpoint

    if TYPE_CHECKING:  # the native class has them

        @property
        def name(self) -> str: ...
        @property
        def closed(self) -> bool: ...
        def _end(self) -> bool: ...
        def abandon(self) -> None: ...

    def unlink(self) -> None:
        """Remove the names, so that nobody can attach any more; who is attached goes on. Does
        nothing if the name already leads to another one."""
        if not self.closed:
            self._remove()
        elif not self._endpoint.forked:
            self._part.unlink_if(self.name, self._endpoint.inode)

    def _remove(self) -> None:
        """Remove the names, while the lock is held."""
        if leads_here(self.name, self._endpoint, self._part.segment):
            self._part.remove(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._end():
            self._remove()
            self.abandon()
        else:
            self.unlink()
