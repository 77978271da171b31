"""Receiving a WebSocket flood: ringcast's manager against other clients, plain and over TLS.

One server for all: a process of its own that does the handshake by hand and then sends a block of
1280 text frames of 200 bytes, made beforehand, over and over, each time 255 KiB in one write. A
frame that tells how many there were ends it, then a close frame.

Over TLS, what one SSL_write got is one record; 64 frames each make large records, one frame each
makes small ones, as a server does that sends each message when it has it. Encrypting those takes a
server as long as decrypting takes a client, so all is encrypted before the first is sent: as many
blocks as a fast client takes in the run's seconds, or in half a second if that is less, which
bounds the memory.

Who does what with a frame:

* ringcast: the whole manager, in a process of its own, receives into a ring of 16 MiB, as large as
  65,536 such messages need; once more into one of 64 MiB, the default, which no cache holds. What
  the ring still has at the end is checked then, and the number of all. "Checked" is the same with a
  worker that checks all of it meanwhile, on the manager's core, so the checking counts: it looks in
  when about a quarter of the ring is new to it, 20 ms apart at most, and reads batches as arrays.
* bare: a blocking recv_into() of up to 256 KiB that only counts bytes: what the kernel allows.
* websocket-client: recv_data() in a loop, blocking.
* picows: a callback that takes the payload's memoryview; on uvloop if that is installed, and with
  aiofastnet if that is.

All check the same: of each payload the last byte, which is its number modulo 64, so that none is
lost, doubled or out of order; each 64th payload whole, which has its number modulo 1280; and at
the end the count. Only bare sees no frames: its bytes are counted and divided.

A rate is taken from the first receive to the last. On two cores or more the server has the first
one to itself and the receivers share the last one; with fewer, all share one.

The price of four: CPU time, user and system, of the manager and four workers together, which take
each message and its memoryview in a `for` loop, against that of four processes with a picows
connection each; from the first message to the last, by message and worker. Once at a rate
with which both keep up, 128 messages each millisecond, once as fast as the slowest receives; and
that again with workers that take batches, as numpy arrays, which picows has nothing like.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib
import importlib.util
import itertools
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import websocket

import broker
import shm
from broker.config import Config
from broker.manager import Manager
from shm import broadcast

from .method import (
    Channel,
    Crew,
    Figure,
    Report,
    RunFailedError,
    crew,
    describe_machine,
    interleave,
    ratio,
)

Kind = Literal["plain", "64 a record", "1 a record"]

SIZE: Final = 200
BLOCK: Final = 1280
"""Messages whose contents differ, sent over and over; a multiple of SAMPLE, RECORD and TICK."""
SAMPLE: Final = 64
RECORD: Final = 64
"""Frames in a large TLS record, of which 16 KiB is the most."""
TICK: Final = 128
TICK_S: Final = 0.001
WORKERS: Final = 4
BATCH: Final = 4096
LOOK: Final = 16384
"""Messages after which the worker that checks looks in again: a quarter of the ring."""
LOOK_S_MOST: Final = 0.02
BUFFER: Final = 256 << 10
EVENTS_BEFORE: Final = 2
"""Records before the first message: connecting, connected."""
CAPACITY: Final = 16 << 20
DEFAULT_CAPACITY: Final = 64 << 20

_AHEAD: Final[dict[Kind, float]] = {"64 a record": 4e6, "1 a record": 1e6}
"""Messages a second that are encrypted before they are sent."""
_AHEAD_S_MOST: Final = 0.5

_FILLER: Final = b"x" * (SIZE - 10)
_PAYLOADS: Final = [b"%09d%b%c" % (i, _FILLER, i % SAMPLE) for i in range(BLOCK)]
_FRAMES: Final = [b"\x81\x7e" + SIZE.to_bytes(2, "big") + payload for payload in _PAYLOADS]
_FRAME_SIZE: Final = len(_FRAMES[0])
_CLOSE: Final = b"\x88\x02\x03\xe8"

_RECORD_TYPE: Final = np.dtype([("most", "u1", SIZE - 1), ("last", "u1")])
_EXPECTED: Final = np.frombuffer(
    b"".join(_PAYLOADS) * (BATCH // BLOCK + 2), _RECORD_TYPE
)  # a batch of any length, starting anywhere in a block
_LASTS: Final = _EXPECTED["last"].copy()

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NO_PICOWS: Final = "not installed, so nothing is compared with it: pip install 'ringcast[bench]'"

Pieces = Sequence[bytes]
"""What makes one write; over TLS each piece is a record."""

_numbers = itertools.count()


def _pieces(frames_each: int, frames: Sequence[bytes] = _FRAMES) -> Pieces:
    return [b"".join(frames[i : i + frames_each]) for i in range(0, len(frames), frames_each)]


_BLOCKS: Final[dict[Kind, Pieces]] = {
    "plain": _pieces(BLOCK),
    "64 a record": _pieces(RECORD),
    "1 a record": _pieces(1),
}
_TICKS: Final = [[piece] for piece in _pieces(TICK)]


def _end_payload(count: int) -> bytes:
    return b"end %012d~" % count  # "~" is no number modulo SAMPLE


_END_SIZE: Final = 2 + len(_end_payload(0)) + len(_CLOSE)


# ---- places --------------------------------------------------------------------------------


def _pin(who: Literal["server", "receiver"]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0] if who == "server" else cores[-1]})


@contextlib.contextmanager
def _ring_name() -> Iterator[str]:
    """Name of a ring that nobody else uses; what a dead child leaves of it is removed."""
    name = f"ingest{os.getpid()}-{next(_numbers)}"
    try:
        yield name
    finally:
        with contextlib.suppress(shm.RingNotFound):
            shm.unlink(name)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """Files of the server's certificate for 127.0.0.1, which signs itself, and of its key."""

    chain: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> _Certificate:
        """Have openssl make them."""
        openssl = shutil.which("openssl")
        if openssl is None:
            raise RunFailedError("the program openssl, which makes the certificate, is not there")
        made = cls(folder / "chain.pem", folder / "key.pem")
        command = [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=ringcast benchmark"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(made.key), "-out", str(made.chain)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RunFailedError(f"openssl made no certificate: {done.stderr}")
        return made

    def server_context(self) -> ssl.SSLContext:
        """For the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For clients, which check it."""
        return ssl.create_default_context(cafile=self.chain)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the server listens, and its certificate if it speaks TLS."""

    port: int
    certificate: _Certificate | None

    @property
    def url(self) -> str:
        """For clients."""
        return f"{'ws' if self.certificate is None else 'wss'}://127.0.0.1:{self.port}/"


# ---- the server ----------------------------------------------------------------------------


class _Sink:
    """The server's end of one connection, its handshakes done. TLS is done in memory, so a write
    is as large as without it."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is not None:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self._pump(self._tls.do_handshake)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self._receive()
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
        if key is None:
            raise RunFailedError(f"this is no WebSocket handshake: {request!r}")
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID, usedforsecurity=False).digest())
        self.send(
            [
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            ]
        )

    def _pump(self, step: Callable[[], Any]) -> Any:
        """Do a step of TLS, which may have to receive and send."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                received = self._sock.recv(BUFFER)
                if not received:
                    raise RunFailedError("the client has gone") from None
                self._incoming.write(received)
            finally:
                self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def _receive(self) -> bytes:
        tls = self._tls
        if tls is not None:
            data: bytes = self._pump(lambda: tls.read(BUFFER))
        else:
            data = self._sock.recv(BUFFER)
        if not data:
            raise RunFailedError("the client has gone")
        return data

    def send(self, pieces: Pieces) -> None:
        """Send pieces: each in one write, or over TLS each as a record and all in one write."""
        if self._tls is not None:
            self.send_encrypted(self.encrypt(pieces))
            return
        for piece in pieces:
            self._sock.sendall(piece)

    def encrypt(self, pieces: Pieces) -> bytes:
        """What `send` would send over TLS, for `send_encrypted`, in the order of encryption."""
        assert self._tls is not None
        write = self._tls.write
        for piece in pieces:
            write(piece)
        return self._outgoing.read()

    def send_encrypted(self, data: bytes) -> None:
        """Send what `encrypt` returned, in one write."""
        self._sock.sendall(data)

    def end(self, count: int) -> None:
        """Tell the count, say goodbye, and wait until the client has closed."""
        payload = _end_payload(count)
        self.send([bytes([0x81, len(payload)]) + payload + _CLOSE])
        self._sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while self._sock.recv(BUFFER):
                pass
        self._sock.close()


def _flood(sinks: Sequence[_Sink], block: Pieces, seconds: float) -> int:
    sent = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for sink in sinks:
            sink.send(block)
        sent += BLOCK
    return sent


def _flood_encrypted(sink: _Sink, kind: Kind, seconds: float) -> int:
    blocks = max(1, round(min(seconds, _AHEAD_S_MOST) * _AHEAD[kind] / BLOCK))
    for data in [sink.encrypt(_BLOCKS[kind]) for _ in range(blocks)]:
        sink.send_encrypted(data)
    return blocks * BLOCK


def _trickle(sinks: Sequence[_Sink], seconds: float) -> int:
    """A tick's messages each time it is due; late ones follow at once."""
    ticks = max(1, round(seconds / TICK_S))
    due = time.monotonic()
    for _, pieces in zip(range(ticks), itertools.cycle(_TICKS), strict=False):
        due += TICK_S
        time.sleep(max(0.0, due - time.monotonic()))
        for sink in sinks:
            sink.send(pieces)
    return ticks * TICK


