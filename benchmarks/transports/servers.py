"""Transports through a server: Redis, NATS. Each run starts its own server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import RunFailedError
from ..programs import end_with_parent
from .base import BATCH_SIZE, LinkSender, Transport, Usage, Wait, find_program, usage_of

if TYPE_CHECKING:
    import nats.aio.client
    import nats.aio.msg

_START_TIMEOUT_S: Final = 10.0
_START_POLL_S: Final = 0.01
_SUBJECT: Final = "flow"
_STREAM: Final = "flow"
_GROUP: Final = "consumers"
_FIELD: Final = b"m"
_READ_BYTES: Final = 256 << 10
_UNFLUSHED_BYTES: Final = 256 << 10
"""Bytes after which a NATS sender waits until the server has them."""


@contextlib.contextmanager
def _running(command: Sequence[str], answers: Callable[[int], bool]) -> Iterator[int]:
    """Run a server. Yields its process id once it answers. The server ends with the block, or with
    the benchmark: it has nothing to save."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509 - there are no threads
    ) as server:
        try:
            end = time.monotonic() + _START_TIMEOUT_S
            while not answers(server.pid):
                if server.poll() is not None or time.monotonic() > end:
                    raise RunFailedError(f"{command[0]} does not start")
                time.sleep(_START_POLL_S)
            yield server.pid
        finally:
            server.kill()


class _Served(Transport):
    """Publish and subscribe through a server.

    Attributes:
        pid: process id of the server.
    """

    fans_out = True
    many_senders = True
    waits: ClassVar[frozenset[Wait]] = frozenset({"block"})
    pid: int

    def usage(self) -> Usage:
        """What the server has used until now."""
        return usage_of(self.pid)

    @classmethod
    def _path(cls) -> str:
        path = cls.program and find_program(cls.program)
        assert path, "missing() reports it"
        return path


# ---- Redis ---------------------------------------------------------------------------------


class Redis(_Served):
    """Publish and subscribe of Redis, over a Unix socket."""

    name = "Redis pub/sub"
    copies = (
        "the sender makes a request and waits for its answer, the server copies for each reader, "
        "without a bound, the kernel copies four times, and the receiver makes new bytes"
    )
    modules = ("redis", "hiredis")
    program = "redis-server"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A server that stores nothing and disconnects no slow reader."""
        with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as folder:
            self.address = f"{folder}/socket"
            options = {
                "port": "0",
                "unixsocket": self.address,
                "dir": folder,
                "save": "",
                "appendonly": "no",
                "client-output-buffer-limit": "pubsub 0 0 0",
            }
            settings = itertools.chain.from_iterable((f"--{k}", v) for k, v in options.items())
            with _running([self._path(), *settings], self._answers) as self.pid:
                yield

    def _answers(self, _pid: int) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.address) == 0

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        import redis

        # With protocol 3, redis-py formats each message that it receives for its log.
        with redis.Redis(
            unix_socket_path=self.address,
            single_connection_client=True,
            protocol=2,
            socket_timeout=None,
            socket_read_size=_READ_BYTES,
        ) as client:
            yield client

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """PUBLISH, whose answer it waits for."""
        with self._client() as client:
            publish = client.publish
            yield LinkSender(lambda data: publish(_SUBJECT, data))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscription that the server has confirmed."""
        with self._client() as client, client.pubsub() as pubsub:
            pubsub.subscribe(_SUBJECT)
            messages = pubsub.listen()
            next(messages)
            yield (message["data"] for message in messages)


class RedisStream(Redis):
    """A stream of Redis that a group of consumers shares out, with acknowledgements."""

    name = "Redis streams, 100 at a time"
    copies = (
        "the sender makes 100 requests and waits for their answers, the server copies into the "
        "stream, which only grows, and out to a consumer that asks for 100 and then acknowledges "
        "them; the kernel copies four times, and the consumer makes new bytes"
    )
    item_messages = 100
    fans_out = False

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A server with a stream and its group."""
        with super().open():
            with self._client() as client:
                client.xgroup_create(_STREAM, _GROUP, mkstream=True)
            yield

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A pipeline of XADDs."""
        with self._client() as client:
            pipeline = client.pipeline(transaction=False)

            def send(item: Sequence[bytes]) -> None:
                for data in item:
                    pipeline.xadd(_STREAM, {_FIELD: data})
                pipeline.execute()

            yield LinkSender(send)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:
        """XREADGROUP, which waits, and XACK of what it gave."""
        with self._client() as client:
            yield self._entries(client, f"consumer-{index}")

    def _entries(self, client: Any, name: str) -> Iterator[bytes]:
        while True:
            found = client.xreadgroup(
                _GROUP, name, {_STREAM: ">"}, count=self.item_messages, block=0
            )
            for _, entries in found:
                for _, fields in entries:
                    yield fields[_FIELD]
                client.xack(_STREAM, _GROUP, *(entry for entry, _ in entries))

    def is_acknowledged(self) -> bool:
        """Whether no entry is pending."""
        with self._client() as client:
            pending: int = client.xpending(_STREAM, _GROUP)["pending"]
        return pending == 0


