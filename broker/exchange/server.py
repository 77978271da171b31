"""A WebSocket server that sends one stream to each client, from the stream's beginning.

It stands in for an exchange: it replays captures and floods. The library's protocol object does
the handshake, reads what clients send, answers pings and echoes a close. The messages are framed
here, so that many go out in one write, which no server with a call per message can do.

    async with Server(lambda: timed(read(path), speed=1.0)) as server:
        print(server.url)
        ...

Every client has a source of its own, whose time starts when the client is there. A message that is
due is sent together with all others that are due. Nothing is dropped for a client that reads
slowly: it falls behind, and its source waits for it.
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

from .captures import Record, extend_digest

__all__ = ["Item", "Server", "Source", "Tally", "at_rate", "repeated", "timed"]

Item = tuple[int, bool, bytes]
"""A message: when it is due, in ns from the stream's start; whether it is text; its payload."""

Source = Callable[[], Iterator[Item]]
"""Begins a stream. Due times do not decrease; those of a flood are all 0."""

_WRITE_BYTES: Final = 64 << 10
"""Frames are gathered until they are this long."""
_READ_BYTES: Final = 64 << 10
_HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds for a client to finish the opening handshake."""
_STOP_TIMEOUT: Final = 10.0
"""Seconds from `stop` until clients that have not closed are cut off."""
_DISCONNECT_TIMEOUT: Final = 1.0
"""Seconds for the last bytes, once both sides have closed."""
_TICK_NS: Final = 1_000_000

# Frame headers (RFC 6455 section 5.2): the first byte, and the lengths that need more than 7 bits.
_FIN_TEXT: Final = 0x81
_FIN_BINARY: Final = 0x82
_LENGTH_7_BITS_MAX: Final = 125
_LENGTH_16_BITS_MAX: Final = 0xFFFF
_LENGTH_IS_16_BITS: Final = 126
_LENGTH_IS_64_BITS: Final = 127
_HEADER_16_BITS: Final = struct.Struct("!BBH")
_HEADER_64_BITS: Final = struct.Struct("!BBQ")


@dataclass(frozen=True, slots=True)
class Tally:
    """What was sent to one client: handed to its socket, which does not mean that it arrived.

    Attributes:
        messages: how many.
        payload_bytes: their bytes, without the frames' headers.
        digest: `captures.extend_digest` over them.
    """

    messages: int = 0
    payload_bytes: int = 0
    digest: int = 0


class Server:
    """Sends a stream to each client. An asynchronous context manager: it listens inside the block
    and stops at its end.

    Args:
        source: begins a stream; called once per client.
        host, port: where to listen; port 0 takes a free one, which `url` has.
        ssl: for wss.
        hold: send nothing to anybody until `release`.
        on_leave: called for each client that leaves, with its address and what was sent to it.

    Raises:
        OSError: on entering: the server cannot listen at that address.
    """

    def __init__(
        self,
        source: Source,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: ssl.SSLContext | None = None,
        hold: bool = False,
        on_leave: Callable[[str, Tally], None] | None = None,
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
        self._stop_ns = 0  # valid once stopped
        self._listener: asyncio.Server | None = None
        self._clients: list[_Client] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(
            self._accept, self._host, self._port, ssl=self._ssl
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
    def sent(self) -> tuple[Tally, ...]:
        """What was sent to each client until now, in the order in which they came; clients that
        left are included."""
        return tuple(client.sent for client in self._clients)

    def release(self) -> None:
        """Begin the streams that `hold` has held back. Their time starts now."""
        self._released.set()

    async def stop(self) -> None:
        """Send what was due before this call, close every client with code 1000, and return when
        all have left. A client that has not closed within 10 s is cut off. A flood, whose messages
        are all due at 0, ends at once.

        Raises:
            Exception: what a source raised, if one did.
        """
        if not self._stopped.is_set():
            self._stop_ns = time.monotonic_ns()
            self._stopped.set()
            self._released.set()
        if self._listener is not None:
            self._listener.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_TIMEOUT)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._listener is not None:
            await self._listener.wait_closed()
        if self._failures:
            raise self._failures.pop(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped.is_set():
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(_Client(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _serve(self, client: _Client) -> None:
        try:
            if not await client.handshake():
                return
            self._clients.append(client)
            try:
                await self._listen_and_send(client)
            finally:
                if self._on_leave is not None:
                    self._on_leave(client.address, client.sent)
        except _ClientGoneError:
            return  # clients come and go: what was sent to it is in `sent`
        finally:
            await client.disconnect()

    async def _listen_and_send(self, client: _Client) -> None:
        """Listen until the client has closed, and send the stream meanwhile."""
        sending = asyncio.create_task(self._send_and_close(client))
        try:
            await client.listen()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, _ClientGoneError):
                await sending

    async def _send_and_close(self, client: _Client) -> None:
        try:
            await self._send_stream(client)
        except Exception:
            client.close(CloseCode.INTERNAL_ERROR)
            raise
        client.close(CloseCode.NORMAL_CLOSURE)

    async def _send_stream(self, client: _Client) -> None:
        await self._released.wait()
        start_ns = time.monotonic_ns()
        elapsed_ns = 0  # at the last look: the clock is read only for what may not be due yet
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


class _ClientGoneError(Exception):
    """The connection to a client is lost, or it did not behave as a client."""


class _Client:
    """One connection: what it receives, and what is sent to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol()
        self._frames: list[bytes] = []
        self._messages = 0
        self._payload_bytes = 0
        self._digest = 0
        self.gathered_bytes = 0
        self.sent = Tally()
        peer = writer.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if peer else "a client that is gone"

    async def handshake(self) -> bool:
        """Open the connection; False if it was refused, because it is not a WebSocket client's."""
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                while True:
                    open_for_more, events = await self._receive()
                    for event in events:
                        if isinstance(event, Request):
                            self._protocol.send_response(self._protocol.accept(event))
                            return self._send() and self._protocol.state is State.OPEN
                    if not open_for_more:
                        return False
        except TimeoutError as error:
            raise _ClientGoneError from error

    async def listen(self) -> None:
        """Answer pings and the close, and drop the messages, until nothing more can come."""
        open_for_more = True
        while open_for_more:
            open_for_more, _ = await self._receive()

    def add(self, is_text: bool, payload: bytes) -> None:
        """Gather one message."""
        length = len(payload)
        first = _FIN_TEXT if is_text else _FIN_BINARY
        if length <= _LENGTH_7_BITS_MAX:
            header = bytes((first, length))
        elif length <= _LENGTH_16_BITS_MAX:
            header = _HEADER_16_BITS.pack(first, _LENGTH_IS_16_BITS, length)
        else:
            header = _HEADER_64_BITS.pack(first, _LENGTH_IS_64_BITS, length)
        self._frames += (header, payload)
        self.gathered_bytes += len(header) + length
        self._messages += 1
        self._payload_bytes += length
        self._digest = extend_digest(self._digest, is_text, payload)

    async def flush(self) -> None:
        """Write what is gathered, and wait until there is room for more."""
        if not self._frames:
            return
        if self._protocol.state is not State.OPEN:
            raise _ClientGoneError  # after a close nothing may be sent
        self._writer.write(b"".join(self._frames))
        self._frames.clear()
        self.gathered_bytes = 0
        self.sent = Tally(self._messages, self._payload_bytes, self._digest)
        await self._drain()
        # While there is room, drain returns at once: let the other tasks run, too.
        await asyncio.sleep(0)

    def close(self, code: CloseCode) -> None:
        """Begin to close, if that has not begun."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code)
            self._send()

    async def disconnect(self) -> None:
        """Give the last bytes a moment, then cut the connection off."""
        self._writer.close()
        try:
            async with asyncio.timeout(_DISCONNECT_TIMEOUT):
                await self._writer.wait_closed()
        except OSError:  # or the time-out, which is one
            self._writer.transport.abort()

    async def _receive(self) -> tuple[bool, list[object]]:
        """Read once. Returns whether more can come, and what came."""
        try:
            data = await self._reader.read(_READ_BYTES)
        except OSError as error:
            raise _ClientGoneError from error
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        events: list[object] = [*self._protocol.events_received()]
        open_for_more = self._send() and bool(data)
        await self._drain()
        return open_for_more, events

    def _send(self) -> bool:
        """Write what the protocol has to send; False if that was its last."""
        for data in self._protocol.data_to_send():
            if data == SEND_EOF:
                return False
            self._writer.write(data)
        return True

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise _ClientGoneError from error


def timed(records: Iterable[Record], speed: float) -> Iterator[Item]:
    """A capture's messages, the first one due at 0, at `speed` times the pace of the capture;
    `math.inf` makes a flood. What the client sent is left out.

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
    """Text messages at even distances, or in ticks of 1 ms if more than one is due in that time;
    `per_second` 0 makes a flood.

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
    """`source` again and again without end, each round due from the end of the one before. It ends
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
