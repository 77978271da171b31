"""A WebSocket server that says one stream to each client, from the stream's beginning.

It stands in for an exchange: it replays captures and floods. The library's protocol object does
the handshake, reads what clients send, answers pings and echoes a close; the messages are framed
here, so that many go out in one write, which no server with a call for each message can do.

    async with Server(lambda: timed(read(path), speed=1.0)) as server:
        print(server.url)
        ...

Every client has a source of its own, and its time starts when the client is there. A message that
is due is sent with all others that are due; nothing is dropped for a client that reads slowly: it
is behind, and the source waits for it.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from websockets.frames import CloseCode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from .captures import Record, chain

__all__ = ["Item", "Said", "Server", "Source", "at_rate", "repeated", "timed"]

Item = tuple[int, bool, bytes]
"""When it is due, in ns from the start of the stream; whether it is text; its payload."""

Source = Callable[[], Iterator[Item]]
"""Begins a stream. Due times do not decrease; the ones of a flood are all 0."""

_WRITE_BYTES: Final = 64 << 10  # frames are gathered up to this
_READ_BYTES: Final = 64 << 10
_HANDSHAKE_S: Final = 10.0  # to finish the opening handshake
_STOP_S: Final = 10.0  # from stop() until clients that have not closed are cut off
_DISCONNECT_S: Final = 1.0  # for the last bytes, once both sides have closed
_TICK_NS: Final = 1_000_000

_FIN_TEXT: Final = 0x81
_FIN_BINARY: Final = 0x82
_LONG: Final = struct.Struct("!BBH")
_LONGEST: Final = struct.Struct("!BBQ")


@dataclass(frozen=True, slots=True)
class Said:
    """What one client was told: handed to its socket, which need not mean that it came through.

    Attributes:
        messages: how many.
        payload_bytes: their bytes, without the frames' headers.
        digest: `captures.chain` over them.
    """

    messages: int = 0
    payload_bytes: int = 0
    digest: int = 0


class Server:
    """Says `source` to each client. An asynchronous context manager: listens inside the block,
    stops at its end.

    Args:
        source: begins a stream; called once a client.
        host, port: where to listen; port 0 takes a free one, which `url` tells.
        ssl: for wss.
        hold: say nothing to anyone until `release`.
        on_leave: called with the address and what was said for each client that goes.

    Raises:
        OSError: on entering: the address cannot be listened at.
    """

    def __init__(
        self,
        source: Source,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: ssl.SSLContext | None = None,
        hold: bool = False,
        on_leave: Callable[[str, Said], None] | None = None,
    ) -> None:
        self._source = source
        self._host = host
        self._port = port
        self._ssl = ssl
        self._on_leave = on_leave
        self._released = asyncio.Event()
        if not hold:
            self._released.set()
        self._stopped = asyncio.Event()
        self._stop_ns = 0  # meant only once stopped
        self._listener: asyncio.Server | None = None
        self._clients: list[_Client] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(
            self._connected, self._host, self._port, ssl=self._ssl
        )
        self._port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'wss' if self._ssl else 'ws'}://{host}:{self._port}/"

    @property
    def said(self) -> tuple[Said, ...]:
        """What each client was told until now, in the order they came; those that left included."""
        return tuple(client.said for client in self._clients)

    def release(self) -> None:
        """Begin the streams that `hold` has kept back. Their time starts now."""
        self._released.set()

    async def stop(self) -> None:
        """Say what was due before this call, close every client with code 1000, and return when
        all have gone; who has not closed within 10 s is cut off. A flood, whose messages are all
        due at 0, ends at once.

        Raises:
            Exception: what the source of a client raised, if any did.
        """
        if not self._stopped.is_set():
            self._stop_ns = time.monotonic_ns()
            self._stopped.set()
            self._released.set()
        if self._listener is not None:
            self._listener.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._listener is not None:
            await self._listener.wait_closed()
        if self._failures:
            raise self._failures.pop(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped.is_set():
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(_Client(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _serve(self, client: _Client) -> None:
        try:
            if not await client.handshake():
                return
            self._clients.append(client)
            try:
                await self._converse(client)
            finally:
                if self._on_leave is not None:
                    self._on_leave(client.address, client.said)
        except _Gone:
            return  # clients come and go: what it was told is in `said`
        finally:
            await client.disconnect()

    async def _converse(self, client: _Client) -> None:
        """Listen until the client has closed, and talk meanwhile."""
        talk = asyncio.create_task(self._talk(client))
        try:
            await client.listen()
        finally:
            talk.cancel()
            with suppress(asyncio.CancelledError, _Gone):
                await talk

    async def _talk(self, client: _Client) -> None:
        try:
            await self._say(client)
        except Exception:
            client.close(CloseCode.INTERNAL_ERROR)
            raise
        client.close(CloseCode.NORMAL_CLOSURE)

    async def _say(self, client: _Client) -> None:
        await self._released.wait()
        start_ns = time.monotonic_ns()
        elapsed_ns = 0  # as last looked: the clock is read only for what may not be due yet
        for due_ns, is_text, payload in self._source():
            if due_ns > elapsed_ns:
                elapsed_ns = time.monotonic_ns() - start_ns
                if due_ns > elapsed_ns:
                    await client.flush()
                    elapsed_ns = await self._wait(start_ns, due_ns)
            if self._stopped.is_set() and not 0 < due_ns <= self._stop_ns - start_ns:
                break
            client.add(is_text, payload)
            if client.gathered_bytes >= _WRITE_BYTES:
                await client.flush()
        await client.flush()

    async def _wait(self, start_ns: int, due_ns: int) -> int:
        """Wait until `due_ns` or the stop, and return the elapsed time in ns."""
        seconds = (start_ns + due_ns - time.monotonic_ns()) / 1e9
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        return time.monotonic_ns() - start_ns


class _Gone(Exception):
    """The connection to the client is lost, or it did not behave as a client."""


class _Client:
    """One connection: what comes in, and what is said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol()
        self._frames: list[bytes] = []
        self._messages = 0
        self._payload_bytes = 0
        self._digest = 0
        self.gathered_bytes = 0
        self.said = Said()
        peer = writer.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if peer else "a client that is gone"

    async def handshake(self) -> bool:
        """Open; False when it was refused, because it is no WebSocket client."""
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                while True:
                    going_on, events = await self._receive()
                    for event in events:
                        if isinstance(event, Request):
                            self._protocol.send_response(self._protocol.accept(event))
                            return self._send() and self._protocol.state is State.OPEN
                    if not going_on:
                        return False
        except TimeoutError as error:
            raise _Gone from error

    async def listen(self) -> None:
        """Answer pings and the close, and drop the messages, until there is nothing to come."""
        going_on = True
        while going_on:
            going_on, _ = await self._receive()

    def add(self, is_text: bool, payload: bytes) -> None:
        """Gather one message."""
        length = len(payload)
        first = _FIN_TEXT if is_text else _FIN_BINARY
        if length < 126:
            header = bytes((first, length))
        elif length < 1 << 16:
            header = _LONG.pack(first, 126, length)
        else:
            header = _LONGEST.pack(first, 127, length)
        self._frames += (header, payload)
        self.gathered_bytes += len(header) + length
        self._messages += 1
        self._payload_bytes += length
        self._digest = chain(self._digest, is_text, payload)

    async def flush(self) -> None:
        """Write what is gathered, and wait until there is room for more."""
        if not self._frames:
            return
        if self._protocol.state is not State.OPEN:
            raise _Gone  # after a close nothing is said
        self._writer.write(b"".join(self._frames))
        self._frames.clear()
        self.gathered_bytes = 0
        self.said = Said(self._messages, self._payload_bytes, self._digest)
        await self._drain()
        await asyncio.sleep(
            0
        )  # drain does not give way while there is room: let others have a turn

    def close(self, code: CloseCode) -> None:
        """Begin to close, unless it is begun."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code)
            self._send()

    async def disconnect(self) -> None:
        """Give the last bytes a moment, then cut off."""
        self._writer.close()
        try:
            async with asyncio.timeout(_DISCONNECT_S):
                await self._writer.wait_closed()
        except OSError:  # also the time-out; the connection is of no more use either way
            self._writer.transport.abort()

    async def _receive(self) -> tuple[bool, list[object]]:
        """One read: whether more can come, and what it was."""
        try:
            data = await self._reader.read(_READ_BYTES)
        except OSError as error:
            raise _Gone from error
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        events: list[object] = [*self._protocol.events_received()]
        going_on = self._send() and bool(data)
        await self._drain()
        return going_on, events

    def _send(self) -> bool:
        """Write what the protocol has to say; False when that was its last."""
        for data in self._protocol.data_to_send():
            if data == SEND_EOF:
                return False
            self._writer.write(data)
        return True

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise _Gone from error


def timed(records: Iterable[Record], speed: float) -> Iterator[Item]:
    """A capture's messages, the first at 0, at `speed` times the pace of the capture; `math.inf`
    makes a flood. What the client had sent is left out.

    Raises:
        ValueError: `speed` is not above 0.
    """
    if not speed > 0:
        raise ValueError(f"the speed must be above 0, not {speed}")
    received = (record for record in records if record.kind != "sent")
    first = next(received, None)
    if first is None:
        return iter(())
    start_ns = first.time_ns
    return (
        (int((record.time_ns - start_ns) / speed), record.kind == "text", record.payload)
        for record in itertools.chain((first,), received)
    )


def at_rate(messages: Iterable[bytes], per_second: float) -> Iterator[Item]:
    """Text messages at even distances, but in ticks of 1 ms where more than one is due in that
    time; `per_second` 0 makes a flood.

    Raises:
        ValueError: `per_second` is negative.
    """
    if not per_second >= 0:
        raise ValueError(f"the rate must be 0 or above, not {per_second}")
    if per_second == 0:
        return ((0, True, message) for message in messages)
    distance_ns = 1e9 / per_second
    tick_ns = _TICK_NS if distance_ns < _TICK_NS else 1
    return (
        (int(number * distance_ns) // tick_ns * tick_ns, True, message)
        for number, message in enumerate(messages)
    )


def repeated(source: Source) -> Iterator[Item]:
    """`source` again and again without end, each round due from the end of the one before; ends
    only if a round is empty."""
    start_ns = 0
    while True:
        last_ns = None
        for due_ns, is_text, payload in source():
            last_ns = start_ns + due_ns
            yield last_ns, is_text, payload
        if last_ns is None:
            return
        start_ns = last_ns