def _serve(
    channel: Channel,
    listener: socket.socket,
    place: _Place,
    kind: Kind,
    clients: int,
    seconds: float,
    paced: bool,
) -> None:
    """Send the same to so many clients, when all have come; tell how many messages to each."""
    _pin("server")
    context = place.certificate.server_context() if place.certificate is not None else None
    sinks = [_Sink(listener.accept()[0], context) for _ in range(clients)]
    if paced:
        sent = _trickle(sinks, seconds)
    elif context is not None:
        sent = _flood_encrypted(sinks[0], kind, seconds)
    else:
        sent = _flood(sinks, _BLOCKS[kind], seconds)
    for sink in sinks:
        sink.end(sent)
    channel.tell(sent)


# ---- checking ------------------------------------------------------------------------------


class _Tally:
    """Counts the payloads that come and checks them. Whoever receives counts itself, compares the
    last byte itself, for a call would cost more than that, and asks for the rest."""

    def __init__(self) -> None:
        self.count = 0
        self.began_ns = 0
        self.ended_ns = 0
        self.cpu_before = 0.0
        self.cpu_after = 0.0

    def sample(self, payload: bytes | memoryview, count: int) -> None:
        """Check a payload whole, number `count`, whose last byte is 0."""
        if not count:
            self.began_ns = time.time_ns()
            self.cpu_before = time.process_time()
        if payload != _PAYLOADS[count % BLOCK]:
            raise RunFailedError(f"message {count} is not what was sent: {bytes(payload)!r}")

    def end(self, payload: bytes | memoryview, count: int) -> None:
        """Check that a payload with another last byte than is due is the end."""
        self.ended_ns = time.time_ns()
        self.cpu_after = time.process_time()
        self.count = count
        if payload != _end_payload(count):
            raise RunFailedError(f"message {count} is not what was sent: {bytes(payload)!r}")

    def tell(self, channel: Channel) -> None:
        """Tell the count, messages a second, and the CPU time between the first and the end."""
        if not self.ended_ns:
            raise RunFailedError(f"the flood did not end; {self.count} messages came")
        seconds = max(1, self.ended_ns - self.began_ns) / 1e9
        cpu = self.cpu_after - self.cpu_before
        rate = self.count / seconds
        ended_ns = self.ended_ns
        channel.tell({"count": self.count, "rate": rate, "cpu": cpu, "ended_ns": ended_ns})


