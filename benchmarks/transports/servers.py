"""Servers in between: Redis, NATS. Each run has its own, which nobody else uses."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..method import RunFailedError
from .base import GROUP, Outlet, Transport, Usage, Wait, find_program, usage_of

if TYPE_CHECKING:
    import nats.aio.client
    import nats.aio.msg

_START_S: Final = 10.0
"""Seconds a server has to be there."""
_SUBJECT: Final = "flow"
_READ_BYTES: Final = 256 << 10
_UNFLUSHED_BYTES: Final = 256 << 10
"""Bytes after which a NATS sender makes sure that the server has them."""


_PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2): the signal to get when the parent dies."""


def _end_with_the_benchmark() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))  # it has nothing to save


@contextlib.contextmanager
def _running(command: Sequence[str], answers: Callable[[int], bool]) -> Iterator[int]:
    """A server, from when it answers on; its process id."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=_end_with_the_benchmark,  # noqa: PLW1509 - there are no threads here
    ) as server:
        try:
            end = time.monotonic() + _START_S
            while not answers(server.pid):
                if server.poll() is not None or time.monotonic() > end:
                    raise RunFailedError(f"{command[0]} does not start")
                time.sleep(0.01)
            yield server.pid
        finally:
            server.kill()


class _Served(Transport):
    """Any server's publish and subscribe."""

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
        assert path, "missing() says so"
        return path


# ---- Redis ---------------------------------------------------------------------------------


class Redis(_Served):
    """Redis' publish and subscribe, over a Unix socket."""

    name = "Redis pub/sub"
    copies = (
        "the sender makes a request and waits for its answer, the server copies for each reader, "
        "without bound, the kernel copies four times, and the receiver makes new bytes"
    )
    modules = ("redis", "hiredis")
    program = "redis-server"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A server that keeps nothing, and disconnects nobody who is slow."""
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

        # With protocol 3 redis-py makes a text of each message received, for its log.
        with redis.Redis(
            unix_socket_path=self.address,
            single_connection_client=True,
            protocol=2,
            socket_timeout=None,
            socket_read_size=_READ_BYTES,
        ) as client:
            yield client

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """PUBLISH, which is answered."""
        with self._client() as client:
            publish = client.publish
            yield Outlet(lambda data: publish(_SUBJECT, data))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscription, from when the server has confirmed it."""
        with self._client() as client, client.pubsub() as pubsub:
            pubsub.subscribe(_SUBJECT)
            messages = pubsub.listen()
            next(messages)
            yield (message["data"] for message in messages)


class RedisBatched(Redis):
    """The same, many messages a request."""

    name = "Redis pub/sub, batched"
    copies = "as Redis pub/sub, with an answer to 64 messages"
    group = GROUP

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """A pipeline of PUBLISHes."""
        with self._client() as client:
            pipeline = client.pipeline(transaction=False)

            def send(group: Sequence[bytes]) -> None:
                for data in group:
                    pipeline.publish(_SUBJECT, data)
                pipeline.execute()

            yield Outlet(send)


# ---- NATS ----------------------------------------------------------------------------------


class Nats(_Served):
    """NATS' publish and subscribe, over the loopback device."""

    name = "NATS"
    copies = (
        "the sender joins what it sends and asks each 256 KiB, and after a sequence, whether the "
        "server has it; the server copies for each reader, holding the sender up from 128 MiB on; "
        "the kernel copies four times; the receiver copies into a buffer and makes new bytes"
    )
    modules = ("nats",)
    program = "nats-server"

    @classmethod
    def largest(cls) -> int:
        """What the server is told to take, and no more."""
        return 2 << 20

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A server that is patient with who is slow."""
        with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as name:
            folder = Path(name)
            settings = {
                "host": "127.0.0.1",
                "port": -1,  # any that is free, which it then writes into that folder
                "ports_file_dir": name,
                "max_payload": self.largest(),
                # Who has more than this yet to read is disconnected; half of it, and senders are
                # held up.
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
    def sender(self) -> Iterator[Outlet]:
        """A client on an event loop of its own, which runs while something is sent."""
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
                await end.hand_over()

            async def send_all(items: Sequence[bytes]) -> None:
                for data in items:
                    await publish(data)
                await end.flush()

            yield Outlet(lambda data: end.run(send(data)), lambda items: end.run(send_all(items)))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscription, from when the server has it."""
        with _nats_end(self.url) as end:
            taken: list[bytes] = []

            async def take(message: nats.aio.msg.Msg) -> None:
                taken.append(message.data)
                end.wake()

            async def subscribe() -> None:
                await end.client.subscribe(
                    _SUBJECT, cb=take, pending_msgs_limit=0, pending_bytes_limit=0
                )
                await end.flush()

            end.run(subscribe())
            yield _taken(end, taken)


class _NatsEnd:
    """A client of NATS and its event loop.

    Attributes:
        loop: the event loop.
        client: the client.
        failure: what went wrong with it, if something has.
    """

    client: nats.aio.client.Client

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.failure: Exception | None = None
        self._ending = False

    async def begin(self, url: str) -> None:
        """Connect, once and for all."""
        import nats

        self.client = await nats.connect(
            url, allow_reconnect=False, error_cb=self._failed, closed_cb=self._closed
        )

    async def _failed(self, error: Exception) -> None:
        self.failure = error
        self.wake()

    async def _closed(self) -> None:
        if not self._ending:
            await self._failed(ConnectionError("the connection to NATS is closed"))

    async def hand_over(self) -> None:
        """Let the client's own task give the kernel what is pending."""
        while self.client.pending_data_size:
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until the server has everything. nats-py asks it ahead of what is pending, so the
        answer would mean nothing if that was not handed over before."""
        await self.hand_over()
        await self.client.flush()

    def wake(self) -> None:
        """Stop the event loop if somebody waits with it."""
        if not self._ending:
            self.loop.stop()

    def run(self, task: Coroutine[Any, Any, None]) -> None:
        """Run something to its end, unless the client fails."""
        try:
            self.loop.run_until_complete(task)
        finally:
            self.check()

    def check(self) -> None:
        """Raise what went wrong with the client."""
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


def _taken(end: _NatsEnd, taken: list[bytes]) -> Iterator[bytes]:
    while True:
        end.loop.run_forever()  # until a message stops it, or a failure
        end.check()
        yield from taken
        taken.clear()
