"""The servers that the gateway is compared with: each sends every message to all its clients.

All listen on a Unix socket. None offers compression or sends pings. None loses messages: after each
batch, a server waits until every connection takes more, in the way that its library offers.

* websockets: `broadcast()` with each message, then `drain()` of each connection, for which
  `broadcast()` itself does not wait.
* picows: `send()` of each message on each connection. The next batch waits while a connection has
  called `pause_writing()`. It sets options of TCP on each connection, which a Unix socket refuses,
  so they are ignored here: with TCP it would be slower.
* aiohttp: `send_bytes()` of each message on each connection, which waits by itself.
* aiohttp, joined: the frames of a batch are made and joined by hand, once for all clients, and
  written to the transport of each request, past `send_bytes()`; then `drain()` of the writer that
  `prepare()` returns. aiohttp itself joins nothing. Of batches of 64 to 4096 messages those of 1024
  measured best. All its names are public.

They run on asyncio's own loop, or on uvloop if it is installed; picows with aiofastnet if that is
installed.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import importlib
import importlib.util
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Final

from .errors import RunFailedError
from .gateway_client import flow_contents
from .processes import Channel
from .websocket.clients import run_in_loop
from .websocket.frames import end_payload, frame


class Peer(abc.ABC):
    """A server.

    Attributes:
        name: how figures name it.
        modules: what it imports.
        batch: after so many messages it looks whether its connections take more. Measured best.
    """

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    batch: ClassVar[int] = 64

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be used here, and what to do about it; None if it can be used. Then it is
        imported here, once, and not in each child."""
        for module in cls.modules:
            if importlib.util.find_spec(module.partition(".")[0]) is None:
                return f"{module} is not installed: pip install 'ringcast[bench]'"
            importlib.import_module(module)
        return None

    @abc.abstractmethod
    def listening(self, listener: socket.socket) -> contextlib.AbstractAsyncContextManager[None]:
        """Serve, until the context is left."""

    @abc.abstractmethod
    def clients(self) -> int:
        """The number of clients that are connected."""

    @abc.abstractmethod
    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages to all clients, and return once all take more."""


class Websockets(Peer):
    """`broadcast()` of websockets."""

    name = "websockets.broadcast"
    modules = ("websockets.asyncio.server",)

    def __init__(self) -> None:
        self._connections: set[Any] = set()

    @contextlib.asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve with its asyncio server."""
        from websockets.asyncio.server import broadcast, unix_serve

        self._broadcast = broadcast
        async with unix_serve(self._handle, sock=listener, compression=None, ping_interval=None):
            yield

    async def _handle(self, connection: Any) -> None:
        self._connections.add(connection)
        await connection.wait_closed()
        self._connections.remove(connection)

    def clients(self) -> int:
        """The open connections."""
        return len(self._connections)

    async def send(self, messages: Sequence[bytes]) -> None:
        """Call broadcast() with each message, then drain() of each connection."""
        broadcast, connections = self._broadcast, self._connections
        for message in messages:
            broadcast(connections, message)
        for connection in connections:
            await connection.drain()


class _TcpOptionsIgnored(socket.socket):
    """A Unix socket on which options of TCP can be set in vain: picows sets them on each connection
    and asks for them."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection whose socket is of this class."""
        accepted, address = super().accept()
        return type(self)(fileno=accepted.detach()), address

    def setsockopt(self, level: int, *option: Any) -> None:
        """Ignore options of TCP."""
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *option)

    def getsockopt(self, level: int, *option: Any) -> Any:
        """Options of TCP are 0."""
        return 0 if level == socket.IPPROTO_TCP else super().getsockopt(level, *option)