# ---- the receivers -------------------------------------------------------------------------


def _connect(place: _Place) -> websocket.WebSocket:
    ws = websocket.WebSocket()
    ws.connect(place.url, http_no_proxy=["*"])  # type: ignore[no-untyped-call]
    return ws


def _bare(channel: Channel, place: _Place) -> None:
    """Count bytes."""
    _pin("receiver")
    tally = _Tally()
    sock = _connect(place).sock
    assert sock is not None  # connect() raises otherwise
    view = memoryview(bytearray(BUFFER))
    total = sock.recv_into(view)
    tally.began_ns = time.time_ns()
    while received := sock.recv_into(view):
        total += received
        tally.ended_ns = time.time_ns()
    tally.count, rest = divmod(total - _END_SIZE, _FRAME_SIZE)
    if rest:
        raise RunFailedError(f"{total} bytes are no whole number of frames")
    tally.tell(channel)


def _websocket_client(channel: Channel, place: _Place) -> None:
    """Call recv_data() in a loop."""
    _pin("receiver")
    tally = _Tally()
    ws = _connect(place)
    receive = ws.recv_data
    for count in itertools.count():
        _, payload = receive()
        last = payload[-1]
        if last != count % SAMPLE:
            tally.end(payload, count)
            break
        if not last:
            tally.sample(payload, count)
    ws.close()
    tally.tell(channel)


