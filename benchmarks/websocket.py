"""A WebSocket server for benchmarks, and whoever receives from it: what the scenarios share.

The server is a process of its own that does the handshake by hand and then writes blocks of frames
made beforehand, so that the receivers are what is measured. A frame that tells how many messages
there were ends it, then a close frame. It answers no pings, so nobody sends any.

A round is 1280 text messages of 200 bytes. All receivers of them check the same: of each payload
the last byte, which is its number modulo 64, so that none is lost, doubled or out of order; each
64th payload whole, which has its number modulo 1280; and at the end the count. They do it where
they receive, for a call would cost more than that. Where every receiver pays for it alike, at a
fixed rate or with other messages, each payload is handed to a function instead: `feed_each` and the
others named so.

Who does what with a frame:

* ringcast: the manager receives into the ring; workers take each message and its memoryview in a
  `for` loop, or batches as numpy arrays.
* bare: a blocking recv_into() of up to 256 KiB that only counts bytes: what the kernel allows.
* websocket-client: recv_data() in a loop, blocking; a bytes object each.
* picows: a callback that takes the payload's memoryview.
* websockets: its asyncio client, recv(decode=False) in a loop; a bytes object each. Neither
  compression nor pings, nor a limit of its queue, which costs it more than it saves.
* aiohttp: receive() in a loop with decode_text=False; a bytes object and a tuple each.

The last three are on uvloop if that is installed, picows with aiofastnet if that is.
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
import math
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Concatenate, Final, Literal, ParamSpec

import numpy as np
import websocket

import ringcast
from ringcast import shm
from ringcast.broker.config import Config
from ringcast.broker.manager import Manager
from ringcast.shm import broadcast

from .method import Channel, Crew, RunFailedError, crew

SIZE: Final = 200
BLOCK: Final = 1280
"""Messages of a round; a multiple of SAMPLE."""
SAMPLE: Final = 64
TICK_NS: Final = 1_000_000
BATCH: Final = 4096
LOOK: Final = 16384
"""Messages after which the worker that checks looks in again: a quarter of the ring."""
LOOK_S_MOST: Final = 0.02
BUFFER: Final = 256 << 10
CAPACITY: Final = 16 << 20
"""Bytes of a ring: as many as 65,536 such messages need."""
EVENTS_BEFORE: Final = 2
"""Records before the first message: connecting, connected."""
CLIENTS_MOST: Final = 16
_AHEAD_S_MOST: Final = 0.5

_FILLER: Final = b"x" * (SIZE - 10)
_PAYLOADS: Final = [b"%09d%b%c" % (i, _FILLER, i % SAMPLE) for i in range(BLOCK)]
_CLOSE: Final = b"\x88\x02\x03\xe8"

_RECORD_TYPE: Final = np.dtype([("most", "u1", SIZE - 1), ("last", "u1")])
_EXPECTED: Final = np.frombuffer(
    b"".join(_PAYLOADS) * (BATCH // BLOCK + 2), _RECORD_TYPE
)  # a batch of any length, starting anywhere in a block
_LASTS: Final = _EXPECTED["last"].copy()

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ABSENT: Final = "not installed, so nothing is compared with it: pip install 'ringcast[bench]'"

Pieces = Sequence[bytes]
"""What makes one write; over TLS each piece is a record."""

Receiver = Callable[[Channel, "Place"], None]
Take = Callable[[bytes | memoryview], bool]
"""Told each payload; are there more to come?"""
Params = ParamSpec("Params")


def frame(payload: bytes, *, is_text: bool = True) -> bytes:
    """A message in one frame, as a server sends it."""
    first = 0x81 if is_text else 0x82
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


_FRAMES: Final = [frame(payload) for payload in _PAYLOADS]
_FRAME_SIZE: Final = len(_FRAMES[0])


def pieces(frames_each: int) -> Pieces:
    """A round, so many frames a piece."""
    return [b"".join(_FRAMES[i : i + frames_each]) for i in range(0, BLOCK, frames_each)]


def _end_payload(count: int) -> bytes:
    return b"end %012d~" % count  # "~" is no number modulo SAMPLE


_END_SIZE: Final = 2 + len(_end_payload(0)) + len(_CLOSE)


# ---- places --------------------------------------------------------------------------------


def pin(core: Literal["first", "last"]) -> None:
    """Keep this process on one core: the server on the first."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0 if core == "first" else -1]})


