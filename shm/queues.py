"""A ring's POSIX message queues, each with the segment that lists it.

A message queue can be opened by its name without a mount, but not listed. So a segment of the same
name lies in /dev/shm beside each: 64 bytes that say what the queue is, and how far it was filled.
Its inode carries the locks of the one process that fills the queue and of the one that empties it.
docs/wire.md draws it.

Where a queue has no name any more, its inode has no link: `Queue.unlinked` needs no segment, so it
holds in a container with another /dev/shm, too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import posix_ipc

from . import _endpoint, blocks
from .errors import RingClosed, RingError, RingExists, RingNotFound
from .names import SHM, queue_label, queue_segments

__all__ = ["DEPTH", "MESSAGE_SIZE", "OwnedQueue", "Queue", "QueueStatus", "list_queues"]

DEPTH: Final = 10
"""Messages in a queue, by default: what Linux allows everybody."""
MESSAGE_SIZE: Final = 8192
"""Bytes of a queue's message, by default; likewise."""

_MAGIC: Final = 0x0045_5545_5551_4352
_VERSION: Final = 1
_LOCK_OWNER: Final = 0
_LOCK_USER: Final = 1
_TRIES: Final = 20
_SIZE: Final = 64
_PROGRESS: Final = struct.Struct("<QQ")
_PROGRESS_AT: Final = 40
_LIMITS: Final = Path("/proc/sys/fs/mqueue")
_OVERHEAD: Final = 96
"""What the kernel counts for each message beside its bytes: mq_overview(7), RLIMIT_MSGQUEUE."""
_DEPTH_MAX: Final = 65_536
_MESSAGE_SIZE_MAX: Final = 16_777_216
"""Above these even root can't go: HARD_MSGMAX and HARD_MSGSIZEMAX."""


class _Marker(NamedTuple):
    """What the segment beside a queue holds."""

    magic: int
    version: int
    zero: int
    instance: int
    depth: int
    message_size: int
    next1: int
    lost: int
    pid: int

    def describes(self, other: _Marker) -> bool:
        """Are they of the same queue of the same ring?"""
        return self[: self._fields.index("next1")] == other[: self._fields.index("next1")]

    @property
    def next(self) -> int | None:
        """The sequence after the last that was put in; None if there was none yet."""
        return None if self.next1 == 0 else self.next1 - 1


_MARKER: Final = struct.Struct("<QIIQQQQQQ")


class Queue:
    """One end of a message queue that does not wait; `fileno` can be polled. Made with
    `open_to_read` or `open_to_write`.

    Attributes:
        name: of the queue and of the segment beside it.
        depth: messages that it holds.
        message_size: bytes of the longest.
    """

    def __init__(self, name: str, queue: Any, endpoint: _endpoint.Endpoint | None) -> None:
        self.name = name
        self.depth: int = queue.max_messages
        self.message_size: int = queue.max_message_size
        self._queue = queue
        self._endpoint = endpoint
        self._closed = False
        queue.block = False

    @classmethod
    def open_to_read(cls, name: str) -> Self:
        """Open a queue as the one that empties it. Where /dev/shm is another one, as in some
        containers, nothing shows whether there is a second.

        Raises:
            RingNotFound: there is no such queue.
            RingExists: another process empties it.
            RingError: it belongs to another user.
        """
        endpoint = _open_marker(name)
        try:
            if endpoint is not None and not endpoint.try_lock(_LOCK_USER):
                raise RingExists(
                    f"message queue {name} has a reader already: one program reads a queue, give"
                    " each a --queue of its own"
                )
            return cls(name, _open(name, write=False), endpoint)
        except BaseException:
            if endpoint is not None:
                endpoint.close()
            raise

    @classmethod
    def open_to_write(cls, name: str) -> Self:
        """Open a queue as one of those that fill it.

        Raises:
            RingNotFound, RingError: as `open_to_read` does.
        """
        return cls(name, _open(name, write=True), None)

    def fileno(self) -> int:
        """The descriptor: readable while there is a message, writable while there is room."""
        self._check_open()
        return int(self._queue.mqd)

    def try_send(self, data: bytes) -> bool:
        """Put a message in; False if there is no room."""
        self._check_open()
        try:
            self._queue.send(data)
        except posix_ipc.BusyError:
            return False
        return True

    def try_receive(self) -> bytes | None:
        """Take the next message out; None if there is none."""
        self._check_open()
        try:
            message: bytes = self._queue.receive()[0]
        except posix_ipc.BusyError:
            return None
        return message

    @property
    def full(self) -> bool:
        """Is there no room just now?"""
        self._check_open()
        return bool(self._queue.current_messages >= self.depth)

    @property
    def unlinked(self) -> bool:
        """Has it no name any more? Then nothing more is put in."""
        return os.fstat(self.fileno()).st_nlink == 0

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return self._closed

    def close(self) -> None:
        """Close this end. The queue stays."""
        if self._closed:
            return
        self._closed = True
        self._queue.close()
        if self._endpoint is not None:
            self._endpoint.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RingClosed(f"this end of message queue {self.name} is closed")


