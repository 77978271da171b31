"""A client of the gateway: its handshake, what it sends, and how it ends.

The protocol is `websockets`' (its sans-I/O `ServerProtocol`): bytes in, events and bytes out. What
the ring has goes past it, through the client's outlet; frames of the protocol's own, such as pongs,
go out between those messages.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ringcast import shm

from ..logs import quiet_logger
from ..worker import wire
from ..worker.sending import MessageSender
from ._fanout import Outlet
from .access import Transport
from .options import ClientOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .members import ClientMember

__all__ = ["RECORDS", "Client", "Downward", "Host", "Refused", "Upward"]

RECORDS: Final = Subprotocol("ringcast.1")
"""The subprotocol of clients that want records; see docs/wire.md."""

READ_SIZE: Final = 1 << 16
_REQUEST_END: Final = b"\r\n\r\n"
_UNTAKEN_MOST: Final = 1 << 20
"""Bytes of answers, pongs and the like that a client may leave untaken and still be read from."""
READS: Final = 16
"""Of one client before the others have their turn."""

_log = logging.getLogger(__name__)
_quiet = quiet_logger(__name__)


class Refused(Exception):
    """A client is not let in.

    Args:
        status: of the answer (RFC 9110 section 15).
        reason: what it is told.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Upward:
    """What a client has sent, or one record of it.

    Attributes:
        payload: its bytes.
        is_text: is it text?
        record: what it is, if the client speaks records.
        is_ready: is it as it goes up?
    """

    payload: bytes
    is_text: bool
    record: wire.Record | None = None
    is_ready: bool = False


class Downward(NamedTuple):
    """A message of the gateway's own for a client.

    Attributes:
        payload: its bytes.
        is_text: is it text?
    """

    payload: bytes
    is_text: bool


class Host(Protocol):
    """What a client needs of its gateway."""

    def admit(self, client: Client, request: Request) -> ClientOptions:
        """Let it in and say what it wants, or raise Refused."""

    def open(self, client: Client) -> None:
        """Its handshake is done: give it an outlet, or close it."""

    def received(self, client: Client, sent: Upward) -> Upward | None:
        """It has sent something. Returns what there is no room for now, to be handed in again."""

    def send(self, client: Client) -> None:
        """Its outlet has something to send."""

    def gone(self, client: Client) -> None:
        """It is no more."""


