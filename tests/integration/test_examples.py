"""The programs of docs/examples/ and the marked code blocks of the docs run, beside the stand-in
exchange where they need a server.

A block of Python that follows a mark such as ``<!-- run: feed -->`` is run, with a ring of the
test's own instead of "md" and "orders":

alone    with nothing else
feed     beside a manager, whose server sends some messages and then closes
gateway  beside such a manager and a gateway, in place of the addresses of the docs
ring     beside a writer that publishes some messages and then closes
uplink   beside a receiver
"""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from ringcast import Config, Manager, shm
from ringcast.broker.exchange import market
from ringcast.broker.exchange.server import Server, at_rate
from ringcast.shm import broadcast, mpsc
from tests.conftest import DEADLINE, eventually
from tests.integration.manager import InThread
from tests.integration.venues import VenueServer

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
EXAMPLES: Final = DOCS / "examples"
MARKED: Final = re.compile(r"^<!-- run: (\w+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MESSAGES: Final = 2000
SLOTS: Final = 4096
CAPACITY: Final = 4 << 20


class Exchange:
    """The stand-in exchange, in a thread: it sends some messages to each client and closes."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE)

    async def _serve(self) -> None:
        def source() -> Iterator[tuple[int, bool, bytes]]:
            return itertools.islice(at_rate(market.messages(), 0), self._messages)

        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        async with Server(source, hold=True) as self._server:
            self.url = self._server.url
            self._ready.set()
            await self._ending.wait()

    def release(self) -> None:
        """Send the messages."""
        self._loop.call_soon_threadsafe(self._server.release)

    def end(self) -> None:
        """Close, and wait for the thread."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange that sends when it is released."""
    exchange = Exchange(MESSAGES)
    yield exchange
    exchange.end()


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A Python program, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", *command],  # what it prints is read as it comes
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


def output(process: subprocess.Popen[str]) -> str:
    """What the program printed; it has to end by itself, and well."""
    printed, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    return printed


def attached(name: str, readers: int, process: subprocess.Popen[str]) -> None:
    """Return when so many readers are attached, or the program has ended already."""

    def there() -> bool:
        active = [r for r in shm.status(name).readers if r.state == "active"]
        return len(active) >= readers or process.poll() is not None

    eventually(there, f"{readers} readers of {name}")


def sent(name: str, process: subprocess.Popen[str]) -> None:
    """Return when the program's messages have reached the server, or the program has ended."""

    def there() -> bool:
        senders = mpsc.status(name).senders
        return process.poll() is not None or any(s.sent and not s.pending for s in senders)

    eventually(there, f"messages sent through {name}")


@contextmanager
def manager(name: str, exchange: Exchange) -> Iterator[None]:
    """A manager whose ring ends when the exchange has sent all."""
    config = Config(
        name=name,
        url=exchange.url,
        topic=("{/type}:{/symbol}",),
        reconnect=False,
        slots=SLOTS,
        capacity=CAPACITY,
        drain_timeout=DEADLINE,
        demote_after=None,
        evict_after=None,
    )
    runner = InThread(config)
    try:
        yield
        runner.join()
    finally:
        runner.end()


# ---- examples ------------------------------------------------------------------------------


def beside_a_manager(program: Path, name: str, exchange: Exchange, readers: int = 1) -> str:
    """What a worker's program prints that gets all messages of the exchange."""
    with manager(name, exchange), running(program, name) as process:
        attached(name, readers, process)
        if "send(" in program.read_text(encoding="utf-8"):
            sent(name, process)  # before the exchange closes
        exchange.release()
        return output(process)


def test_asyncio_worker(name: str, exchange: Exchange) -> None:
    printed = beside_a_manager(EXAMPLES / "asyncio_worker.py", name, exchange)
    assert printed.startswith(f"sent with ticket 0, read {MESSAGES} messages\n")


def test_numpy_batches(name: str, exchange: Exchange) -> None:
    printed = beside_a_manager(EXAMPLES / "numpy_batches.py", name, exchange)
    payload_bytes = sum(map(len, itertools.islice(market.messages(), MESSAGES)))
    assert re.match(rf"{MESSAGES} messages in \d+ batches, {payload_bytes} bytes\n", printed)


def test_worker_pool(name: str, exchange: Exchange) -> None:
    printed = beside_a_manager(EXAMPLES / "worker_pool.py", name, exchange, readers=2)
    assert printed.endswith(f"all: {MESSAGES} messages\n")
    assert len(set(re.findall(r"worker \d: (\d+) messages", printed))) <= 2
    assert " 0 messages" not in printed


def test_subscribe(name: str) -> None:
    topics = ("trades:BTC-USDT", "trades:NO-PAIR", "trades:ETH-USDT")
    with (
        VenueServer("okx", refuse={"trades:NO-PAIR": "doesn't exist"}) as server,
        Manager(Config(name=name, url=server.url, venue="okx", slots=SLOTS, capacity=CAPACITY)),
        running(EXAMPLES / "subscribe.py", name, *topics) as process,
    ):
        assert process.stdout is not None
        refused = process.stdout.readline()
        assert refused == "trades:NO-PAIR: refused, 60018: doesn't exist\n"
        for topic in ("trades:ETH-USDT", "trades:BTC-USDT"):
            server.publish(topic, 50)
        assert output(process) == "trades:BTC-USDT: 50 messages\ntrades:ETH-USDT: 50 messages\n"


def test_plain_ring(name: str) -> None:
    with running(EXAMPLES / "plain_ring.py", name) as process:
        total = sum(range(10_000))
        assert output(process) == (
            f"2 readers read 10000 messages; their sums are [{total}, {total}]\n"
        )


def test_work_group(name: str) -> None:
    with running(EXAMPLES / "work_group.py", name) as process:
        assert output(process) == "3 members handled 10000 messages; in order: True\n"


def test_manager_that_is_stopped(name: str, exchange: Exchange) -> None:
    with running(EXAMPLES / "manager.py", name, exchange.url, "0.2") as process:
        assert output(process) == "the manager was stopped\n"


def test_manager_without_a_server_ends_at_its_time(name: str) -> None:
    with running(EXAMPLES / "manager.py", name, "ws://127.0.0.1:9/", "0.2") as process:
        assert output(process) == "the manager was stopped\n"


# ---- blocks of the docs --------------------------------------------------------------------


class Block(NamedTuple):
    """A program in the docs that is to be run.

    Attributes:
        where: page and line.
        beside: what has to run beside it.
        code: the program.
    """

    where: str
    beside: str
    code: str


def blocks() -> Iterator[Block]:
    """Every marked block."""
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for match in MARKED.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            yield Block(f"{page.name}:{line}", match[1], match[2])


def marked(beside: str) -> pytest.MarkDecorator:
    """Runs a test for each block with this mark."""
    found = [block for block in blocks() if block.beside == beside]
    return pytest.mark.parametrize("block", found, ids=[block.where for block in found])


@pytest.fixture
def program(block: Block, name: str, tmp_path: Path) -> Path:
    """The block as a file, with a ring of the test's own."""
    path = tmp_path / "block.py"
    code = re.sub(r'"(md|orders)"', f'"{name}"', block.code)
    path.write_text(code, encoding="utf-8")
    return path


def test_every_mark_is_known() -> None:
    marks = {"alone", "feed", "gateway", "ring", "uplink"}
    assert {block.beside for block in blocks()} == marks


@marked("alone")
def test_block_alone(program: Path) -> None:
    with running(program) as process:
        output(process)


@marked("feed")
def test_block_beside_a_manager(program: Path, name: str, exchange: Exchange) -> None:
    assert beside_a_manager(program, name, exchange)


@contextmanager
def gateway(name: str, path: Path) -> Iterator[str]:
    """A gateway that listens on a Unix socket, and on the address of TCP that is returned."""
    command = ("-m", "ringcast", "gateway", name, "--on-loss", "keep")
    addresses = ("--listen", f"unix:{path}", "--listen", "127.0.0.1:0")
    with running(*command, *addresses) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        found = re.search(r"ws://(\S+)", said[1])
        assert found is not None, said
        attached(name, 1, process)
        yield found[1]


@marked("gateway")
def test_block_beside_a_gateway(
    program: Path, name: str, exchange: Exchange, tmp_path: Path
) -> None:
    socket = tmp_path / "md.sock"
    with manager(name, exchange), gateway(name, socket) as address:
        code = program.read_text(encoding="utf-8")
        code = code.replace("/run/md.sock", str(socket)).replace("127.0.0.1:9001", address)
        program.write_text(code, encoding="utf-8")
        with running(program) as process:
            sent(name, process)  # so it is connected
            exchange.release()
            assert '"symbol"' in output(process)


@marked("ring")
def test_block_beside_a_writer(program: Path, name: str) -> None:
    with (
        broadcast.Writer.create(name, slots=64, capacity=1 << 16) as writer,
        running(program) as process,
    ):
        attached(name, 1, process)
        for number in range(10):
            writer.publish(str(number).encode(), topic=7)
        writer.close()
        assert output(process) == "".join(f"{n} 7 {n}\n" for n in range(10))


@marked("uplink")
def test_block_beside_a_receiver(program: Path, name: str) -> None:
    with mpsc.Receiver.create(name) as receiver, running(program) as process:
        envelope = receiver.read(timeout=DEADLINE)
        assert envelope is not None
        assert bytes(envelope) == b"..."
        output(process)
