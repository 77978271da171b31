"""The server sends the same to each client, whole, in order, when it is due, and ends cleanly."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import websocket
from typer.testing import CliRunner, Result
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ringcast.broker.cli import app
from ringcast.broker.exchange.captures import Record, extend_digest, read
from ringcast.broker.exchange.server import Item, Server, Tally, at_rate, repeated, timed
from tests.conftest import DEADLINE

from .test_captures import CAPTURES

T = TypeVar("T")
Message = tuple[bool, bytes]

SIZES = (0, 1, 125, 126, 127, 65_535, 65_536, 100_000)
MESSAGES: list[Message] = [
    *((True, b"x" * size) for size in SIZES),
    *((False, bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)) for size in SIZES),
    (True, "é".encode()),
]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """asyncio.run with a deadline."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE):
            return await coroutine

    return asyncio.run(bounded())


def at_once(messages: Iterable[Message]) -> Iterator[Item]:
    """A flood of these."""
    return ((0, is_text, payload) for is_text, payload in messages)


def digest(messages: Sequence[Message]) -> Tally:
    """What a server that sent just these should report."""
    value = 0
    for is_text, payload in messages:
        value = extend_digest(value, is_text, payload)
    return Tally(len(messages), sum(len(payload) for _, payload in messages), value)


@contextmanager
def opened(url: str, **options: Any) -> Iterator[ClientConnection]:
    """A client by `websockets`. It queues without bound: with a full queue it would not see the
    server's close, and wait for its own time-out."""
    with connect(
        url, compression=None, max_size=None, max_queue=None, open_timeout=DEADLINE, **options
    ) as client:
        yield client


def rest(client: ClientConnection, code: int = 1000) -> list[Message]:
    """Everything until the server's close, which must have this code."""
    got: list[Message] = []
    with suppress(ConnectionClosed):
        while True:
            data = client.recv(timeout=DEADLINE)
            got.append((True, data.encode()) if isinstance(data, str) else (False, data))
    assert client.close_code == code
    return got


def all_of(url: str, **options: Any) -> list[Message]:
    """Everything that a client by `websockets` gets."""
    with opened(url, **options) as client:
        return rest(client)


def cut(client: websocket.WebSocket) -> None:
    """Reset the connection; after an orderly close nothing is left to reset."""
    assert client.sock is not None
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


def all_of_by_websocket_client(url: str) -> list[Message]:
    """The same by `websocket-client`."""
    client = websocket.create_connection(url, timeout=DEADLINE)
    got: list[Message] = []
    try:
        while True:
            opcode, data = client.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                assert data == (1000).to_bytes(2, "big")
                return got
            got.append((opcode == websocket.ABNF.OPCODE_TEXT, data))
    finally:
        cut(client)


@pytest.mark.parametrize("receive", [all_of, all_of_by_websocket_client])
def test_every_length_of_frame_arrives_as_it_was(receive: Any) -> None:
    async def main() -> None:
        async with Server(lambda: at_once(MESSAGES)) as server:
            got = await asyncio.to_thread(receive, server.url)
        assert got == MESSAGES
        assert server.sent == (digest(MESSAGES),)

    run(main())


@pytest.mark.parametrize("exchange", ["bitmex", "huobi-gzip", "kraken"])
@pytest.mark.parametrize("receive", [all_of, all_of_by_websocket_client])
def test_a_capture_arrives_as_it_was(exchange: str, receive: Any) -> None:
    path = CAPTURES / f"{exchange}.tsv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    expected = [(r.kind == "text", r.payload) for r in read(path) if r.kind != "sent"]

    async def main() -> None:
        async with Server(lambda: timed(read(path), math.inf)) as server:
            got = await asyncio.to_thread(receive, server.url)
        assert got == expected
        assert server.sent == (digest(expected),)

    run(main())


def test_each_client_gets_all_from_the_beginning() -> None:
    left: list[Tally] = []

    async def main() -> None:
        async with Server(
            lambda: at_once(MESSAGES), on_leave=lambda _, s: left.append(s)
        ) as server:
            one, other = await asyncio.gather(
                asyncio.to_thread(all_of, server.url), asyncio.to_thread(all_of, server.url)
            )
            assert one == other == MESSAGES
            assert await asyncio.to_thread(all_of, server.url) == MESSAGES
        assert server.sent == (digest(MESSAGES),) * 3
        assert left == [digest(MESSAGES)] * 3

    run(main())


def test_a_flood_of_small_messages_arrives_whole() -> None:
    def flood() -> Iterator[Item]:
        return at_rate((b"%d" % number for number in range(100_000)), 0)

    async def main() -> None:
        async with Server(flood) as server:
            got = await asyncio.to_thread(all_of, server.url)
        assert got == [(True, b"%d" % number) for number in range(100_000)]
        assert server.sent == (digest(got),)

    run(main())


