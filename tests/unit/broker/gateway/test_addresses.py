"""Addresses that a gateway listens on, and sockets that are bound to them."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast.broker.config import ConfigError
from ringcast.broker.config.addresses import AddressKind
from ringcast.broker.gateway.addresses import ListenAddress, Listener, bind
from tests.conftest import DEADLINE

# ---- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain", "secure", "loopback"),
    [
        ("unix:/run/md.sock", "unix:/run/md.sock", "unix:/run/md.sock", False),
        ("127.0.0.1:9001", "ws://127.0.0.1:9001", "wss://127.0.0.1:9001", True),
        ("127.8.8.8:0", "ws://127.8.8.8:0", "wss://127.8.8.8:0", True),
        ("[::1]:9001", "ws://[::1]:9001", "wss://[::1]:9001", True),
        ("LOCALHOST:1", "ws://localhost:1", "wss://localhost:1", True),
        ("0.0.0.0:1", "ws://0.0.0.0:1", "wss://0.0.0.0:1", False),
        ("[::]:1", "ws://[::]:1", "wss://[::]:1", False),
        ("md.example:1", "ws://md.example:1", "wss://md.example:1", False),
    ],
)
def test_addresses(text: str, plain: str, secure: str, loopback: bool) -> None:
    address = ListenAddress.parse(text)
    assert (address.url(), address.url(tls=True)) == (plain, secure)
    assert address.is_loopback is loopback
    assert (address.kind is AddressKind.UNIX) is text.startswith("unix:")
    assert ListenAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no port"),
        ("9001", "no port"),
        ("127.0.0.1", "no port"),
        ("[::1]", "no port"),
        (":9001", "127.0.0.1:9001 for this machine alone, 0.0.0.0:9001 for every network"),
        (":", "127.0.0.1: for this machine"),
        ("::1:9001", "brackets"),
        ("*:9001", "a host is"),
        ("h:70000", "a port is"),
        ("[::ffff:127.0.0.1]:9001", "127.0.0.1:9001"),
        ("ws://127.0.0.1:9001", "leave scheme and slashes out"),
        ("unix:md.sock", "starts with /"),
        ("unix:///run/md.sock", "one slash"),
        ("unix:/" + "a" * 107, "108 bytes, at most 107"),
        ("tcp:127.0.0.1:1", "brackets"),
        ("user@h:1", "a host is"),
        ("h:1 ", "a port is"),
        ("h:1\0", "a port is"),
    ],
)
def test_what_is_no_address(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ListenAddress.parse(text)


@given(st.text() | st.lists(st.sampled_from(["unix:", ":", "[", "]", "1", "/", "."])).map("".join))
def test_parsing_raises_nothing_else(text: str) -> None:
    with suppress(ConfigError):
        address = ListenAddress.parse(text)
        assert ListenAddress.parse(str(address)) == address


def test_an_error_is_short_however_long_the_address() -> None:
    with pytest.raises(ConfigError) as caught:
        ListenAddress.parse("a" * 100_000)
    assert len(str(caught.value)) < 400


# ---- binding ---------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "md.sock"


def at(path: Path) -> ListenAddress:
    return ListenAddress.parse(f"unix:{path}")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def reach(listener: Listener) -> None:
    """Connect to it, and see that the connection arrives."""
    with socket.socket(listener.sock.family) as client:
        client.settimeout(DEADLINE)
        client.connect(listener.sock.getsockname())
        listener.sock.settimeout(DEADLINE)
        listener.sock.accept()[0].close()


def leave_dead(path: Path) -> None:
    """Leave a socket's file, as a process does that is killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_tcp(text: str) -> None:
    try:
        listener = bind(ListenAddress.parse(text))
    except ConfigError:
        if text.startswith("[") and not has_ipv6():
            pytest.skip("this machine has no IPv6")
        raise
    with listener:
        assert not listener.sock.getblocking()
        port = listener.sock.getsockname()[1]
        assert port > 0
        assert listener.address.url() == f"ws://{text.removesuffix(':0')}:{port}"
        reach(listener)
        with pytest.raises(ConfigError, match="another program listens there"):
            bind(listener.address)
    with bind(listener.address):  # at once again
        pass


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "part"),
    [("192.0.2.1:0", "no such address"), ("nothing.invalid:1", "can't listen on")],
)
def test_tcp_that_is_not_here(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        bind(ListenAddress.parse(text))


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_unix_socket_has_its_mode(path: Path, mask: int, mode: int) -> None:
    with umask(mask), bind(at(path), mode) as listener:
        assert mode_of(path) == mode
        assert listener.address.url() == f"unix:{path}"
        reach(listener)
    assert not path.exists()


def test_a_unix_socket_is_its_owners_by_default(path: Path) -> None:
    with umask(0), bind(at(path)):
        assert mode_of(path) == 0o600


def test_a_unix_socket_is_never_wider(path: Path) -> None:
    """Somebody looks all the time, while it is made again and again."""
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            with suppress(FileNotFoundError):
                seen.add(mode_of(path))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with umask(0):
            for _ in range(300):
                bind(at(path)).close()
    finally:
        done.set()
        watcher.join(DEADLINE)
    assert seen <= {0o600}


@pytest.mark.parametrize("mode", [-1, 0o400, 0o060, 0o1600, 0o10600])
def test_modes_that_no_socket_has(path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="0600 at least"):
        bind(at(path), mode)
    assert not path.exists()


def test_a_dead_socket_is_replaced(path: Path) -> None:
    leave_dead(path)
    with bind(at(path)) as listener:
        reach(listener)


def test_a_living_one_is_not(path: Path) -> None:
    with bind(at(path)) as listener:
        with pytest.raises(ConfigError, match="another gateway listens there"):
            bind(at(path))
        reach(listener)  # the probe
        reach(listener)


def test_a_busy_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(ConfigError, match="busy"):
            bind(at(path))


def test_another_kind_of_socket_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ConfigError, match="another program's socket"):
            bind(at(path))
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_another_file_is_not(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("kept")
        case "folder":
            path.mkdir()
        case "link":
            target = path.with_name("dead.sock")
            leave_dead(target)
            path.symlink_to(target)
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(ConfigError, match="no socket"):
        bind(at(path))
    assert path.is_symlink() or path.exists()


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it first"):
        bind(at(tmp_path / "none" / "md.sock"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="make it first"):
        bind(at(tmp_path / "file" / "md.sock"))


def test_closing_removes_its_own_file_only(path: Path) -> None:
    first = bind(at(path))
    path.unlink()
    with bind(at(path)) as second:
        first.close()
        reach(second)
    assert not path.exists()


def test_closing_twice_or_without_a_file_is_fine(path: Path) -> None:
    listener = bind(at(path))
    path.unlink()
    listener.close()
    listener.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        listener.sock.getsockname()
    assert caught.value.errno == errno.EBADF


def test_of_many_that_find_a_dead_socket_one_replaces_it(path: Path) -> None:
    leave_dead(path)
    barrier = threading.Barrier(8)
    bound: list[Listener] = []
    refused: list[ConfigError] = []

    def try_it() -> None:
        barrier.wait(DEADLINE)
        try:
            bound.append(bind(at(path)))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert (len(bound), len(refused)) == (1, 7)
    with bound[0] as listener:
        for _ in range(8):
            reach(listener)