def _picows(channel: Channel, place: _Place) -> None:
    """Take memoryviews in picows's callback."""
    _pin("receiver")
    tally = _Tally()
    if importlib.util.find_spec("uvloop") is not None:
        new_loop = importlib.import_module("uvloop").new_event_loop
    else:
        new_loop = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_picows_main(place, tally))
    tally.tell(channel)


def _picows_main(place: _Place, tally: _Tally) -> Coroutine[Any, Any, None]:
    import picows

    text = picows.WSMsgType.TEXT

    class Listener(picows.WSListener):
        def __init__(self) -> None:
            self.count = 0

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            count = self.count
            payload = frame.get_payload_as_memoryview()
            if frame.msg_type != text:
                transport.disconnect()
                return
            last = payload[-1]
            if last != count % SAMPLE:
                tally.end(payload, count)
                return
            if not last:
                tally.sample(payload, count)
            self.count = count + 1

    async def main() -> None:
        certificate = place.certificate
        context = certificate.client_context() if certificate is not None else None
        transport, _ = await picows.ws_connect(Listener, place.url, ssl_context=context)
        await transport.wait_disconnected()

    return main()


class _CpuAtEvents(logging.Handler):
    """Notes the CPU time at what the manager logs, by event."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.at_ns: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note it, and the time of day."""
        self.seconds[getattr(record, "event", "")] = time.process_time()
        self.at_ns[getattr(record, "event", "")] = time.time_ns()


def _manage(channel: Channel, place: _Place, name: str, capacity: int) -> None:
    """Be the manager; tell when workers can attach, hear that they have, and tell the CPU time from
    the connection's beginning to its end."""
    _pin("receiver")
    at = _CpuAtEvents()
    log = logging.getLogger("ringcast")
    log.setLevel(logging.INFO)
    log.addHandler(at)

    def ready() -> None:
        channel.tell()
        channel.hear()

    ca = place.certificate.chain if place.certificate is not None else None
    config = Config(
        name=name,
        url=place.url,
        ca=ca,
        reconnect=False,
        drain=channel.deadline_s,
        capacity=capacity,
    )
    Manager(config).run(on_ready=ready)
    channel.tell(
        {
            "cpu": at.seconds["disconnected"] - at.seconds["connected"],
            "connected_ns": at.at_ns["connected"],
        }
    )