def held(url: str, then: Callable[[], object]) -> list[Message]:
    """What a client gets after `then`, if it gets a pong and nothing else before."""
    with opened(url) as client:
        assert client.ping().wait(DEADLINE)
        with pytest.raises(TimeoutError):
            client.recv(timeout=0)
        then()
        return rest(client)


def test_hold_sends_nothing_until_release() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def release() -> None:
            assert server.sent == (Tally(),)
            loop.call_soon_threadsafe(server.release)

        async with Server(lambda: at_once(MESSAGES), hold=True) as server:
            assert await asyncio.to_thread(held, server.url, release) == MESSAGES
            assert await asyncio.to_thread(all_of, server.url) == MESSAGES
        assert list(server.sent) == [digest(MESSAGES)] * 2

    run(main())


def test_a_held_server_can_be_stopped() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        async with Server(lambda: at_once(MESSAGES), hold=True) as server:
            then = partial(loop.call_soon_threadsafe, ready.set)
            task = asyncio.create_task(asyncio.to_thread(held, server.url, then))
            await ready.wait()
            await server.stop()
        assert await task == []

    run(main())


@pytest.mark.parametrize("per_second", [0, 50_000])
def test_stop_ends_an_endless_stream_with_all_that_was_sent(per_second: float) -> None:
    async def main() -> None:
        enough = asyncio.Event()
        loop = asyncio.get_running_loop()

        def source() -> Iterator[Item]:
            for item in at_rate((b"%d" % number for number in itertools.count()), per_second):
                yield item
                if item[2] == b"5000":
                    loop.call_soon(enough.set)

        async with Server(source) as server:
            task = asyncio.create_task(asyncio.to_thread(all_of, server.url))
            await enough.wait()
            await server.stop()
            got = await task
        assert len(got) > 5000
        assert got == [(True, b"%d" % number) for number in range(len(got))]
        assert server.sent == (digest(got),)

    run(main())


def test_stop_does_not_wait_for_what_is_not_due() -> None:
    def source() -> Iterator[Item]:
        yield 0, True, b"now"
        yield 10**18, True, b"in thirty years"

    def first(url: str, then: Callable[[], object]) -> list[Message]:
        with opened(url) as client:
            assert client.recv(timeout=DEADLINE) == "now"
            then()
            return rest(client)

    async def main() -> None:
        ready = asyncio.Event()
        then = partial(asyncio.get_running_loop().call_soon_threadsafe, ready.set)
        async with Server(source) as server:
            task = asyncio.create_task(asyncio.to_thread(first, server.url, then))
            await ready.wait()
        assert await task == []

    run(main())


def test_what_is_due_later_is_sent_later() -> None:
    async def main() -> None:
        items = [(0, True, b"a"), (20_000_000, False, b"b"), (20_000_000, True, b"c")]
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with Server(lambda: iter(items)) as server:
            got = await asyncio.to_thread(all_of, server.url)
        assert got == [(True, b"a"), (False, b"b"), (True, b"c")]
        assert loop.time() - started >= 0.02

    run(main())


def test_pings_are_answered_and_messages_ignored_in_the_middle_of_a_flood() -> None:
    def source() -> Iterator[Item]:
        return at_rate(itertools.repeat(b"x" * 100), 0)

    def ping(url: str) -> None:
        with opened(url) as client:
            for number in range(5):
                client.send("subscribe" * number)
                pong = client.ping(b"%d" % number)
                while not pong.is_set():
                    client.recv(timeout=DEADLINE)

    async def main() -> None:
        async with Server(source) as server:
            await asyncio.to_thread(ping, server.url)

    run(main())


def test_a_close_by_the_client_is_echoed() -> None:
    def leave(url: str) -> int | None:
        with opened(url) as client:
            client.close(4321)
        return client.close_code

    async def main() -> None:
        async with Server(lambda: iter([(10**18, True, b"")])) as server:
            assert await asyncio.to_thread(leave, server.url) == 4321

    run(main())


def test_a_client_that_does_not_read_or_is_cut_off_disturbs_nobody() -> None:
    stream = MESSAGES * 50  # more than a socket's buffers hold

    def first_of_two(url: str) -> list[Message]:
        client = websocket.create_connection(url, timeout=DEADLINE)
        try:
            return all_of(url)
        finally:
            cut(client)

    async def main() -> None:
        async with Server(lambda: at_once(stream)) as server:
            assert await asyncio.to_thread(first_of_two, server.url) == stream
            assert await asyncio.to_thread(all_of, server.url) == stream
        stuck, *others = server.sent
        assert others == [digest(stream)] * 2
        assert stuck.messages < len(stream)

    run(main())


