"""Clients of four makers at once behind one gateway: each gets, byte by byte, what a connection of
its own would have had from the exchange."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import astuple, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import picows
import pytest
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed

from ringcast import Manager
from tests.conftest import DEADLINE, Processes, eventually

from .gateway import Gateway, gateway_of
from .test_captures import (
    ALL,
    Tally,
    needs_captures,
    once,
    received,
    say_with_our_server,
    tally,
)

EACH: Final = 4
"""Clients of a maker, half of them over each kind of socket."""
TARGET: Final = "/ws/anything?policy=block&label=test"
RESTART: Final = 1012
"""As the exchange's connection has ended."""
SOME: Final = ("bitmex", "upbit-binary")
"""Captures of the default run: the longest messages, and binary ones."""


class Ended(NamedTuple):
    """What a client got, and the code of its end."""

    tally: Tally
    code: int | None


Opened = Callable[[], None]
"""Called by a client that is connected."""
Make = Callable[[str, str | None, Opened], Coroutine[Any, Any, Ended]]
"""A client: of this URL, over the Unix socket of this path if there is one."""


# ---- the makers ----------------------------------------------------------------------------


async def with_websockets(url: str, path: str | None, opened: Opened) -> Ended:
    """As anybody uses it: it offers to compress."""
    opening = (
        connect(url, max_size=None) if path is None else unix_connect(path, url, max_size=None)
    )
    async with opening as connection:
        opened()
        return await _read(connection)


async def _read(connection: ClientConnection) -> Ended:
    got = Tally()
    try:
        while True:
            message = await connection.recv()
            if isinstance(message, str):
                got += (True, message.encode())
            else:
                got += (False, message)
    except ConnectionClosed as closed:
        return Ended(got, closed.rcvd.code if closed.rcvd is not None else None)


async def with_aiohttp(url: str, path: str | None, opened: Opened) -> Ended:
    connector = aiohttp.UnixConnector(path) if path is not None else aiohttp.TCPConnector()
    got = Tally()
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url, max_msg_size=0) as connection,
    ):
        opened()
        async for message in connection:
            is_text = message.type is aiohttp.WSMsgType.TEXT
            got += (is_text, message.data.encode() if is_text else message.data)
        return Ended(got, connection.close_code)


class _Listener(picows.WSListener):
    def __init__(self, opened: Opened) -> None:
        self.got = Tally()
        self.code: int | None = None
        self._opened = opened

    def on_ws_connected(self, _transport: Any) -> None:
        self._opened()

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self.code = int(frame.get_close_code())
            transport.send_close(self.code)
            transport.disconnect()
        elif frame.msg_type in (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY):
            assert frame.fin
            is_text = frame.msg_type == picows.WSMsgType.TEXT
            self.got += (is_text, frame.get_payload_as_bytes())


async def with_picows(url: str, _path: str | None, opened: Opened) -> Ended:
    """Over TCP: it has no Unix sockets."""
    listener = _Listener(opened)
    transport, _ = await picows.ws_connect(lambda: listener, url)
    await transport.wait_disconnected()
    return Ended(listener.got, listener.code)


MAKERS: Final[dict[str, Make]] = {
    "websockets": with_websockets,
    "aiohttp": with_aiohttp,
    "picows": with_picows,
}


def run_clients(maker: str, url: str, path: str, pipe: Connection) -> None:
    """A process: the clients of one maker. It says when all are connected, and what each got."""
    opened = 0

    def count() -> None:
        nonlocal opened
        opened += 1
        if opened == EACH:
            pipe.send(None)

    async def run() -> list[Ended]:
        make = MAKERS[maker]
        paths = [path if i % 2 else None for i in range(EACH)]
        return await asyncio.gather(*(make(url, each, count) for each in paths))

    pipe.send([(astuple(ended.tally), ended.code) for ended in asyncio.run(run())])


@pytest.fixture(scope="session")
def lws_client(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The program with libwebsockets; None without it, or without a compiler."""
    pkg_config, compiler = shutil.which("pkg-config"), shutil.which("gcc")
    if pkg_config is None or compiler is None:
        return None
    found = subprocess.run(
        [pkg_config, "--cflags", "--libs", "libwebsockets"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if found.returncode != 0:
        return None
    program = tmp_path_factory.mktemp("lws") / "lws_client"
    source = Path(__file__).with_name("lws_client.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, str(source), "-o", str(program), *found.stdout.split()]
    subprocess.run(command, check=True, timeout=DEADLINE)
    return program


# ---- all at once ---------------------------------------------------------------------------


class Crowd:
    """All clients; connected when this returns."""

    def __init__(self, gateway: Gateway, processes: Processes, lws_client: Path | None) -> None:
        self._pipes = []
        self._program: subprocess.Popen[str] | None = None
        url = f"ws://{gateway.host}{TARGET}"
        for maker in MAKERS:
            ours, theirs = Pipe()
            processes.start(run_clients, maker, url, str(gateway.path), theirs)
            self._pipes.append(ours)
        if lws_client is not None:
            command = [str(lws_client), str(gateway.path), TARGET, str(EACH)]
            self._program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._program.stdout is not None
            assert self._program.stdout.readline() == "open\n"
        for pipe in self._pipes:
            assert pipe.poll(DEADLINE), "a client does not connect"
            pipe.recv()
        clients = EACH * (len(MAKERS) + (lws_client is not None))
        eventually(
            lambda: sum(" serves " in line and " from " in line for line in gateway.log) >= clients,
            "all are served",
        )

    def ends(self) -> list[Ended]:
        """What each got, to the end of the ring."""
        found = []
        for pipe in self._pipes:
            assert pipe.poll(DEADLINE), "a client does not come to an end"
            found += [Ended(Tally(*numbers), code) for numbers, code in pipe.recv()]
        if self._program is not None:
            said, _ = self._program.communicate(timeout=DEADLINE)
            for line in said.splitlines():
                found.append(Ended(Tally(*map(int, line.split())), RESTART))  # it says no code
        return found

    def close(self) -> None:
        """End what has not ended."""
        for pipe in self._pipes:
            pipe.close()
        if self._program is not None:
            self._program.kill()
            self._program.wait(DEADLINE)
            assert self._program.stdout is not None
            self._program.stdout.close()


@needs_captures
@pytest.mark.parametrize(
    "capture",
    [*SOME, *(pytest.param(c, marks=pytest.mark.stress) for c in ALL if c not in SOME)],
)
def test_captures_to_clients_of_four_makers(
    name: str, processes: Processes, tmp_path: Path, lws_client: Path | None, capture: str
) -> None:
    ours, theirs = Pipe()
    server = processes.start(say_with_our_server, capture, None, theirs)
    assert ours.poll(DEADLINE)
    with (
        Manager(replace(once(name, ours.recv()), demote_after=None)) as manager,
        gateway_of(name, tmp_path, f"--hold={DEADLINE}") as gateway,
    ):
        gateway.attached()
        crowd = Crowd(gateway, processes, lws_client)
        try:
            ours.send("go")
            ends = crowd.ends()
        finally:
            crowd.close()
        expected = Ended(tally(received(capture)), RESTART)
        assert ends == [expected] * len(ends)
        assert manager.join(DEADLINE) == 0
        ours.send("end")
        processes.join(server)
    ours.close()
    if lws_client is None:
        pytest.skip("the other makers passed: there is no libwebsockets, or no gcc and pkg-config")
    assert len(ends) == EACH * (len(MAKERS) + 1)