class _Protocol(ServerProtocol):
    """Differs from that of `websockets` in two ways. A close frame may come amid the fragments of a
    message (RFC 6455 section 5.4). And each frame is handed over before the next one is looked at,
    so that what it brings about comes before the answer to a close or to a fault behind it.

    Args:
        received: called with each frame.
    """

    def __init__(self, received: Callable[[Frame], None], *, max_size: int) -> None:
        super().__init__(select_subprotocol=_select, max_size=max_size, logger=_quiet)
        self._received = received

    def recv_frame(self, frame: Frame) -> None:
        """See `websockets.protocol.Protocol`."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)
        self._received(frame)


class Client:
    """One connection.

    Args:
        host: the gateway.
        sock: its socket, non-blocking; closed by this.
        transport: how it is connected.
        header_bytes: the longest request for a handshake.
        message_bytes: the longest message that it may send.
        open_timeout, close_timeout: seconds for the handshake, and for the end.

    Attributes:
        transport: how it is connected, and who it is.
        since_ns: when it came, Unix time.
        sender: its end of the uplink, once it has sent something; closed by this.
        topics: names and patterns of what it wants; None: everything.
        pending: names of what it has asked for as at the exchange, while that is not answered.
        options: what it has asked for in its URL; None before its handshake.
        outlet: its way out; None before its handshake is done.
        member: its place in a work group; None if it is in none.
    """

    def __init__(
        self,
        host: Host,
        sock: socket.socket,
        transport: Transport,
        *,
        header_bytes: int,
        message_bytes: int,
        open_timeout: float,
        close_timeout: float,
    ) -> None:
        self._host = host
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._close_timeout = close_timeout
        self._protocol = _Protocol(self._frame, max_size=message_bytes)
        self._header_room = header_bytes
        self._request_end = b""  # the last bytes of what has come of it
        self._early = bytearray()  # what is to be sent before there is an outlet
        self._message = bytearray()
        self._is_text = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._waiting: list[Upward] = []  # what there was no room for
        self._tickets: list[tuple[int, int]] = []  # not acknowledged yet, with the client's numbers
        self._acknowledging: asyncio.Task[None] | None = None
        self._long: asyncio.Task[int] | None = None  # sends what goes up in parts
        self._pinged: float | None = None
        self._ends = False
        self._end: tuple[int, str] | None = None
        self.transport = transport
        self.since_ns = time.time_ns()
        self.sender: MessageSender | None = None
        self.topics: list[str] | None = None
        self.pending: set[str] = set()
        self.options: ClientOptions | None = None
        self.outlet: Outlet | None = None
        self.member: ClientMember | None = None
        self._timer = self._loop.call_later(open_timeout, self._too_late)
        self._reads = True
        self._has_ended = False  # nothing comes any more
        self._loop.add_reader(self._fd, self._readable)

    @property
    def fd(self) -> int:
        """Its socket's descriptor; -1 once it is closed."""
        return self._fd

    @property
    def records(self) -> bool:
        """Does it get records?"""
        return self._protocol.subprotocol == RECORDS

    @property
    def is_open(self) -> bool:
        """Can messages be sent to it? Not before its handshake, nor once it is being closed."""
        return self._protocol.state is State.OPEN and not self._ends

    # -- what comes

    def _readable(self) -> None:
        for _ in range(READS):
            self.look_whether_to_read()
            if not self._reads or self._fd < 0:
                return
            try:
                data = self._sock.recv(self._read_size())
            except BlockingIOError:
                return
            except OSError as error:
                self.drop(str(error))
                return
            if data and self._opening:
                data = self._receive_request(data)
                if not data:
                    continue
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            self._handle()
            if not data:
                self._has_ended = True
                self.look_whether_to_read()
                if self.outlet is None:
                    self.drop()
                return

    def _read_size(self) -> int:
        """Of a handshake no more is read than it may have."""
        return self._header_room if self._opening else READ_SIZE

    @property
    def _opening(self) -> bool:
        return self._protocol.state is State.CONNECTING and not self._ends

    def _receive_request(self, data: bytes) -> bytes:
        """Some of a handshake. Returns what comes after it, which is for an open connection: the
        protocol would answer it before the handshake."""
        before = len(self._request_end)
        end = (self._request_end + data).find(_REQUEST_END)
        size = len(data) if end < 0 else end + len(_REQUEST_END) - before
        self._request_end = (self._request_end + data)[1 - len(_REQUEST_END) :]
        self._header_room -= size
        self._protocol.receive_data(data[:size])
        self._handle()
        if self._opening and self._header_room <= 0:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._respond(self._protocol.reject(status, "the request is too long\n"))
            self.flush()
        return data[size:]

    def _handle(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._handshake(event)
            if self._fd < 0:
                return
        if self._protocol.handshake_exc is not None and not self._ends:
            self._refused()
        self.flush()

    def _handshake(self, request: Request) -> None:
        try:
            self.options = self._host.admit(self, request)
        except Refused as refused:
            _log.warning("refuses %s: %s", self.transport.peer, refused.reason)
            response = self._protocol.reject(refused.status, f"{refused.reason}\n")
            for name, value in refused.headers:
                response.headers[name] = value
        else:
            response = self._protocol.accept(request)
        self._respond(response)

    def _respond(self, response: Response) -> None:
        self._protocol.send_response(response)
        if self._protocol.state is not State.OPEN:
            self._refused()
            return
        self._timer.cancel()
        self.flush()
        self._host.open(self)
        if self.outlet is not None:
            self.outlet.queue(bytes(self._early))
            self._early.clear()

    def _refused(self) -> None:
        """What is to be said is said; then it ends."""
        self._ends = True
        self._start_timer(self._close_timeout, self.drop)

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pinged = None
            if self.member is not None:
                self.member.ponged(bytes(frame.data))
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
                self._decoder.reset()
            if self._is_text:
                try:
                    self._decoder.decode(frame.data, final=frame.fin)
                except UnicodeDecodeError:
                    self._protocol.fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
                    self._closing()
                    return
            if frame.fin and not self._message:
                self._hand_over(bytes(frame.data))
                return
            self._message += frame.data
            if frame.fin:
                whole = bytes(self._message)
                self._message.clear()
                self._hand_over(whole)

    def _hand_over(self, payload: bytes) -> None:
        if self._ends:
            return
        if not self.records:
            self._take(Upward(payload, self._is_text))
        elif self._is_text:
            self.close(CloseCode.UNSUPPORTED_DATA, f"{RECORDS} has no text frames")
        else:
            try:
                for record in wire.records(payload):
                    self._take(Upward(bytes(record.payload), record.kind == shm.Kind.TEXT, record))
            except wire.WireError as error:
                self.close(CloseCode.INVALID_DATA, str(error))

    def _take(self, sent: Upward) -> None:
        rest = sent if self._waiting else self._host.received(self, sent)
        if rest is not None:
            self._waiting.append(rest)
            self.look_whether_to_read()

    def retry(self) -> None:
        """There may be room for what it has sent."""
        while self._waiting and self._fd >= 0:
            rest = self._host.received(self, self._waiting[0])
            if rest is not None:
                self._waiting[0] = rest
                return
            del self._waiting[:1]
        self.look_whether_to_read()

    def look_whether_to_read(self) -> None:
        """Nothing is read while there is no room for what has come, or while the client does not
        take what it has been answered."""
        reads = not self._waiting and not self._is_stuffed and not self._has_ended
        if self.outlet is not None:
            self.outlet.reports_drained = self._is_stuffed
        if reads and not self._reads and self._fd >= 0:
            self._loop.add_reader(self._fd, self._readable)
        elif self._reads and not reads and self._fd >= 0:
            self._loop.remove_reader(self._fd)
        self._reads = reads

    @property
    def _is_stuffed(self) -> bool:
        return self.outlet is not None and self.outlet.pending > _UNTAKEN_MOST

    def try_send(self, sent: Upward) -> int | None:
        """Send what has come up to the manager; call again with the same until there is a ticket.
        Raises as `MessageSender.asend` does."""
        assert self.sender is not None
        kind: Literal["text", "binary"] = "text" if sent.is_text else "binary"
        if self._long is None:
            with contextlib.suppress(shm.MessageTooLarge):  # in one piece, or at all
                return self.sender.try_send(sent.payload, kind)
            self._long = self._loop.create_task(self.sender.asend(sent.payload, kind, None))
        if not self._long.done():
            return None
        task, self._long = self._long, None
        return task.result()

    # -- what goes

    def flush(self) -> None:
        """Send what the protocol has to say."""
        if self._fd < 0:
            return
        for data in self._protocol.data_to_send():
            if self.outlet is not None and data:
                self.outlet.queue(data)
            else:
                self._early += data  # after an empty one, the end of the stream, nothing comes
        if self._protocol.state is not State.OPEN and self._protocol.state is not State.CONNECTING:
            self._closing()
        if self.outlet is None:
            self._send_early()
        else:
            self._host.send(self)

    def _send_early(self) -> None:
        try:
            if self._early:
                del self._early[: self._sock.send(self._early)]
        except BlockingIOError:
            pass
        except OSError as error:
            self.drop(str(error))
            return
        if self._early:
            self._loop.add_writer(self._fd, self._send_early)
            return
        self._loop.remove_writer(self._fd)
        if self._protocol.eof_sent:
            self._end_of_stream()

    @property
    def label(self) -> str:
        """What it is called in listings."""
        return (self.options and self.options.label) or "gateway"

    def sent_as(self, ticket: int, number: int) -> None:
        """What it numbered so has this ticket: it is told once the manager has sent it on."""
        self._tickets.append((ticket, number))
        if self._acknowledging is None:
            self._acknowledging = self._loop.create_task(self._acknowledge())

    async def _acknowledge(self) -> None:
        while self._tickets and self.sender is not None:
            ticket, number = self._tickets[0]
            try:
                await self.sender.aflush(ticket, None)
            except (shm.RingError, TimeoutError) as error:
                self.refuse(number, str(error))
            else:
                self.acknowledge(number, ticket)
            del self._tickets[:1]
        self._acknowledging = None

    def acknowledge(self, number: int, ticket: int) -> None:
        """What it numbered so is done."""
        self.send_record(wire.Record(wire.RecordType.ACK, sequence=ticket, key=number))

    def refuse(self, number: int, why: str) -> None:
        """What it numbered so is not done."""
        self.send_record(wire.Record(wire.RecordType.REFUSED, why.encode(), key=number))

    def send_record(self, record: wire.Record) -> None:
        """Send a record of the gateway's own."""
        self.send_message(wire.encode(record), is_text=False)

    def send_message(self, payload: bytes, *, is_text: bool) -> None:
        """Send a message of the gateway's own, as a frame."""
        self.send_messages([Downward(payload, is_text)])

    def send_messages(self, messages: Iterable[Downward], ping: bytes | None = None) -> None:
        """Send messages of the gateway's own, each as a frame, and after them a ping, if one is
        given, with this payload."""
        if self._protocol.state is not State.OPEN:
            return
        for message in messages:
            send = self._protocol.send_text if message.is_text else self._protocol.send_binary
            send(message.payload)
        if ping is not None:
            self._protocol.send_ping(ping)
        self.flush()

    def insert_message(self, sequence: int, payload: bytes, kind: int) -> None:
        """Send a message to this client alone, in its place among those of the ring."""
        if self._protocol.state is not State.OPEN or self.outlet is None:
            return
        if self.outlet.pending + self.outlet.inserted > _UNTAKEN_MOST + len(payload):
            self.close(CloseCode.TRY_AGAIN_LATER, "too slow: answers were not taken")
            return
        opcode = Opcode.TEXT if kind == shm.Kind.TEXT else Opcode.BINARY
        frame = Frame(opcode, payload).serialize(mask=False)
        if self.member is None:
            self.outlet.insert(sequence, frame)
        else:  # its messages have no order that this could stand in
            self.outlet.queue(frame)
        self._host.send(self)

    def ping(self, within: float) -> None:
        """Ask whether it lives; one that has not answered since the last time is dropped, if that
        was `within` seconds ago or more."""
        now = time.monotonic()
        if self._waiting:  # nothing is read from it now, its pong neither
            self._pinged = None
            return
        if self._pinged is not None and now - self._pinged >= within:
            self.drop("no pong")
        elif self._pinged is None and self._protocol.state is State.OPEN:
            self._pinged = now
            self._protocol.send_ping(b"rc")
            self.flush()

    # -- its end

    def close(self, code: int, reason: str) -> None:
        """Close it in order, after what is being sent."""
        if self._ends or self._fd < 0:
            return
        if self._protocol.state is not State.OPEN:
            self.drop(reason)
            return
        self._protocol.send_close(code, _fitting(reason))
        _log.info("closes client: %s, %d %s", self.transport.peer, code, reason)
        self._closing()
        self.flush()

    def _closing(self) -> None:
        if self._ends:
            return
        self._ends = True
        if self.member is not None:
            self.member.leave()
        if self.outlet is not None:
            self.outlet.stop(0)
        self._start_timer(self._close_timeout, self.drop)

    def ends_with(self, code: int, reason: str) -> None:
        """It is to be closed once its outlet has stopped."""
        if self._end is None:
            self._end = (code, reason)

    def lapped(self) -> None:
        """Messages went by while it did not take them."""
        if not self.records:
            self.close(CloseCode.TRY_AGAIN_LATER, "too slow: messages went by that were not taken")

    def stopped(self) -> None:
        """Its outlet has sent everything, up to where it stops."""
        if self._end is not None and not self._ends:
            end, self._end = self._end, None  # sending comes back to this
            if self.records:
                self.send_record(wire.Record(wire.RecordType.ENDED, end[1].encode()))
            self.close(*end)
        elif self._ends and self._protocol.state is State.CLOSED:
            self.drop()
        elif self._ends and self._protocol.eof_sent:
            self._end_of_stream()
        elif self.member is not None:
            self.member.has_room()

    def _end_of_stream(self) -> None:
        if self.outlet is not None and self.outlet.pending:
            return  # stopped() comes back
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _start_timer(self, seconds: float, call: Callable[[], None]) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, call)

    def _too_late(self) -> None:
        self.drop("no handshake in time")

    def drop(self, why: str = "") -> None:
        """End it at once."""
        if self._fd < 0:
            return
        if why:
            _log.info("drops client: %s, %s", self.transport.peer, why)
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._fd = -1
        self._ends = True
        self._host.gone(self)
        for task in (self._acknowledging, self._long):
            if task is not None:
                task.cancel()
        if self.sender is not None:
            self.sender.close()
        self._sock.close()


def _select(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return RECORDS if RECORDS in offered else None


def _fitting(reason: str) -> str:
    """A close frame's reason: 123 bytes at most."""
    return reason.encode()[:123].decode("utf-8", "ignore")