def _check_batch(tally: _Tally, batch: broadcast.Batch) -> None:
    """Check a batch in place. Where messages are not evenly spaced, which is where the ring begins
    anew, and at the end, one by one."""
    times = batch.descriptors["time_ns"]
    if not tally.count:
        tally.began_ns = int(times[0])
        tally.cpu_before = time.process_time()
    try:
        records = batch.records(_RECORD_TYPE)
    except ValueError:
        for i in range(len(batch)):
            _check_one(tally, batch.payload(i))
    else:
        start = tally.count % BLOCK
        whole = slice(-tally.count % SAMPLE, None, SAMPLE)
        expected = _EXPECTED[start : start + len(batch)]
        if not (
            np.array_equal(records["last"], _LASTS[start : start + len(batch)])
            and records[whole].tobytes() == expected[whole].tobytes()
        ):
            raise RunFailedError(f"after {tally.count} messages come other ones than were sent")
        tally.count += len(batch)
    tally.ended_ns = int(times[-1])


def _check_some(tally: _Tally, feed: broker.Feed) -> bool:
    """Check a batch, if there is any; might there be more?"""
    with feed.batch(BATCH, timeout=0) as batch:
        if batch:
            _check_batch(tally, batch)
        return len(batch) == BATCH


def _check_one(tally: _Tally, payload: memoryview) -> None:
    last = payload[-1]
    if last != tally.count % SAMPLE:
        tally.end(payload, tally.count)
    else:
        if not last:
            tally.sample(payload, tally.count)
        tally.count += 1


def _check_all(channel: Channel, name: str) -> None:
    """Be the worker that looks in now and then and checks everything."""
    _pin("receiver")
    tally = _Tally()
    pause = 0.001
    with broker.attach(name) as feed:
        channel.tell()
        with contextlib.suppress(shm.RingClosed):
            while True:
                before = tally.count
                while _check_some(tally, feed):
                    pass
                if found := tally.count - before:
                    pause = min(pause * min(2.0, LOOK / found), LOOK_S_MOST)
                time.sleep(pause)
    tally.tell(channel)


def _check_last(channel: Channel, name: str) -> None:
    """Be the worker that checks, when all is over, what is left in the ring; tell when the last
    message came and which number it had."""
    _pin("receiver")
    tally = _Tally()
    with broker.attach(name, policy="lossy", start="oldest") as feed:
        channel.tell()
        channel.hear()  # the manager has ended
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(BATCH) as batch:
                    if not tally.count:
                        tally.count = batch.first - EVENTS_BEFORE
                    _check_batch(tally, batch)
    tally.tell(channel)


def _work(channel: Channel, name: str) -> None:
    """Be a worker that takes each message's memoryview."""
    _pin("receiver")
    tally = _Tally()
    count = 0
    with broker.attach(name) as feed:
        channel.tell()
        for message in feed:
            payload = message.payload
            last = payload[-1]
            if last != count % SAMPLE:
                tally.end(payload, count)
                break
            if not last:
                tally.sample(payload, count)
            count += 1
    tally.tell(channel)


def _work_in_batches(channel: Channel, name: str) -> None:
    """Be a worker that takes what is there, in place, as often as something is."""
    _pin("receiver")
    tally = _Tally()
    with broker.attach(name) as feed:
        channel.tell()
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(BATCH) as batch:
                    _check_batch(tally, batch)
    tally.tell(channel)


# ---- runs ----------------------------------------------------------------------------------

Receiver = Callable[[Channel, _Place], None]


@dataclass(frozen=True, slots=True)
class _Run:
    """What the server is told in one run."""

    kind: Kind
    certificate: _Certificate | None
    seconds: float
    paced: bool = False

    @contextlib.contextmanager
    def begin(self, clients: int) -> Iterator[tuple[Crew, Channel, _Place]]:
        """A crew with the server in it, the server's channel, and where it listens."""
        with (
            socket.create_server(("127.0.0.1", 0), backlog=WORKERS) as listener,
            crew(self.seconds) as group,
        ):
            place = _Place(listener.getsockname()[1], self.certificate)
            server = group.start(
                _serve, listener, place, self.kind, clients, self.seconds, self.paced
            )
            yield group, server, place


