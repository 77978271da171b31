"""The programs of docs/examples/c/ and the blocks of C in the docs, beside Python.

Each is compiled, the programs in every build, and run.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ringcast import shm
from ringcast.broker.gateway.queues import QueueOptions, QueueWriter
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import DEADLINE, eventually, reader_status

from .conftest import EVERY_BUILD, against_interface
from .toolchain import (
    OPTIONS,
    PLAIN,
    REPORT,
    Build,
    Toolchain,
    find,
    missing,
    run,
)

DOCS: Final = Path(__file__).parents[2] / "docs"
EXAMPLES: Final = DOCS / "examples" / "c"
BLOCK: Final = re.compile(r"^```c\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINES_MAX: Final = 50
"""Of worker.c, and of member.c."""


@pytest.fixture(scope="session")
def libwebsockets() -> list[str]:
    """What a compiler needs for it."""
    done = run([find("pkg-config"), "--cflags", "--libs", "libwebsockets"])
    if done.returncode != 0:
        missing("libwebsockets (Debian: libwebsockets-dev)")
    return done.stdout.split()


# ---- compiling -----------------------------------------------------------------------------


@pytest.fixture(params=EVERY_BUILD)
def build(request: pytest.FixtureRequest) -> tuple[str, Build]:
    """A compiler, and what it builds."""
    pair: tuple[str, Build] = request.param
    return pair


@pytest.mark.parametrize(
    "source",
    ["gateway_client.c", "worker.c", "worker.cpp", "member.c", "queue_reader.c", "republish.c"],
)
def test_every_example_compiles(
    toolchain: Toolchain, request: pytest.FixtureRequest, source: str, build: tuple[str, Build]
) -> None:
    uses_it = source in {"gateway_client.c", "republish.c"}
    libraries = request.getfixturevalue("libwebsockets") if uses_it else []
    assert against_interface(toolchain, EXAMPLES / source, *build, *libraries)


def test_there_are_no_other_examples() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir()) == [
        "gateway_client.c",
        "member.c",
        "queue_reader.c",
        "republish.c",
        "ringcast_record.h",
        "worker.c",
        "worker.cpp",
    ]


@pytest.mark.parametrize("source", ["worker.c", "member.c"])
def test_a_worker_is_short(source: str) -> None:
    assert len((EXAMPLES / source).read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def blocks() -> list[str]:
    """Every block of C in the docs that is a program with the interface."""
    pages = [page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))]
    found = [block for page in pages for block in BLOCK.findall(page)]
    return [block for block in found if '#include "ringcast.h"' in block]


@pytest.fixture(params=range(len(blocks())))
def block(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> Path:
    """One of them as a file, with a ring of the test's own."""
    path = tmp_path / f"{name}.c"
    path.write_text(blocks()[request.param].replace('"md"', f'"{name}"'), encoding="utf-8")
    return path


def topics_of(name: str) -> tuple[str, ...] | None:
    """What the reader in slot 0 wants."""
    status = reader_status(name)
    return None if status is None else status.topics


def test_blocks_of_the_docs(
    toolchain: Toolchain, build: tuple[str, Build], block: Path, name: str, tmp_path: Path
) -> None:
    """Each reads, chooses or sends, beside a ring and an uplink."""
    command = against_interface(toolchain, block, *build)
    with (
        Writer.create(name, slots=8, capacity=1024, max_readers=2) as writer,
        Receiver.create(name, max_senders=2, lane_bytes=4096) as receiver,
        running(command, tmp_path) as process,
    ):
        text = block.read_text(encoding="utf-8")
        if "ringcast_subscribe(" in text:
            wanted = ("trade:BTC-USD", "best:*", "trade:ETH-USD")
            eventually(lambda: topics_of(name) == wanted, "it has subscribed")
            for topic in ("trade:BTC-USD", "trade:XRP-USD", "best:XRP-USD", "trade:ETH-USD"):
                writer.publish(b"hello", topic=writer.topic(topic))
            writer.close()
            assert output(process) == "0 trade:BTC-USD\n2 best:XRP-USD\n3 trade:ETH-USD\n"
            return
        writer.publish(b"hello")
        writer.close()
        if "ringcast_send(" in text:
            envelope = receiver.read(timeout=DEADLINE)
            assert envelope is not None
            assert envelope.text() == '{"op":"ping"}'
            assert output(process) == ""
        else:
            assert output(process) == "0 hello\n"


