"""A gateway that runs with its manager: it serves, comes back, and ends when its manager does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, unix_connect

from ringcast import Manager, shm
from tests.conftest import DEADLINE, eventually

from .manager import Peer, is_running, kill, quick, running, sending, serving

pytestmark = pytest.mark.usefixtures("nothing_left")

GOING_AWAY: Final = 1001
FIRST_PAUSE: Final = 0.2
"""Seconds, at most, before a gateway that has ended is started again. The bound doubles."""
HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
"""Signals whose handlers are the program's."""


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the gateway listens: short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="rc") as folder:
        yield Path(folder) / "md.sock"


@pytest.fixture
def nothing_left(path: Path) -> Iterator[None]:
    """No socket's file stays."""
    yield
    assert not path.exists()


def echoing(sock: socket.socket) -> None:
    """A script: sends back what it gets."""
    peer = Peer(sock)
    while True:
        peer.send(*peer.receive_messages(1))


def connected(path: Path, query: str = "") -> ClientConnection:
    """A client, as soon as the gateway serves the ring."""

    def connect() -> ClientConnection | None:
        with contextlib.suppress(OSError, EOFError, InvalidHandshake):
            return unix_connect(str(path), f"ws://localhost/{query}", open_timeout=DEADLINE)
        return None

    client: ClientConnection = eventually(connect, "the gateway serves clients")
    return client


def gateway_pid(name: str) -> int | None:
    """The process of the gateway that is attached, if one is."""
    readers = shm.status(name).readers
    return next((r.pid for r in readers if r.label == "gateway" and r.state == "active"), None)


def ended(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the log says of each end of a gateway."""
    records = [record for record in caplog.records if hasattr(record, "fields")]
    return [record.fields for record in records if record.event == "gateway ended"]  # type: ignore[attr-defined]


def test_ctrl_c_ends_manager_and_gateway_in_order(name: str, path: Path) -> None:
    with serving(echoing) as server:
        command = [sys.executable, "-m", "ringcast", "serve", "--name", name, "--url", server.url]
        command += ["--listen", f"unix:{path}", "--listen", "127.0.0.1:0", "--log", "json"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, process_group=0) as process:
            try:
                with connected(path) as client:
                    client.send("hello")
                    assert client.recv(DEADLINE) == "hello"
                    gateway = gateway_pid(name)
                    assert gateway is not None
                    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                    with pytest.raises(ConnectionClosed) as closed:
                        client.recv(DEADLINE)
                    assert closed.value.rcvd is not None
                    assert closed.value.rcvd.code == GOING_AWAY
                log = process.communicate(timeout=DEADLINE)[1].splitlines()
            finally:
                process.kill()
    assert process.returncode == 0
    assert not is_running(gateway)
    events = [json.loads(line)["event"] for line in log]  # the gateway's are JSON, too
    assert "gateway started" in events
    assert sum(event.startswith(f"serves ring {name} at ") for event in events) == 2


def test_a_killed_gateway_comes_back(
    name: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = [*map(signal.getsignal, HANDLED)]
    caplog.set_level(logging.INFO, "ringcast")
    with (
        serving(sending("hello")) as server,
        running(quick(name, server.url, listen=[f"unix:{path}"])),
    ):
        with connected(path, "?start=oldest") as client:
            assert client.recv(DEADLINE) == "hello"
            killed = gateway_pid(name)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                client.recv(DEADLINE)
        with connected(path, "?start=oldest") as client:
            assert client.recv(DEADLINE) == "hello"
            second = gateway_pid(name)
        assert not Path(f"/proc/{killed}").exists()  # not even as a zombie
    (end,) = ended(caplog)
    assert (end["ring"], end["exit_code"]) == (name, -signal.SIGKILL)
    assert 0 <= end["restart_in"] <= FIRST_PAUSE
    assert not Path(f"/proc/{second}").exists()
    assert handlers == [*map(signal.getsignal, HANDLED)]


def test_a_gateway_ends_when_its_manager_is_killed(name: str, path: Path) -> None:
    with (
        serving(sending("hello")) as server,
        Manager(quick(name, server.url, listen=[f"unix:{path}"])) as manager,
    ):
        with connected(path, "?start=oldest") as client:
            assert client.recv(DEADLINE) == "hello"
            gateway = gateway_pid(name)
            assert gateway is not None
            kill(manager)
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(DEADLINE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == GOING_AWAY
        eventually(lambda: not is_running(gateway), "the gateway ends")
    shm.unlink(name)


def test_a_manager_works_on_while_an_address_is_in_use(
    name: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(sending("hello")) as server, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with running(quick(name, server.url, listen=[f"unix:{path}"])):
            eventually(lambda: len(ended(caplog)) >= 2, "the gateway is tried again")
            assert shm.status(name).sequence > 0
            other.close()
            with connected(path, "?start=oldest") as client:
                assert client.recv(DEADLINE) == "hello"
    first, second, *_ = ended(caplog)
    for end in (first, second):
        assert (end["ring"], end["exit_code"]) == (name, 1)
        assert end["error"].startswith(f"can't listen on 'unix:{path}': another gateway listens")
    assert first["restart_in"] <= FIRST_PAUSE
    assert second["restart_in"] <= 2 * FIRST_PAUSE


def test_a_gateway_that_does_not_end_is_killed(name: str, path: Path) -> None:
    with running(quick(name, "ws://127.0.0.1:1/", listen=[f"unix:{path}"])):
        gateway = eventually(lambda: gateway_pid(name), "the gateway attaches")
        os.kill(gateway, signal.SIGSTOP)
        # The block's end stops the manager at once: it does not wait for long.
    assert not Path(f"/proc/{gateway}").exists()
    path.unlink()  # the killed one could not