class OwnedQueue(Queue):
    """A queue in the hands of the process that made it, or took it over from one that died. Made
    with `claim`.

    Attributes:
        next: how far the queue was filled, by a predecessor too: the sequence after the last that
            is in it; None if nothing was put in yet.
        lost: what was lost in all, by a predecessor too.
    """

    def __init__(
        self, name: str, queue: Any, endpoint: _endpoint.Endpoint, file: int, marker: _Marker
    ) -> None:
        super().__init__(name, queue, endpoint)
        self._owner_endpoint = endpoint
        self._file = file
        self.next = marker.next
        self.lost = marker.lost

    @classmethod
    def claim(
        cls,
        name: str,
        *,
        instance: int,
        depth: int = DEPTH,
        message_size: int = MESSAGE_SIZE,
        mode: int = 0o600,
    ) -> Self:
        """Make a queue, or take over that of an owner that died. What is in it stays if it is of
        the same ring and has these sizes; otherwise a new one takes its place.

        Args:
            name: `names.queue_name` or `names.upward_queue_name`.
            instance: of the ring.
            depth: messages that it holds.
            message_size: bytes of the longest.
            mode: 0o600, or 0o640 to let the group read it, or 0o660.

        Raises:
            RingExists: its owner is alive.
            ValueError: a size is not positive.
            RingError: the system's limits do not allow it; the text says which to raise, and to
                what.
        """
        for what, value in (("depth", depth), ("message_size", message_size)):
            if value < 1:
                raise ValueError(f"{what}={value} is not positive")
        marker = _Marker(_MAGIC, _VERSION, 0, instance, depth, message_size, 0, 0, os.getpid())
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError):
                blocks.make(name, _SIZE, blocks.shared_mode(mode))
            endpoint = _open_marker(name)
            if endpoint is None:
                continue
            with contextlib.ExitStack() as undo:
                undo.callback(endpoint.close)
                if not endpoint.try_lock(_LOCK_OWNER):
                    raise RingExists(
                        f"message queue {name} belongs to a living process,"
                        f" {_marker_of(name).pid}: stop it first"
                    )
                if not endpoint.leads_here(name):
                    continue
                undo.callback(blocks.remove_queue, name)
                file = _open_file(name, os.O_RDWR)
                undo.callback(os.close, file)
                owned = cls._take(name, endpoint, file, marker, mode)
                undo.pop_all()
                return owned
        raise RingExists(
            f"message queue {name} is made by several processes at once: let one do it"
        )

    @classmethod
    def _take(
        cls, name: str, endpoint: _endpoint.Endpoint, file: int, marker: _Marker, mode: int
    ) -> Self:
        """Go on with the queue that there is, or make a new one; the lock is held."""
        before = _read(file)
        if marker.describes(before):
            try:
                queue = posix_ipc.MessageQueue(name)
            except posix_ipc.ExistentialError:
                pass
            else:
                marker = marker._replace(next1=before.next1, lost=before.lost)
                os.pwrite(file, _MARKER.pack(*marker), 0)
                return cls(name, queue, endpoint, file, marker)
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_message_queue(name)
        queue = _make(name, marker.depth, marker.message_size, mode)
        os.pwrite(file, _MARKER.pack(*marker), 0)
        return cls(name, queue, endpoint, file, marker)

    def note(self, next_sequence: int, lost: int) -> None:
        """Write down how far the queue was filled, for whoever takes it over."""
        self.next, self.lost = next_sequence, lost
        os.pwrite(self._file, _PROGRESS.pack(next_sequence + 1, lost), _PROGRESS_AT)

    def close(self) -> None:
        """Let go of it, as a crash would: the next owner goes on."""
        if not self.closed:
            os.close(self._file)
        super().close()

    def remove(self) -> None:
        """Unlink it, and close this end. Does nothing if the name leads to another by now."""
        if self.closed:
            return
        if self._owner_endpoint.leads_here(self.name):
            blocks.remove_queue(self.name)
        self.close()


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A message queue that is filled from a ring, as the segment beside it says.

    Attributes:
        label: its label.
        pid: the process that fills it, dead or alive.
        filled: it lives.
        read: a process in Python reads it. Others do not show.
        depth, message_size: messages that it holds, and bytes of the longest.
        next: the sequence after the last that is in it; None if nothing was put in yet.
        lost: messages that were lost.
    """

    label: str
    pid: int
    filled: bool
    read: bool
    depth: int
    message_size: int
    next: int | None
    lost: int


def list_queues(name: str) -> list[QueueStatus]:
    """The message queues of a ring that this user may look at, by label."""
    found = []
    for segment in queue_segments(name):
        with contextlib.suppress(RingError, OSError):  # another user's, or it has gone meanwhile
            queue = _status(segment)
            if queue is not None:
                found.append(queue)
    return found


# ---- the segment beside a queue ------------------------------------------------------------


def _open_marker(name: str) -> _endpoint.Endpoint | None:
    return blocks.open_endpoint(name, lambda segment: segment)


def _status(segment: str) -> QueueStatus | None:
    """None for what is no such queue's segment."""
    label, endpoint = queue_label(segment), _open_marker(segment)
    if label is None or endpoint is None:
        return None
    with contextlib.closing(endpoint):
        marker = _marker_of(segment)
        if marker.magic != _MAGIC or marker.version != _VERSION:
            return None
        return QueueStatus(
            label=label,
            pid=marker.pid,
            filled=endpoint.is_held(_LOCK_OWNER),
            read=endpoint.is_held(_LOCK_USER),
            depth=marker.depth,
            message_size=marker.message_size,
            next=marker.next,
            lost=marker.lost,
        )


