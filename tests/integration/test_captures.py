"""Real traffic, from servers of several makers, through a manager to four workers: every byte of
every message, in order.

The servers: the `websockets` package, Debian's `websocketd`, and `ringcast.broker.exchange.server`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import pytest
from websockets.sync.server import ServerConnection, serve

from ringcast import Config, Manager, attach, shm
from ringcast.broker.exchange.captures import Record, extend_digest, read
from ringcast.broker.exchange.server import Server
from tests.conftest import DEADLINE, Processes, eventually

from .manager import HOST, Authority, listen, quick, url_of

CAPTURES: Final = Path(__file__).parents[3] / "shared" / "captures"
MOST: Final = 20_000
WORKERS: Final = 4
RING: Final = {"slots": 4096, "capacity": 4 << 20}
"""Small enough to start over again and again; its longest message is 1 MiB."""

ALL: Final = sorted(p.name.partition(".")[0] for p in CAPTURES.glob("*.tsv.gz"))
SOME: Final = ("binance-usdm", "bitmex", "coinbase", "upbit-binary")
"""Captures that `websockets` sends in the default run: many messages, the longest ones, other text,
and binary ones."""

needs_captures: Final = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="the captures are not here"
)


@dataclass(frozen=True, slots=True)
class Tally:
    """What was sent, or what a worker got.

    Attributes:
        texts, binaries: how many of each.
        payload_bytes: all of them.
        digest: `captures.extend_digest` over them.
        lost: as the worker counts them.
    """

    texts: int = 0
    binaries: int = 0
    payload_bytes: int = 0
    digest: int = 0
    lost: int = 0

    def __add__(self, message: tuple[bool, bytes | memoryview]) -> Tally:
        """One message more."""
        is_text, payload = message
        return Tally(
            self.texts + is_text,
            self.binaries + (not is_text),
            self.payload_bytes + len(payload),
            extend_digest(self.digest, is_text, payload),
            self.lost,
        )


def received(capture: str, most: int | None = MOST) -> Iterator[Record]:
    """What a client got in that capture."""
    records = (r for r in read(CAPTURES / f"{capture}.tsv.gz") if r.kind != "sent")
    return itertools.islice(records, most)


def tally(records: Iterator[Record]) -> Tally:
    """What is to arrive."""
    total = Tally()
    for record in records:
        total += (record.kind == "text", record.payload)
    return total


# ---- workers -------------------------------------------------------------------------------


def count(name: str, pipe: Connection) -> None:
    """A process: a worker that reads to the end, and tells what it got."""
    got = Tally()
    with attach(name) as feed:
        pipe.send(None)
        for message in feed:
            got += (message.kind == shm.Kind.TEXT, message.payload)
            assert message.gap == 0
        pipe.send((got.texts, got.binaries, got.payload_bytes, got.digest, feed.lost))


class Workers:
    """Four of them; attached when this returns."""

    def __init__(self, name: str, processes: Processes) -> None:
        self._pipes = []
        self._processes = processes
        self._started: list[BaseProcess] = []
        for _ in range(WORKERS):
            ours, theirs = Pipe()
            self._started.append(processes.start(count, name, theirs))
            self._pipes.append(ours)
        for pipe in self._pipes:
            assert pipe.poll(DEADLINE)
            pipe.recv()

    def tallies(self) -> list[Tally]:
        """What each got, to the end of the ring."""
        found = []
        for pipe in self._pipes:
            assert pipe.poll(DEADLINE), "a worker does not come to an end"
            found.append(Tally(*pipe.recv()))
        self._processes.join(*self._started)
        return found


def once(name: str, url: str, **options: object) -> Config:
    """For one connection only."""
    return quick(name, url, reconnect=False, drain_timeout=DEADLINE, **RING, **options)


# ---- websockets ----------------------------------------------------------------------------


def say_with_websockets(listener: socket.socket, capture: str) -> None:
    """A process: a server that sends a capture to each client, a call for each message; until it is
    killed."""

    def handler(connection: ServerConnection) -> None:
        for record in received(capture):
            connection.send(record.payload, text=record.kind == "text")
        connection.close()

    with serve(handler, sock=listener, compression=None) as server:
        server.serve_forever()


@needs_captures
@pytest.mark.parametrize(
    "capture", [*SOME, *(pytest.param(c, marks=pytest.mark.stress) for c in ALL if c not in SOME)]
)
def test_captures_said_by_websockets(name: str, processes: Processes, capture: str) -> None:
    listener = listen()
    with listener, Manager(once(name, url_of(listener))) as manager:
        workers = Workers(name, processes)
        server = processes.start(say_with_websockets, listener, capture)
        listener.close()
        expected = tally(received(capture))
        assert workers.tallies() == [expected] * WORKERS
        assert manager.join(DEADLINE) == 0
        processes.kill(server)


@needs_captures
def test_the_captures_have_what_they_are_here_for() -> None:
    assert max(len(r.payload) for r in received("bitmex")) > 700_000
    assert tally(received("upbit-binary")).binaries > 100
    assert tally(received("binance-spot")).texts == MOST


# ---- websocketd ----------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody has at this moment."""
    with listen() as listener:
        port: int = listener.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@needs_captures
