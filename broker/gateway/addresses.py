"""Where a gateway listens: sockets that are bound to the addresses that `--listen` has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from ..config import ConfigError
from ..config.addresses import Authority, ListenAddress

__all__ = ["MODE_DEFAULT", "ListenAddress", "Listener", "bind"]

MODE_DEFAULT: Final = 0o600
"""Of a Unix socket: the user who runs the gateway, and root."""

_MODE_OWNER: Final = 0o600
_MODE_MAX: Final = 0o777
_BACKLOG: Final = 1024
"""Clients whose connections the kernel keeps until they are accepted; net.core.somaxconn may make
it fewer."""
_LOCK_TIMEOUT: Final = 5.0
"""Seconds to wait for another gateway that binds in the same folder. It takes microseconds."""
_LOCK_PAUSE: Final = 0.01
_PROBE_TIMEOUT: Final = 1.0
"""Seconds. A Unix socket connects or refuses at once, unless its backlog is full."""

# ---- listening sockets -----------------------------------------------------------------------


class _File(NamedTuple):
    """Which file it is, whatever its name."""

    device: int
    inode: int


@dataclass(slots=True)
class Listener:
    """A socket that listens; made with `bind`. As a context manager it is closed at the end.

    Attributes:
        address: where it listens; with the real port, where any free one was asked for.
        sock: the socket, which does not block.
    """

    address: ListenAddress
    sock: socket.socket
    _file: _File | None = field(default=None, repr=False)

    def close(self) -> None:
        """Close the socket, and remove its file if it is still this socket's. Closing twice is
        fine.

        Raises:
            OSError: the file can't be removed; the socket is closed.
        """
        # The file goes first: while the socket is open, no other file can have its inode's number.
        file, self._file = self._file, None
        try:
            with contextlib.suppress(FileNotFoundError):
                if file is not None and _file_at(self.address.path) == file:
                    Path(self.address.path).unlink()
        finally:
            self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def bind(address: ListenAddress, mode: int = MODE_DEFAULT) -> Listener:
    """Listen on `address`.

    The file of a Unix socket that nothing answers on, as a killed gateway leaves it, is replaced.
    Its mode is never wider than `mode`, not even for a moment and whatever the umask: Linux takes
    the file's mode from the socket's own inode, which gets it before there is a file, and what the
    umask took away is given back afterwards.

    ``localhost`` is 127.0.0.1; other names are resolved, and the first of their addresses counts.

    Args:
        address: where.
        mode: permissions of a Unix socket, which need those of its owner (0600).

    Raises:
        ConfigError: it can't; the error says why, and what to do.
    """
    if not 0 <= mode <= _MODE_MAX or mode & _MODE_OWNER != _MODE_OWNER:
        raise ConfigError(
            f"mode {mode:#o}: give permissions of a file, 0600 at least, such as 0660 to let its"
            " group in"
        )
    try:
        if address.authority is None:
            return _bind_unix(address, mode)
        return _bind_tcp(address, address.authority)
    except ConfigError as error:
        raise ConfigError(f"can't listen on {str(address)!r}: {error}") from None
    except OSError as error:
        raise ConfigError(f"can't listen on {str(address)!r}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EADDRINUSE:
            return "another program listens there: end it, or give another address"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case errno.ENOENT | errno.ENOTDIR:
            return "there is no such folder: make it first"
        case errno.EACCES | errno.EPERM:
            return f"{reason}: this user may not; give an address where it may"
        case _:
            return reason


def _bind_tcp(address: ListenAddress, authority: Authority) -> Listener:
    assert authority.port is not None  # ListenAddress.parse sees to it
    host = "127.0.0.1" if authority.host == "localhost" else authority.host
    found = socket.getaddrinfo(
        host, authority.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, where = found[0]
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, kind, protocol))
        # Connections of a gateway that ended a moment ago do not keep its port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        bound = replace(address, authority=replace(authority, port=sock.getsockname()[1]))
        undo.pop_all()
    return Listener(bound, sock)


def _bind_unix(address: ListenAddress, mode: int) -> Listener:
    path = Path(address.path)
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        os.fchmod(sock.fileno(), mode)
        with _locked(path.parent):
            _remove_stale(path)
            sock.bind(address.path)
            listener = Listener(address, sock, _file_at(address.path))
            undo.callback(listener.close)
            _give_mode(path, mode)
            # Still locked: until it listens, it refuses, as the socket of a dead gateway does.
            sock.listen(_BACKLOG)
        sock.setblocking(False)
        undo.pop_all()
    return listener


def _file_at(path: str) -> _File:
    found = os.lstat(path)
    return _File(found.st_dev, found.st_ino)


def _give_mode(path: Path, mode: int) -> None:
    """Give the file the permissions that the umask took away. By a descriptor, so that no link that
    somebody put in its place is followed."""
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISSOCK(os.fstat(file).st_mode):
            Path(f"/proc/self/fd/{file}").chmod(mode)
    finally:
        os.close(file)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: of two gateways that find the same dead socket, one replaces it and
    the other one finds a living one."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise ConfigError(f"another process holds the lock of the folder {folder}")
            time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Remove the socket of a gateway that is gone.

    Raises:
        ConfigError: there is another file, or somebody answers.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("there is a file that is no socket: remove it, or give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, None):  # None: a timeout
                raise ConfigError(
                    f"there is another program's socket ({error.strerror}): give another path"
                ) from error
            raise ConfigError("another program listens there, and is busy") from None
        else:
            raise ConfigError("another gateway listens there: end it, or give another path")