def _collect(server: Channel, receivers: Sequence[Channel]) -> tuple[list[dict[str, float]], int]:
    """What the receivers tell, and how many messages each was sent, and got."""
    told = [receiver.hear() for receiver in receivers]
    sent: int = server.hear()
    if any(one["count"] != sent for one in told):
        raise RunFailedError(f"{sent} messages were sent, and {[one['count'] for one in told]} got")
    return told, sent


def _client(run: _Run, receive: Receiver, clients: int = 1) -> dict[str, float]:
    """So many clients of one sort; the first one's rate, and the CPU time of all, us by message."""
    with run.begin(clients) as (group, server, place):
        receivers = [group.start(receive, place) for _ in range(clients)]
        told, sent = _collect(server, receivers)
    cpu = sum(one["cpu"] for one in told)
    return {"rate": told[0]["rate"], "cpu": cpu / sent / clients * 1e6}


def _ringcast(
    run: _Run,
    worker: Callable[[Channel, str], None],
    workers: int = 1,
    capacity: int = CAPACITY,
) -> dict[str, float]:
    """The manager and so many workers; the rate, and the CPU time of all, us by message."""
    with _ring_name() as name, run.begin(1) as (group, server, place):
        manager = group.start(_manage, place, name, capacity)
        manager.hear()
        attached = [group.start(worker, name) for _ in range(workers)]
        for channel in attached:
            channel.hear()
        manager.tell()
        told, sent = _collect(server, attached)
        cpu = manager.hear()["cpu"] + sum(one["cpu"] for one in told)
    return {"rate": told[0]["rate"], "cpu": cpu / sent / workers * 1e6}


def _published(run: _Run, capacity: int) -> dict[str, float]:
    """The manager alone: frames a second from the connection's beginning to the last message."""
    with _ring_name() as name, run.begin(1) as (group, server, place):
        manager = group.start(_manage, place, name, capacity)
        manager.hear()
        checker = group.start(_check_last, name)
        checker.hear()
        manager.tell()
        began_ns = manager.hear()["connected_ns"]
        checker.tell()
        (told,), sent = _collect(server, [checker])
    return {"rate": sent / (told["ended_ns"] - began_ns) * 1e9}


# ---- the scenario --------------------------------------------------------------------------


def _peers() -> dict[str, str]:
    """Versions of what is compared; what is not installed is said to be so."""
    found = {"websocket-client": metadata.version("websocket-client")}
    for name, absent in (("picows", _NO_PICOWS), ("uvloop", "none"), ("aiofastnet", "none")):
        installed = importlib.util.find_spec(name) is not None
        found[name] = metadata.version(name) if installed else absent
    return found


def _runs(
    seconds: float, certificate: _Certificate, with_picows: bool
) -> list[Callable[[], dict[str, float]]]:
    plain = _Run("plain", None, seconds)
    large = _Run("64 a record", certificate, seconds)
    small = _Run("1 a record", certificate, seconds)
    paced = _Run("plain", None, seconds, paced=True)

    def part(what: str, name: str, measured: Callable[[], dict[str, float]]) -> Any:
        return lambda: {name: measured()[what]}

    ours = [
        part("rate", "ringcast", lambda: _published(plain, CAPACITY)),
        part("rate", "default-ring", lambda: _published(plain, DEFAULT_CAPACITY)),
        part("rate", "checked", lambda: _ringcast(plain, _check_all)),
        part("rate", "bare", lambda: _client(plain, _bare)),
        part("rate", "websocket-client", lambda: _client(plain, _websocket_client)),
        part("rate", "large ringcast", lambda: _ringcast(large, _check_all)),
        part("rate", "small ringcast", lambda: _ringcast(small, _check_all)),
        part("cpu", "paced ringcast", lambda: _ringcast(paced, _work, WORKERS)),
        part("cpu", "flood ringcast", lambda: _ringcast(plain, _work, WORKERS)),
        part("cpu", "batches ringcast", lambda: _ringcast(plain, _work_in_batches, WORKERS)),
    ]
    if not with_picows:
        return ours
    theirs = [
        part("rate", "picows", lambda: _client(plain, _picows)),
        part("rate", "large picows", lambda: _client(large, _picows)),
        part("rate", "small picows", lambda: _client(small, _picows)),
        part("cpu", "paced picows", lambda: _client(paced, _picows, WORKERS)),
        part("cpu", "flood picows", lambda: _client(plain, _picows, WORKERS)),
    ]
    return [*ours, *theirs]