@pytest.mark.skipif(
    shutil.which("websocketd") is None, reason="the program websocketd is not installed"
)
@pytest.mark.parametrize("capture", ["coinbase", "upbit-binary"])
def test_captures_said_by_websocketd(
    name: str, processes: Processes, tmp_path: Path, capture: str
) -> None:
    """It sends each line as a text; or, with --binary, what it reads at a time: the bytes are
    compared, then."""
    is_binary = capture == "upbit-binary"
    end = b"" if is_binary else b"\n"
    lines, go = tmp_path / "lines", tmp_path / "go"
    lines.write_bytes(b"".join(r.payload + end for r in received(capture)))
    os.mkfifo(go)
    port = free_port()
    options = ["--binary"] if is_binary else []
    command = ["sh", "-c", 'read -r _ < "$1"; cat "$2"', "sh", str(go), str(lines)]
    with subprocess.Popen(
        ["websocketd", f"--port={port}", f"--address={HOST}", *options, *command],  # noqa: S607 - the system's
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            eventually(lambda: is_listening(port), "websocketd listens")
            with Manager(once(name, f"ws://{HOST}:{port}/")) as manager:
                workers = Workers(name, processes)
                go.write_text("go\n", encoding="ascii")
                tallies = workers.tallies()
                manager.join(DEADLINE)  # it drops the socket without a close: an error, rightly
        finally:
            server.kill()
    expected = tally(received(capture))
    if is_binary:
        assert {(t.texts, t.payload_bytes, t.lost) for t in tallies} == {
            (0, expected.payload_bytes, 0)
        }
        assert len({t.digest for t in tallies}) == 1
    else:
        assert tallies == [expected] * WORKERS


# ---- broker.server -------------------------------------------------------------------------


def say_with_our_server(capture: str, certificate: Path | None, pipe: Connection) -> None:
    """A process: `exchange.server.Server`, on a word from the pipe, until the next word."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    async def serve() -> None:
        def source() -> Iterator[tuple[int, bool, bytes]]:
            return ((0, r.kind == "text", r.payload) for r in received(capture))

        async with Server(source, ssl=context, hold=True) as server:
            pipe.send(server.url)
            await asyncio.to_thread(pipe.recv)
            server.release()
            await asyncio.to_thread(pipe.recv)

    asyncio.run(serve())


@needs_captures
@pytest.mark.parametrize(
    ("tls", "capture"),
    [
        pytest.param(False, "binance-usdm", id="plain-binance-usdm"),
        pytest.param(True, "bitmex", id="tls-bitmex"),
        pytest.param(True, "huobi-gzip", id="tls-huobi-gzip"),
        pytest.param(False, "bitmex", id="plain-bitmex", marks=pytest.mark.stress),
        pytest.param(False, "huobi-gzip", id="plain-huobi-gzip", marks=pytest.mark.stress),
        pytest.param(True, "binance-usdm", id="tls-binance-usdm", marks=pytest.mark.stress),
    ],
)
def test_captures_said_by_our_server(
    name: str, processes: Processes, tmp_path: Path, capture: str, tls: bool
) -> None:
    authority = Authority(tmp_path / "tls") if tls else None
    certificate = authority.issue(HOST) if authority is not None else None
    ours, theirs = Pipe()
    server = processes.start(say_with_our_server, capture, certificate, theirs)
    assert ours.poll(DEADLINE)
    ca = authority.certificate if authority is not None else None
    with Manager(once(name, ours.recv(), ca=ca)) as manager:
        workers = Workers(name, processes)
        ours.send("go")
        expected = tally(received(capture))
        assert workers.tallies() == [expected] * WORKERS
        assert manager.join(DEADLINE) == 0
        ours.send("end")
        processes.join(server)