def test_what_is_no_websocket_client_is_refused() -> None:
    def ask(url: str) -> bytes:
        port = int(url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
        return answer

    async def main() -> None:
        async with Server(lambda: at_once(MESSAGES)) as server:
            assert (await asyncio.to_thread(ask, server.url)).startswith(b"HTTP/1.1 426 ")
            assert server.sent == ()

    run(main())


def test_a_failing_source_is_reported_to_the_client_and_to_the_caller() -> None:
    def source() -> Iterator[Item]:
        yield 0, True, b"fine"
        raise LookupError("no more")

    def receive(url: str) -> list[Message]:
        with opened(url) as client:
            return rest(client, code=1011)

    async def main() -> None:
        server = Server(source)
        await server.__aenter__()
        assert await asyncio.to_thread(receive, server.url) == []
        with pytest.raises(LookupError, match="no more"):
            await server.stop()

    run(main())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=ringcast test"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    return cert, key


def test_over_tls(certificate: tuple[Path, Path]) -> None:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(*certificate)
    theirs = ssl.create_default_context(cafile=certificate[0])

    async def main() -> None:
        async with Server(lambda: at_once(MESSAGES), ssl=ours) as server:
            assert server.url.startswith("wss://127.0.0.1:")
            assert await asyncio.to_thread(all_of, server.url, ssl=theirs) == MESSAGES

    run(main())


RECORDS = [
    Record(900, "sent", b"subscribe"),
    Record(1000, "text", b"a"),
    Record(1500, "sent", b"ping"),
    Record(3000, "binary", b"b"),
]


@pytest.mark.parametrize(
    ("speed", "second"), [(1.0, 2000), (2.0, 1000), (0.5, 4000), (math.inf, 0)]
)
def test_timed(speed: float, second: int) -> None:
    assert list(timed(RECORDS, speed)) == [(0, True, b"a"), (second, False, b"b")]
    assert list(timed(RECORDS[:1], speed)) == []


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_must_be_above_zero(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        timed(RECORDS, speed)


@pytest.mark.parametrize("per_second", [1, 700, 1000, 3000, 1_000_000])
def test_at_rate_keeps_the_rate_in_ticks(per_second: int) -> None:
    items = list(itertools.islice(at_rate(itertools.repeat(b"x"), per_second), per_second + 1))
    due = [item[0] for item in items]
    assert due == sorted(due)
    assert all(b == a or b - a >= 999_999 for a, b in itertools.pairwise(due))
    assert 999_000_000 <= due[per_second] <= 1_000_000_000
    assert {item[1:] for item in items} == {(True, b"x")}


def test_a_rate_may_not_be_negative() -> None:
    with pytest.raises(ValueError, match="rate"):
        at_rate([b""], -1)


def test_repeated_goes_on_in_time() -> None:
    items = repeated(lambda: timed(RECORDS, 1.0))
    assert [item[0] for item in itertools.islice(items, 5)] == [0, 2000, 2000, 4000, 4000]
    assert list(repeated(lambda: iter(()))) == []


COMMAND = (
    sys.executable,
    "-m",
    "ringcast",
    "replay",
)


def command(*arguments: object) -> Result:
    """Run the command in this process; it is to fail."""
    words = ["replay", *(str(argument) for argument in arguments)]
    return CliRunner().invoke(app, words, prog_name="ringcast")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_replays_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "c.tsv"
    file.write_bytes(b"1\tsent\tx\n2\ttext\tone\n3\tbinary\tAP8=\n")
    expected = [(True, b"one"), (False, b"\x00\xff")]
    process = subprocess.Popen(
        [*COMMAND, str(file), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert all_of(url) == expected
        sent = digest(expected)
        assert f": 2 messages, 5 bytes, digest {sent.digest:08x}" in process.stdout.readline()
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE)
        assert (process.returncode, output) == (0, "")
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


def test_the_command_reports_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_bytes(b"1\ttext\tfine\nnonsense\n")
    empty = tmp_path / "empty.tsv"
    empty.write_bytes(b"1\tsent\tx\n")
    good = tmp_path / "good.tsv"
    good.write_bytes(b"1\ttext\tx\n")
    for arguments, what in (
        ((tmp_path / "none.tsv",), "none.tsv"),
        ((bad,), "bad.tsv, line 2"),
        ((empty,), "holds no received message"),
        ((good, "--cert", bad), "--cert"),
    ):
        done = command(*arguments)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert what in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = command(good, "--port", taken.getsockname()[1])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


def test_the_command_refuses_bad_usage(tmp_path: Path) -> None:
    file = tmp_path / "c.tsv"
    file.write_bytes(b"1\ttext\tx\n")
    for options in (
        ("--speed", "0"),
        ("--speed", "2", "--flood"),
        ("--key", "k.pem"),
        ("--port", "70000"),
        ("--nonsense",),
    ):
        done = command(file, *options)
        assert done.exit_code == 2, done.stderr