def measure(seconds: float, repeat: int) -> Report:
    """Run the scenario: each measurement for so many seconds, all of them `repeat` times in turn.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, a process failed, or there is
            no certificate.
    """
    machine = describe_machine()
    peers = _peers()
    with_picows = peers["picows"] != _NO_PICOWS
    if with_picows:
        importlib.import_module("picows")  # here, once, and not in each child
    with tempfile.TemporaryDirectory() as folder:
        certificate = _Certificate.make(Path(folder))
        found = interleave(_runs(seconds, certificate, with_picows), repeat)

    def rates(*names: str) -> list[Figure]:
        return [
            Figure(name.split()[-1], "M/s", tuple(value / 1e6 for value in found[name]))
            for name in names
            if name in found
        ]

    def price(which: str) -> list[Figure]:
        return [
            Figure(f"{text}, {which}", "us", tuple(found[f"{which} {name}"]))
            for text, name in (
                (f"ringcast: manager, {WORKERS} workers", "ringcast"),
                (f"picows: {WORKERS} connections", "picows"),
            )
            if f"{which} {name}" in found
        ]

    def over(
        what: str, peer: str, floor: float, better: Literal["larger", "smaller"] = "larger"
    ) -> list[Figure]:
        """A line with a floor; none if the peer is missing, as the parameters say."""
        if peer not in found:
            return []
        above = found[peer.rpartition(" ")[0] + " ringcast" if " " in peer else "ringcast"]
        return [ratio(what, above, found[peer], floor, better)]

    def batches() -> list[Figure]:
        ours = found["batches ringcast"]
        figures = [Figure("ringcast: batches, flood", "us", tuple(ours))]
        if "flood picows" in found:
            name = "ringcast batches / picows, flood"
            figures.append(ratio(name, ours, found["flood picows"], 0.25, "smaller"))
        return figures

    groups = {
        "frames received, plain": [
            *rates("ringcast", "default-ring", "checked", "bare", "websocket-client", "picows"),
            *over("ringcast / websocket-client", "websocket-client", 50),
            *over("ringcast / picows", "picows", 4),
            *over("ringcast / bare", "bare", 0.8),
            ratio("ringcast, default ring / bare", found["default-ring"], found["bare"]),
            ratio("ringcast, checked / bare", found["checked"], found["bare"]),
        ],
        "over TLS, 64 frames a record": [
            *rates("large ringcast", "large picows"),
            *over("ringcast / picows", "large picows", 1.5),
        ],
        "over TLS, one frame a record": [
            *rates("small ringcast", "small picows"),
            *over("ringcast / picows", "small picows", 1.0),
        ],
        "CPU time by message and worker": [
            *price("paced"),
            *over("ringcast / picows, paced", "paced picows", 0.25, "smaller"),
            *price("flood"),
            *over("ringcast / picows, flood", "flood picows", 0.25, "smaller"),
            *batches(),
        ],
    }
    parameters = {"message_bytes": SIZE, "seconds": seconds, "repeat": repeat, **peers}
    return Report("ingest", parameters, machine, groups)