def _open_file(name: str, access: int) -> int:
    path = SHM / name.removeprefix("/")
    return os.open(path, access | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read(file: int) -> _Marker:
    return _Marker._make(_MARKER.unpack(os.pread(file, _SIZE, 0).ljust(_SIZE, b"\0")))


def _marker_of(name: str) -> _Marker:
    file = _open_file(name, os.O_RDONLY)
    try:
        return _read(file)
    finally:
        os.close(file)


# ---- the queue -----------------------------------------------------------------------------


def _open(name: str, *, write: bool) -> Any:
    try:
        return posix_ipc.MessageQueue(name, read=not write, write=write)
    except posix_ipc.ExistentialError:
        raise RingNotFound(
            f"there is no message queue {name}: start `ringcast gateway` with --queue;"
            " `ringcast ls` lists the queues"
        ) from None
    except posix_ipc.PermissionsError:
        raise RingError(f"message queue {name} belongs to another user") from None


def _make(name: str, depth: int, message_size: int, mode: int) -> Any:
    try:
        queue = posix_ipc.MessageQueue(
            name, posix_ipc.O_CREX, mode=mode, max_messages=depth, max_message_size=message_size
        )
    except (ValueError, OSError, posix_ipc.Error) as error:
        why = _sizes_in_the_way(depth, message_size) if isinstance(error, ValueError) else None
        raise RingError(
            f"cannot make message queue {name} for {depth} messages of {message_size} bytes:"
            f" {why or _room_in_the_way(error, depth, message_size)}"
        ) from error
    os.fchmod(queue.mqd, mode)  # the umask has had its say, and mode is what was asked for
    return queue


def _sizes_in_the_way(depth: int, message_size: int) -> str | None:
    """Which limits on a queue's sizes are too low, and what they have to be."""
    wrong = []
    for limit, needed, most in (
        ("msg_max", depth, _DEPTH_MAX),
        ("msgsize_max", message_size, _MESSAGE_SIZE_MAX),
    ):
        allowed = _sysctl(limit)
        if needed > most:
            wrong.append(f"{most} is the most that Linux can have for fs.mqueue.{limit}")
        elif needed > allowed:
            raising = f"`sysctl -w fs.mqueue.{limit}={needed}`"
            wrong.append(f"fs.mqueue.{limit} is {allowed}: {raising} raises it")
    return "; ".join(wrong) or None


def _room_in_the_way(error: Exception, depth: int, message_size: int) -> str:
    """What may be used up, by this queue and those that there are."""
    needed = depth * (message_size + _OVERHEAD)
    allowed, _ = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    queues = _sysctl("queues_max")
    return (
        f"{error}. This queue counts as {needed} bytes, and all of this user's together may have"
        f" {allowed} (RLIMIT_MSGQUEUE: raise it by {needed} with `ulimit -q`, in a container with"
        f" --ulimit msgqueue=); there may be {queues} queues (`sysctl -w"
        f" fs.mqueue.queues_max={queues + 1}` allows one more). `ringcast clean` removes what is"
        " stale"
    )


def _sysctl(limit: str) -> int:
    return int((_LIMITS / limit).read_text(encoding="ascii"))