class Picows(Peer):
    """`send()` of picows."""

    name = "picows"
    modules = ("picows",)

    def __init__(self) -> None:
        self._transports: set[Any] = set()
        self._paused = 0
        self._resumed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve with ws_create_server()."""
        import picows

        peer = self
        self._binary = picows.WSMsgType.BINARY

        class Listener(picows.WSListener):
            def on_ws_connected(self, transport: Any) -> None:
                peer._transports.add(transport)

            def on_ws_disconnected(self, transport: Any) -> None:
                peer._transports.discard(transport)

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type == picows.WSMsgType.CLOSE:
                    transport.disconnect()

            def pause_writing(self) -> None:
                peer._paused += 1

            def resume_writing(self) -> None:
                peer._paused -= 1
                if not peer._paused:
                    peer._resumed.set()

        unix = _TcpOptionsIgnored(fileno=listener.detach())
        server = await picows.ws_create_server(lambda _: Listener(), sock=unix)
        try:
            yield
        finally:
            server.close()

    def clients(self) -> int:
        """The connected transports."""
        return len(self._transports)

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send each message on each connection."""
        sends = [transport.send for transport in self._transports]
        binary = self._binary
        for message in messages:
            for send in sends:
                send(binary, message)
        while self._paused:
            self._resumed.clear()
            await self._resumed.wait()


class Aiohttp(Peer):
    """`send_bytes()` of aiohttp."""

    name = "aiohttp"
    modules = ("aiohttp.web",)

    def __init__(self) -> None:
        self._connections: dict[Any, tuple[Any, Any]] = {}

    @contextlib.asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve with an application."""
        from aiohttp import web

        async def handle(request: web.Request) -> web.WebSocketResponse:
            connection = web.WebSocketResponse(compress=False)
            writer = await connection.prepare(request)
            self._connections[connection] = request.transport, writer
            async for _ in connection:
                pass
            del self._connections[connection]
            return connection

        application = web.Application()
        application.router.add_get("/", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        try:
            yield
        finally:
            await runner.cleanup()

    def clients(self) -> int:
        """The open connections."""
        return len(self._connections)

    async def send(self, messages: Sequence[bytes]) -> None:
        """Call send_bytes() of each connection with each message."""
        sends = [connection.send_bytes for connection in self._connections]
        for message in messages:
            for send in sends:
                await send(message)


class AiohttpJoined(Aiohttp):
    """Joined frames on the transports of aiohttp."""

    name = "aiohttp, joined"
    batch = 1024

    async def send(self, messages: Sequence[bytes]) -> None:
        """Write all at once."""
        joined = b"".join([frame(message, is_text=False) for message in messages])
        connections = list(self._connections.values())
        for transport, _ in connections:
            transport.write(joined)
        for _, writer in connections:
            await writer.drain()


PEERS: Final[tuple[type[Peer], ...]] = (Websockets, Picows, Aiohttp, AiohttpJoined)


def serve(
    channel: Channel, listener: socket.socket, kind: type[Peer], clients: int, seconds: float
) -> None:
    """Be a server: send the flow for so long, once told to, to so many clients.

    Reports `sent`, the number of messages to each, and `cpu`, the CPU seconds from the first
    message until every client has gone.
    """
    run_in_loop(_serve(channel, listener, kind, clients, seconds))


async def _serve(
    channel: Channel, listener: socket.socket, kind: type[Peer], clients: int, seconds: float
) -> None:
    payloads = flow_contents().payloads
    chunks = [payloads[i : i + kind.batch] for i in range(0, len(payloads), kind.batch)]
    peer = kind()
    async with peer.listening(listener):
        await asyncio.to_thread(channel.receive)  # the handshakes are done
        if peer.clients() != clients:
            raise RunFailedError(f"{peer.clients()} clients are connected, not {clients}")
        cpu, end = time.process_time(), time.monotonic() + seconds
        sent = 0
        while time.monotonic() < end:
            for chunk in chunks:
                await peer.send(chunk)
                sent += len(chunk)
                if time.monotonic() >= end:
                    break
        await peer.send([end_payload(sent)])
        while peer.clients():
            await asyncio.sleep(0.001)
        channel.send({"sent": sent, "cpu": time.process_time() - cpu})
