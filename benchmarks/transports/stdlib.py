"""Transports of Python and the kernel: sockets, pipes, queues."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, Final

import posix_ipc

from .base import BATCH_SIZE, LinkSender, Transport

_BUFFER_BYTES: Final = 256 << 10
_HEADER: Final = Struct("<I")
_numbers = itertools.count()


class UnixStream(Transport):
    """A socket pair that carries frames: 4 bytes of length, then the payload."""

    name = "Unix stream"
    copies = (
        "frames are made beforehand; the kernel copies in, and out into the reader's buffer of "
        "256 KiB, of which the reader gets views"
    )

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A pair of sockets."""
        self.sink, self.source = self.pair()
        with self.sink, self.source:
            yield

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends, the sender's first."""
        return socket.socketpair()

    def prepare(self, payloads: Sequence[bytes]) -> list[Any]:
        """Frames."""
        return super().prepare([_HEADER.pack(len(payload)) + payload for payload in payloads])

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """Blocking sends, or sends that are tried until there is room."""
        yield LinkSender(_writing(self.sink, spinning=self.wait == "spin"))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """Frames cut out of large reads."""
        receive_into = _reading(self.source, spinning=self.wait == "spin")
        yield _frames(receive_into, max(_BUFFER_BYTES, 2 * self.size))


def _writing(sink: socket.socket, *, spinning: bool) -> Callable[[Any], object]:
    if not spinning:
        return sink.sendall
    sink.setblocking(False)

    def send(data: bytes) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[sink.send(view) :]

    return send


def _reading(source: socket.socket, *, spinning: bool) -> Callable[[memoryview], int]:
    if not spinning:
        return source.recv_into
    source.setblocking(False)

    def receive_into(view: memoryview) -> int:
        while True:
            try:
                return source.recv_into(view)
            except BlockingIOError:
                continue

    return receive_into


def _frames(receive_into: Callable[[memoryview], int], room: int) -> Iterator[memoryview]:
    """Payloads of the frames that come in. Each is valid until the next is requested."""
    view = memoryview(bytearray(room))
    length_at = _HEADER.unpack_from
    start = end = 0
    while True:
        received = receive_into(view[end:])
        if not received:
            return
        end += received
        while end - start >= 4:
            payload = start + 4
            stop = payload + length_at(view, start)[0]
            if stop > end:
                break
            yield view[payload:stop]
            start = stop
        view[: end - start] = view[start:end]
        start, end = 0, end - start


class UnixStreamGrouped(UnixStream):
    """A Unix stream with many frames per write."""

    name = "Unix stream, batched"
    copies = "the sender joins 64 frames, anew for each reader; otherwise as Unix stream"
    item_messages = BATCH_SIZE

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A write of joined frames. They are joined when they are sent, because only then is it
        known which go together."""
        write = _writing(self.sink, spinning=self.wait == "spin")
        yield LinkSender(lambda item: write(b"".join(item)))


class TcpLoopback(UnixStream):
    """A TCP connection over the loopback device, without Nagle's algorithm."""

    name = "TCP loopback"
    copies = "as Unix stream, through the kernel's network stack"

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends, the sender's first."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sink = socket.create_connection(listener.getsockname())
            source, _ = listener.accept()
        sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sink, source


class UnixSeqpacket(Transport):
    """A socket pair that keeps the boundaries of messages."""

    name = "Unix seqpacket"
    copies = "the kernel copies in, and out into one buffer, of which the reader gets a view"
    many_senders = True

    @classmethod
    def largest(cls) -> int:
        """What the kernel's buffer holds beside its own overhead."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A pair of sockets."""
        self.sink, self.source = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self.sink, self.source:
            yield

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """One send per message."""
        yield LinkSender(_writing(self.sink, spinning=self.wait == "spin"))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """One receive per message."""
        yield _packets(_reading(self.source, spinning=self.wait == "spin"), self.size)


def _packets(receive_into: Callable[[memoryview], int], size: int) -> Iterator[memoryview]:
    view = memoryview(bytearray(size + 1))
    while received := receive_into(view):
        yield view[:received]


class Pipe(Transport):
    """`multiprocessing.Pipe`."""

    name = "multiprocessing.Pipe"
    copies = "the kernel copies in, and out into a new bytes object"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A pair of connections."""
        self.source, self.sink = multiprocessing.Pipe(duplex=False)
        with self.source, self.sink:
            yield

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """send_bytes(), which waits asleep; a pipe offers no other way."""
        yield LinkSender(self.sink.send_bytes)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """recv_bytes(); to spin, only after poll() has found something."""
        receive, poll = self.source.recv_bytes, self.source.poll
        if self.wait == "block":
            yield iter(receive, None)
        else:
            yield (receive() for _ in itertools.count() if poll(0))


class Queue(Transport):
    """`multiprocessing.Queue`."""

    name = "multiprocessing.Queue"
    copies = (
        "a thread of the sender pickles and writes to a pipe, under a lock that all senders share; "
        "the receiver reads and unpickles a new bytes object"
    )
    many_senders = True
    waits = frozenset({"block"})

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A queue of bounded length, so no backlog grows."""
        length = max(16, min(1024, (4 << 20) // self.size))
        self.queue = multiprocessing.get_context("fork").Queue(length)
        yield
        self.queue.close()

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """put()."""
        yield LinkSender(self.queue.put)
        self.queue.close()
        self.queue.join_thread()

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """get()."""
        yield iter(self.queue.get, None)


class PosixQueue(Transport):
    """A POSIX message queue of the kernel's default depth."""

    name = "POSIX message queue"
    copies = "the kernel copies in, and out into a new bytes object"
    many_senders = True

    @classmethod
    def largest(cls) -> int:
        """The kernel's limit."""
        return int(Path("/proc/sys/fs/mqueue/msgsize_max").read_text(encoding="ascii"))

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A queue."""
        name = f"/ringcast-bench{os.getpid()}-{next(_numbers)}"
        self.queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_message_size=self.size)
        try:
            yield
        finally:
            self.queue.close()
            self.queue.unlink()

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """mq_send()."""
        yield LinkSender(self.queue.send)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """mq_receive()."""
        yield _from_queue(self.queue, spinning=self.wait == "spin")


def _from_queue(queue: Any, *, spinning: bool) -> Iterator[bytes]:
    timeout = 0 if spinning else None
    while True:
        try:
            payload, _ = queue.receive(timeout)
        except posix_ipc.BusyError:
            continue
        yield payload