# ---- running -------------------------------------------------------------------------------


@contextmanager
def running(command: list[str], where: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A program that ends by itself, well, and with nothing for a sanitizer to report."""
    errors = where / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*command, *more],
            env=os.environ | OPTIONS,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        yield process
        process.wait(DEADLINE)
        told = errors.read_text(encoding="utf-8")
        assert process.returncode == 0, told
        assert not REPORT.search(told), told
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


def output(process: subprocess.Popen[str]) -> str:
    """What it prints until its end."""
    printed, _ = process.communicate(timeout=DEADLINE)
    return printed


def await_active(name: str) -> None:
    """Return when a reader reads."""

    def is_active() -> bool:
        status = reader_status(name)
        return status is not None and status.state == "active"

    eventually(is_active, "the worker is attached")


@pytest.mark.parametrize("source", ["worker.c", "worker.cpp"])
def test_a_worker(
    toolchain: Toolchain, build: tuple[str, Build], name: str, tmp_path: Path, source: str
) -> None:
    """It sends, reads, goes on after an eviction where it was, and ends with the ring."""
    command = against_interface(toolchain, EXAMPLES / source, *build)
    with (
        Writer.create(name, slots=16, capacity=4096, max_readers=1) as writer,
        Receiver.create(name, max_senders=1, lane_bytes=4096) as receiver,
        running(command, tmp_path, name, "hello") as process,
    ):
        envelope = receiver.read(timeout=DEADLINE)
        assert envelope is not None
        assert (envelope.text(), envelope.kind) == ("hello", shm.Kind.TEXT)
        await_active(name)
        writer.publish_many([b"a", b"b"])
        eventually(lambda: shm.status(name).readers[0].cursor == 2, "both are read")
        writer.evict(0)
        writer.publish(b"c")
        await_active(name)
        writer.close()
        lines = output(process).splitlines()
        assert lines == ["0 (0 missed) a", "1 (0 missed) b", "2 (0 missed) c"]


@pytest.mark.parametrize("source", ["worker.c", "worker.cpp"])
def test_a_worker_without_a_ring(toolchain: Toolchain, name: str, source: str) -> None:
    done = run([*against_interface(toolchain, EXAMPLES / source, "gcc", PLAIN), name])
    assert done.returncode == 1
    assert f"there is no ring '{name}'" in done.stdout


def test_members(toolchain: Toolchain, build: tuple[str, Build], name: str, tmp_path: Path) -> None:
    """Two share out; what one had that was evicted or killed goes to the other."""
    command = against_interface(toolchain, EXAMPLES / "member.c", *build)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    with (
        Writer.create(name, slots=16, capacity=4096, max_readers=3) as writer,
        running(command, folders[0], name, "g") as first,
        running(command, folders[1], name, "g") as second,
    ):
        eventually(lambda: len(shm.status(name).readers) == 2, "both are attached")
        await_active(name)
        for n in range(100):
            writer.publish(b"%d" % n, timeout=DEADLINE)
            if n in (30, 60):
                writer.evict(n // 30 - 1)
        writer.close()
        lines = [output(process).splitlines() for process in (first, second)]
    handled = sorted(int(line.split()[0]) for line in lines[0] + lines[1])
    assert sorted(set(handled)) == list(range(100))
    assert len(handled) <= 102  # one that was evicted may have handled what it had
    for line in lines[0] + lines[1]:
        sequence, _, _, text = line.split()
        assert text == sequence


@pytest.mark.parametrize("arguments", [(), ("only-a-ring",)])
def test_a_member_that_is_told_too_little(toolchain: Toolchain, arguments: tuple[str, ...]) -> None:
    command = against_interface(toolchain, EXAMPLES / "member.c", "gcc", PLAIN)
    done = run([*command, *arguments])
    assert (done.returncode, done.stdout) == (2, "usage: member NAME GROUP\n")


def test_a_queue_reader(
    toolchain: Toolchain, build: tuple[str, Build], name: str, tmp_path: Path
) -> None:
    """It prints short messages and long ones, says what was missed, and ends with the queue."""
    command = against_interface(toolchain, EXAMPLES / "queue_reader.c", *build)
    with (
        Writer.create(name, slots=16, capacity=1 << 16, max_readers=1) as writer,
        Reader.attach(name) as reader,
    ):
        queue = QueueWriter.create(
            name,
            "c",
            instance=1,
            topic_name=reader.topic_name,
            options=QueueOptions(depth=2, message_size=2048),
        )
        for payload in (b"a", b"y" * 1900, b"lost", b"x" * 2500):
            writer.publish(payload, topic=writer.topic("t"))
        with reader.batch(timeout=0) as batch:
            assert queue.offer(batch, start=0) == 4
        with running(command, tmp_path, name, "c") as process:
            eventually(queue.flush, "it reads")
            writer.publish(b"x" * 2500)
            with reader.batch(timeout=0) as batch:
                queue.offer(batch)
            eventually(queue.flush, "it reads")
            eventually(lambda: select.select([], [queue], [], 0)[1], "there is room for the end")
            queue.close("over")
            lines = output(process).splitlines()
    assert lines[:2] == ["0 (0 missed) a", f"1 (0 missed) {'y' * 1900}"]
    missed = sum(int(line.split("(")[1].split()[0]) for line in lines if "missed)" in line)
    assert (missed, lines[-1]) == (2, "(0 missed)")
    assert f"4 (0 missed) {'x' * 2500}" in lines


def test_a_queue_reader_without_a_queue(toolchain: Toolchain, name: str) -> None:
    command = against_interface(toolchain, EXAMPLES / "queue_reader.c", "gcc", PLAIN)
    done = run([*command, name, "c"])
    assert (done.returncode, done.stdout) == (1, f"/rc.{name}.q.c: No such file or directory\n")
    assert run(command).returncode == 2


# ---- a client of the gateway -----------------------------------------------------------------


@contextmanager
def serving(name: str, path: Path) -> Iterator[None]:
    """A gateway of a ring on a Unix socket; it accepts clients and reads the ring."""
    command = [sys.executable, "-m", "ringcast", "gateway", name, "--listen", f"unix:{path}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            await_active(name)
            yield
        finally:
            process.kill()


def test_a_client_of_a_gateway(
    toolchain: Toolchain,
    build: tuple[str, Build],
    libwebsockets: list[str],
    name: str,
    tmp_path: Path,
) -> None:
    """It sends, prints short and long messages, and ends with the ring."""
    source, path = EXAMPLES / "gateway_client.c", tmp_path / "md.sock"
    command = against_interface(toolchain, source, *build, *libwebsockets)
    with (
        Writer.create(name, slots=16, capacity=1 << 16, max_readers=1) as writer,
        Receiver.create(name, max_senders=1, lane_bytes=4096) as receiver,
        serving(name, path),
        running(command, tmp_path, str(path), "/?any=thing", "hello") as process,
    ):
        envelope = receiver.read(timeout=DEADLINE)
        assert envelope is not None
        assert (envelope.text(), envelope.kind) == ("hello", shm.Kind.TEXT)
        writer.publish(b"short")
        writer.publish(b"x" * 10_000)
        writer.close()
        assert output(process) == f"short\n{'x' * 10_000}\n"
        assert "closed: 1001 the manager has stopped" in (tmp_path / "errors").read_text("utf-8")


def test_a_client_without_a_gateway(
    toolchain: Toolchain, libwebsockets: list[str], tmp_path: Path
) -> None:
    source = EXAMPLES / "gateway_client.c"
    command = against_interface(toolchain, source, "gcc", PLAIN, *libwebsockets)
    done = run([*command, str(tmp_path / "md.sock")])
    assert (done.returncode, done.stdout.split(" ")[:2]) == (1, ["can't", "connect"])
    assert run(command).returncode == 2


# ---- republish -----------------------------------------------------------------------------

REPUBLISHED: Final = 1500
A_BURST: Final = 100


@pytest.fixture
def republish(
    toolchain: Toolchain, build: tuple[str, Build], libwebsockets: list[str]
) -> list[str]:
    """How to start it."""
    return against_interface(toolchain, EXAMPLES / "republish.c", *build, *libwebsockets)


def address_of(process: subprocess.Popen[str]) -> str:
    """Where it listens, which is what it prints first."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def client(url: str) -> Iterator[ClientConnection]:
    with connect(url, compression=None, max_size=None, open_timeout=DEADLINE) as connection:
        yield connection


def received(connection: ClientConnection, count: int) -> list[str | bytes]:
    return [connection.recv(timeout=DEADLINE) for _ in range(count)]


def check_closed(connection: ClientConnection) -> None:
    """The server goes away, and says so."""
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv(timeout=DEADLINE)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1001


def test_republish(republish: list[str], name: str, tmp_path: Path) -> None:
    """Each client gets each message, text as text, and the end after the last one."""
    texts: list[str | bytes] = ["", "ä", b"", b"\0\xff", "x" * 70_000]
    with (
        Writer.create(name, slots=1024, capacity=1 << 20, max_readers=1) as writer,
        running(republish, tmp_path, name, "0") as process,
    ):
        url = address_of(process)
        with client(url) as first, client(url) as second:
            for text in texts:
                if isinstance(text, str):
                    writer.publish(text.encode(), kind=shm.Kind.TEXT, timeout=DEADLINE)
                else:
                    writer.publish(text, timeout=DEADLINE)
            assert received(first, len(texts)) == texts
            with client(url) as late:
                writer.publish(b"late", timeout=DEADLINE)
                writer.close()
                assert received(second, len(texts)) == texts
                for connection in (first, second, late):
                    assert received(connection, 1) == [b"late"]
                    check_closed(connection)


def stuck_client(url: str) -> socket.socket:
    """A client that reads no more than the answer to its handshake."""
    host, _, port = url.removeprefix("ws://").partition(":")
    stuck = socket.socket()
    stuck.settimeout(DEADLINE)
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.connect((host, int(port)))
    stuck.sendall(
        f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert stuck.recv(12) == b"HTTP/1.1 101"
    return stuck


def drain(stuck: socket.socket) -> int:
    """Bytes to the end of a connection that the other side gave up."""
    total = 0
    with contextlib.suppress(ConnectionResetError):
        while more := stuck.recv(1 << 16):
            total += len(more)
    return total


def test_a_slow_client_holds_nobody_up(republish: list[str], name: str, tmp_path: Path) -> None:
    """Neither the ring, whose writer never waits for long, nor another client."""
    payload = b"x" * 60_000
    with (
        Writer.create(name, slots=256, capacity=1 << 22, max_readers=1) as writer,
        running(republish, tmp_path, name, "0") as process,
    ):
        url = address_of(process)
        with client(url) as fast, contextlib.closing(stuck_client(url)) as stuck:
            for _ in range(REPUBLISHED // A_BURST):
                for _ in range(A_BURST):
                    writer.publish(payload, timeout=DEADLINE)
                assert received(fast, A_BURST) == [payload] * A_BURST
            assert drain(stuck) < REPUBLISHED * len(payload) / 2
            process.send_signal(signal.SIGTERM)
            check_closed(fast)
        assert [reader.label for reader in shm.status(name).readers] in ([], ["republish"])


def test_republish_without_a_ring(
    toolchain: Toolchain, libwebsockets: list[str], name: str
) -> None:
    source = EXAMPLES / "republish.c"
    command = against_interface(toolchain, source, "gcc", PLAIN, *libwebsockets)
    done = run([*command, name, "0"])
    assert done.returncode == 1
    assert f"there is no ring '{name}'" in done.stdout