class RedisBatched(Redis):
    """Redis with many messages per request."""

    name = "Redis pub/sub, batched"
    copies = "as Redis pub/sub, with one answer per 64 messages"
    item_messages = BATCH_SIZE

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A pipeline of PUBLISHes."""
        with self._client() as client:
            pipeline = client.pipeline(transaction=False)

            def send(item: Sequence[bytes]) -> None:
                for data in item:
                    pipeline.publish(_SUBJECT, data)
                pipeline.execute()

            yield LinkSender(send)


# ---- NATS ----------------------------------------------------------------------------------


class Nats(_Served):
    """Publish and subscribe of NATS, over the loopback device."""

    name = "NATS"
    copies = (
        "the sender joins what it sends, and every 256 KiB, and after a sequence, waits until the "
        "server has it; the server copies for each reader and delays the sender from 128 MiB on; "
        "the kernel copies four times; the receiver copies into a buffer and makes new bytes"
    )
    modules = ("nats",)
    program = "nats-server"
    queue: ClassVar[str] = ""
    """The queue group that all receivers are in; "": each gets everything."""

    @classmethod
    def largest(cls) -> int:
        """The server's limit, which `open` sets."""
        return 2 << 20

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A server that is patient with slow readers."""
        with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as name:
            folder = Path(name)
            settings = {
                "host": "127.0.0.1",
                "port": -1,  # any free one; the server writes its number into that folder
                "ports_file_dir": name,
                "max_payload": self.largest(),
                # A reader that has more than this yet to read is disconnected. From half of it on,
                # senders are delayed.
                "max_pending": 256 << 20,
                "write_deadline": "60s",
                "log_file": f"{name}/log",
            }
            config = folder / "config"
            config.write_text(json.dumps(settings), encoding="utf-8")
            command = [self._path(), "--config", str(config)]
            with _running(command, partial(self._answers, folder)) as self.pid:
                yield

    def _answers(self, folder: Path, pid: int) -> bool:
        ports = folder / f"nats-server_{pid}.ports"
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            self.url = json.loads(ports.read_text(encoding="utf-8"))["nats"][0]
            return True
        return False

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A client on an event loop of its own, which runs while something is being sent."""
        with _nats_end(self.url) as end:
            client = end.client
            unflushed = 0

            async def publish(data: bytes) -> None:
                nonlocal unflushed
                await client.publish(_SUBJECT, data)
                unflushed += len(data)
                if unflushed >= _UNFLUSHED_BYTES:
                    unflushed = 0
                    await end.flush()

            async def send(data: bytes) -> None:
                await publish(data)
                await end.write_pending()

            async def send_all(items: Sequence[bytes]) -> None:
                for data in items:
                    await publish(data)
                await end.flush()

            yield LinkSender(
                lambda data: end.run(send(data)), lambda items: end.run(send_all(items))
            )

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscription that the server has."""
        with _nats_end(self.url) as end:
            received: list[bytes] = []

            async def receive(message: nats.aio.msg.Msg) -> None:
                received.append(message.data)
                end.stop_loop()

            async def subscribe() -> None:
                await end.client.subscribe(
                    _SUBJECT,
                    self.queue,
                    cb=receive,
                    pending_msgs_limit=0,
                    pending_bytes_limit=0,
                )
                await end.flush()

            end.run(subscribe())
            yield _received(end, received)


class NatsQueue(Nats):
    """A queue group of NATS: the server picks one of its members for each message."""

    name = "NATS queue group"
    copies = "as NATS, for one receiver of each message; there are no acknowledgements"
    queue = _GROUP
    fans_out = False


class _NatsEnd:
    """A client of NATS and its event loop.

    Attributes:
        loop: the event loop.
        client: the client.
        failure: what went wrong with the client, if something did.
    """

    client: nats.aio.client.Client

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.failure: Exception | None = None
        self._ending = False

    async def begin(self, url: str) -> None:
        """Connect. A lost connection is not opened again."""
        import nats

        self.client = await nats.connect(
            url, allow_reconnect=False, error_cb=self._failed, closed_cb=self._closed
        )

    async def _failed(self, error: Exception) -> None:
        self.failure = error
        self.stop_loop()

    async def _closed(self) -> None:
        if not self._ending:
            await self._failed(ConnectionError("the connection to NATS is closed"))

    async def write_pending(self) -> None:
        """Wait until the client's own task has written to the kernel what is pending."""
        while self.client.pending_data_size:
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until the server has everything. nats-py sends its question ahead of what is
        pending, so the answer would mean nothing if that had not been written before."""
        await self.write_pending()
        await self.client.flush()

    def stop_loop(self) -> None:
        """Stop the event loop, in which somebody may be waiting."""
        if not self._ending:
            self.loop.stop()

    def run(self, task: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end, unless the client fails."""
        try:
            self.loop.run_until_complete(task)
        finally:
            self.check()

    def check(self) -> None:
        """Raise what went wrong with the client, if something did."""
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        """Disconnect."""
        self._ending = True
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


@contextlib.contextmanager
def _nats_end(url: str) -> Iterator[_NatsEnd]:
    end = _NatsEnd()
    end.run(end.begin(url))
    try:
        yield end
    finally:
        end.end()


def _received(end: _NatsEnd, received: list[bytes]) -> Iterator[bytes]:
    while True:
        end.loop.run_forever()  # until a message or a failure stops it
        end.check()
        yield from received
        received.clear()