def on_last_core(
    channel: Channel,
    target: Callable[Concatenate[Channel, Params], None],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> None:
    """Run `target` there: with two cores or more one that is not the server's."""
    pin("last")
    target(channel, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of the server's certificate for 127.0.0.1, which signs itself, and of its key."""

    chain: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
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
class Place:
    """Where the server listens, and its certificate if it speaks TLS."""

    port: int
    certificate: Certificate | None = None

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

    def send(self, data: Pieces) -> None:
        """Send pieces: each in one write, or over TLS each as a record and all in one write."""
        if self._tls is not None:
            self.send_encrypted(self.encrypt(data))
            return
        for piece in data:
            self._sock.sendall(piece)

    def encrypt(self, data: Pieces) -> bytes:
        """What `send` would send over TLS, for `send_encrypted`, in the order of encryption."""
        assert self._tls is not None
        write = self._tls.write
        for piece in data:
            write(piece)
        return self._outgoing.read()

    def send_encrypted(self, data: bytes) -> None:
        """Send what `encrypt` returned, in one write."""
        self._sock.sendall(data)

    def end(self, count: int) -> None:
        """Tell the count and say goodbye."""
        self.send([frame(_end_payload(count)) + _CLOSE])
        self._sock.shutdown(socket.SHUT_WR)

    def wait(self) -> None:
        """Wait until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while self._sock.recv(BUFFER):
                pass
        self._sock.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What the server sends.

    Attributes:
        seconds: for how long.
        block: what is sent over and over.
        messages: how many those are.
        certificate: to speak TLS.
        ahead: over TLS, messages a second of the run that are encrypted before the first is sent,
            in at most half a second of it.
        per_tick: so many of a round's messages each millisecond instead; 0 for as fast as the
            slowest receives.
    """

    seconds: float
    block: Pieces = (b"".join(_FRAMES),)
    messages: int = BLOCK
    certificate: Certificate | None = None
    ahead: float = 0.0
    per_tick: int = 0

    @property
    def ticks(self) -> int:
        """How many there are."""
        return max(1, round(self.seconds * 1e9 / TICK_NS))

    @contextlib.contextmanager
    def begin(self, clients: int) -> Iterator[tuple[Crew, Channel, Place]]:
        """A crew with the server in it, the server's channel, and where it listens."""
        with (
            socket.create_server(("127.0.0.1", 0), backlog=CLIENTS_MOST) as listener,
            crew(self.seconds) as group,
        ):
            place = Place(listener.getsockname()[1], self.certificate)
            server = group.start(_serve, listener, place, self, clients)
            yield group, server, place


def _flood(sinks: Sequence[_Sink], load: Load) -> int:
    sent = 0
    end = time.monotonic() + load.seconds
    while time.monotonic() < end:
        for sink in sinks:
            sink.send(load.block)
        sent += load.messages
    return sent


def _flood_encrypted(sink: _Sink, load: Load) -> int:
    blocks = max(1, round(min(load.seconds, _AHEAD_S_MOST) * load.ahead / load.messages))
    for data in [sink.encrypt(load.block) for _ in range(blocks)]:
        sink.send_encrypted(data)
    return blocks * load.messages


def _trickle(sinks: Sequence[_Sink], load: Load, began_ns: int) -> int:
    """A tick's messages each time it is due; late ones follow at once."""
    each = load.per_tick
    frames = _FRAMES * (math.lcm(each, BLOCK) // BLOCK)
    ticks = [b"".join(frames[i : i + each]) for i in range(0, len(frames), each)]
    due = began_ns
    for _, piece in zip(range(load.ticks), itertools.cycle(ticks), strict=False):
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        for sink in sinks:
            sink.send([piece])
        due += TICK_NS
    return load.ticks * each


def _serve(
    channel: Channel, listener: socket.socket, place: Place, load: Load, clients: int
) -> None:
    """Send the same to so many clients, when all have come. Tells `sent`, how many messages to
    each; `cpu`, the seconds that took; `began_ns`, when the first tick was due (CLOCK_MONOTONIC).
    """
    pin("first")
    context = place.certificate.server_context() if place.certificate is not None else None
    sinks = [_Sink(listener.accept()[0], context) for _ in range(clients)]
    cpu = time.process_time()
    began_ns = time.monotonic_ns() + TICK_NS
    if load.per_tick:
        sent = _trickle(sinks, load, began_ns)
    elif context is not None:
        sent = _flood_encrypted(sinks[0], load)
    else:
        sent = _flood(sinks, load)
    cpu = time.process_time() - cpu
    for sink in sinks:
        sink.end(sent)
    for sink in sinks:
        sink.wait()
    channel.tell({"sent": sent, "cpu": cpu, "began_ns": began_ns})


# ---- checking ------------------------------------------------------------------------------


class Tally:
    """Counts the payloads that come and checks them. Whoever receives counts itself, compares the
    last byte itself, for a call would cost more than that, and asks for the rest."""

    def __init__(self) -> None:
        self.count = 0
        self.began_ns = 0
        self.ended_ns = 0
        self.cpu_before = 0.0
        self.cpu_after = 0.0

    def begin(self) -> None:
        """Note the time of the first message."""
        self.began_ns = time.time_ns()
        self.cpu_before = time.process_time()

    def sample(self, payload: bytes | memoryview, count: int) -> None:
        """Check a payload whole, number `count`, whose last byte is 0."""
        if not count:
            self.begin()
        if payload != _PAYLOADS[count % BLOCK]:
            raise RunFailedError(f"message {count} is not what was sent: {bytes(payload)!r}")

    def end(self, payload: bytes | memoryview, count: int) -> None:
        """Check that a payload that is not the one that is due is the end."""
        self.ended_ns = time.time_ns()
        self.cpu_after = time.process_time()
        self.count = count
        if payload != _end_payload(count):
            raise RunFailedError(f"message {count} is not what was sent: {bytes(payload)!r}")

    def take(self, payload: bytes | memoryview) -> bool:
        """Check a payload of the round; are there more to come?"""
        last = payload[-1]
        if last != self.count % SAMPLE:
            self.end(payload, self.count)
            return False
        if not last:
            self.sample(payload, self.count)
        self.count += 1
        return True

    def tell(self, channel: Channel) -> None:
        """Tell the count, messages a second, and the CPU time between the first and the end."""
        if not self.ended_ns:
            raise RunFailedError(f"the flood did not end; {self.count} messages came")
        seconds = max(1, self.ended_ns - self.began_ns) / 1e9
        channel.tell(
            {
                "count": self.count,
                "rate": self.count / seconds,
                "cpu": self.cpu_after - self.cpu_before,
                "began_ns": self.began_ns,
                "ended_ns": self.ended_ns,
            }
        )


def collect(
    server: Channel, receivers: Sequence[Channel]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """What the receivers tell, and what the server tells; each was sent as much as it got."""
    told = [receiver.hear() for receiver in receivers]
    served = server.hear()
    if any(one["count"] != served["sent"] for one in told):
        counts = [one["count"] for one in told]
        raise RunFailedError(f"{served['sent']} messages were sent, and {counts} got")
    return told, served


# ---- clients, each with a connection of its own --------------------------------------------


def _connect(place: Place) -> websocket.WebSocket:
    ws = websocket.WebSocket()
    ws.connect(place.url, http_no_proxy=["*"])  # type: ignore[no-untyped-call]
    return ws


def bare(channel: Channel, place: Place) -> None:
    """Count bytes."""
    tally = Tally()
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


def websocket_client(channel: Channel, place: Place) -> None:
    """Call recv_data() in a loop."""
    tally = Tally()
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


def websocket_client_each(place: Place, take: Take) -> None:
    """Call recv_data() in a loop."""
    ws = _connect(place)
    receive = ws.recv_data
    while take(receive()[1]):
        pass
    ws.close()


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run it on the fastest loop there is."""
    if importlib.util.find_spec("uvloop") is not None:
        new_loop = importlib.import_module("uvloop").new_event_loop
    else:
        new_loop = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main)


def picows(channel: Channel, place: Place) -> None:
    """Take memoryviews in picows's callback."""
    import picows

    text = picows.WSMsgType.TEXT
    tally = Tally()

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

    _run(_listen(place, Listener))
    tally.tell(channel)


def picows_each(place: Place, take: Take) -> None:
    """Take memoryviews in picows's callback."""
    import picows

    kinds = (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY)

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type not in kinds:
                transport.disconnect()
                return
            take(frame.get_payload_as_memoryview())

    _run(_listen(place, Listener))


async def _listen(place: Place, listener: Callable[[], Any]) -> None:
    import picows

    context = place.certificate.client_context() if place.certificate is not None else None
    transport, _ = await picows.ws_connect(listener, place.url, ssl_context=context)
    await transport.wait_disconnected()


def _open_websockets(place: Place) -> Any:
    from websockets.asyncio.client import connect

    return connect(
        place.url, compression=None, ping_interval=None, max_size=None, max_queue=None, proxy=None
    )


def websockets(channel: Channel, place: Place) -> None:
    """Call recv() of websockets' asyncio client in a loop; without TLS."""
    tally = Tally()

    async def main() -> None:
        async with _open_websockets(place) as connection:
            receive = connection.recv
            for count in itertools.count():
                payload = await receive(decode=False)
                last = payload[-1]
                if last != count % SAMPLE:
                    tally.end(payload, count)
                    break
                if not last:
                    tally.sample(payload, count)

    _run(main())
    tally.tell(channel)


def websockets_each(place: Place, take: Take) -> None:
    """Call recv() of websockets' asyncio client in a loop; without TLS."""

    async def main() -> None:
        async with _open_websockets(place) as connection:
            receive = connection.recv
            while take(await receive(decode=False)):
                pass

    _run(main())


def aiohttp(channel: Channel, place: Place) -> None:
    """Call receive() of aiohttp's client in a loop; without TLS."""
    import aiohttp

    tally = Tally()

    async def main() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(place.url, max_msg_size=0, decode_text=False) as connection,
        ):
            receive = connection.receive
            for count in itertools.count():
                payload = (await receive()).data
                last = payload[-1]
                if last != count % SAMPLE:
                    tally.end(payload, count)
                    break
                if not last:
                    tally.sample(payload, count)

    _run(main())
    tally.tell(channel)


# ---- ringcast ------------------------------------------------------------------------------


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


def manage(channel: Channel, place: Place, name: str, capacity: int = CAPACITY) -> None:
    """Be the manager; tell when workers can attach, hear that they have, and tell the CPU time from
    the connection's beginning to its end, and the times of both."""
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
        ping_interval=None,
        drain_timeout=channel.deadline_s,
        capacity=capacity,
    )
    Manager(config).run(on_ready=ready)
    channel.tell(
        {
            "cpu": at.seconds["disconnected"] - at.seconds["connected"],
            "connected_ns": at.at_ns["connected"],
            "disconnected_ns": at.at_ns["disconnected"],
        }
    )


def _check_batch(tally: Tally, batch: broadcast.Batch) -> None:
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
            tally.take(batch.payload(i))
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


def _check_some(tally: Tally, feed: ringcast.Feed) -> bool:
    """Check a batch, if there is any; might there be more?"""
    with feed.batch(BATCH, timeout=0) as batch:
        if batch:
            _check_batch(tally, batch)
        return len(batch) == BATCH


def check_all(channel: Channel, name: str) -> None:
    """Be the worker that looks in now and then and checks everything."""
    tally = Tally()
    pause = 0.001
    with ringcast.attach(name) as feed:
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


def check_last(channel: Channel, name: str) -> None:
    """Be the worker that checks, when all is over, what is left in the ring; tell when the last
    message came and which number it had."""
    tally = Tally()
    with ringcast.attach(name, policy="lossy", start="oldest") as feed:
        channel.tell()
        channel.hear()  # the manager has ended
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(BATCH) as batch:
                    if not tally.count:
                        tally.count = batch.first - EVENTS_BEFORE
                    _check_batch(tally, batch)
                    tally.ended_ns = int(batch.descriptors["time_ns"][-1])  # when it was received
    tally.tell(channel)


def work(channel: Channel, name: str) -> None:
    """Be a worker that takes each message's memoryview."""
    tally = Tally()
    count = 0
    with ringcast.attach(name) as feed:
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


def work_in_batches(channel: Channel, name: str) -> None:
    """Be a worker that takes what is there, in place, as often as something is."""
    tally = Tally()
    with ringcast.attach(name) as feed:
        channel.tell()
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(BATCH) as batch:
                    _check_batch(tally, batch)
    tally.tell(channel)


def feed_each(channel: Channel, name: str, take: Take) -> None:
    """Be a worker that takes each message's memoryview."""
    with ringcast.attach(name) as feed:
        channel.tell()
        for message in feed:
            if not take(message.payload):
                return


# ---- what is installed ---------------------------------------------------------------------


def versions(*peers: str) -> dict[str, str]:
    """Versions of what is compared and of what they run on; says what is not installed."""
    absent = dict.fromkeys(peers, _ABSENT) | {"uvloop": "none", "aiofastnet": "none"}
    return {
        name: metadata.version(name) if is_installed(name) else text
        for name, text in absent.items()
    }


def is_installed(peer: str) -> bool:
    """Is it? Then it is imported here, once, and not in each child."""
    parts = {"websocket-client": ("websocket",), "websockets": ("websockets", "asyncio.client")}
    package, *rest = parts.get(peer, (peer,))
    if importlib.util.find_spec(package) is None:
        return False
    importlib.import_module(".".join((package, *rest)))
    return True
