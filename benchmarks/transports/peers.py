"""Transports of libraries that need no server: ZeroMQ, iceoryx2, kickmsg, faster-fifo."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import itertools
import os
import queue
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .base import BATCH_SIZE, LinkSender, Transport

if TYPE_CHECKING:
    import zmq

_WAIT_S: Final = 1.0
"""Seconds that a wait inside a library lasts at most. Only after it does Python see signals."""
_FRAMES_FROM_BYTES: Final = 256 << 10
"""Size from which on receiving a ZeroMQ frame is faster than receiving bytes. Measured: as fast at
128 B, a third slower at 4 KiB, as fast at 64 KiB, a third faster at 1 MiB."""
_POOL_BYTES: Final = 64 << 20
"""What a pool of messages may take, where that can be chosen."""
_FIFO_BYTES: Final = 4 << 20
_POLL_S: Final = 0.05
"""Seconds after which a sleeping reader of iceoryx2 looks by itself. The event of iceoryx2 0.10
sometimes leaves a reader asleep that has a notification and messages: in 3 of 120 runs with 4
readers."""
_numbers = itertools.count()


def _name() -> str:
    return f"bench{os.getpid()}-{next(_numbers)}"


# ---- ZeroMQ --------------------------------------------------------------------------------


class _Zmq(Transport):
    """A ZeroMQ pattern over a Unix socket."""

    modules = ("zmq",)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A folder for the socket."""
        with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as folder:
            self.address = f"ipc://{folder}/socket"
            yield

    def _sending(self, sink: zmq.Socket[bytes]) -> Callable[[bytes], object]:
        import zmq

        if self.wait == "block":
            return sink.send

        def send(data: bytes) -> None:
            while True:
                try:
                    sink.send(data, zmq.NOBLOCK)
                except zmq.Again:
                    # For 3 million ticks, another try would not see what was read meanwhile.
                    # Getting this option looks at once.
                    sink.get(zmq.EVENTS)
                    continue
                return

        return send

    def _received(self, source: zmq.Socket[bytes]) -> Iterator[Any]:
        import zmq

        copy = self.size < _FRAMES_FROM_BYTES
        if self.wait == "block":
            return iter(partial(source.recv, copy=copy), None)
        return _trying(partial(source.recv, zmq.NOBLOCK, copy), zmq.Again)


def _trying(receive: Callable[[], Any], empty: type[Exception]) -> Iterator[Any]:
    """Yield what a function returns that raises `empty` if there is nothing."""
    while True:
        try:
            message = receive()
        except empty:
            continue
        yield message


@contextlib.contextmanager
def _zmq_socket(kind: str) -> Iterator[zmq.Socket[bytes]]:
    import zmq

    with zmq.Context() as context, context.socket(getattr(zmq, kind)) as socket:
        socket.linger = 0  # otherwise a child that fails would wait for others
        yield socket


class PushPull(_Zmq):
    """ZeroMQ's pipeline pattern."""

    name = "pyzmq PUSH/PULL"
    copies = (
        "the sender copies into a message of zmq, the kernel in and out, and the receiver into new "
        "bytes (from 256 KiB on it looks at the message of zmq); a thread on each side"
    )
    many_senders = True

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A socket that connects. It tries every 0.1 s; until it succeeds, what is sent waits in
        it."""
        import zmq

        with (
            _zmq_socket("PUSH") as sink,
            sink.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as events,
        ):
            sink.connect(self.address)
            yield LinkSender(self._sending(sink), wait_for_receivers=events.recv_multipart)
            sink.disable_monitor()

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """The socket that binds; there is one receiver."""
        with _zmq_socket("PULL") as source:
            source.bind(self.address)
            yield self._received(source)


class PubSub(_Zmq):
    """ZeroMQ's publish and subscribe, set to wait where it would drop messages."""

    name = "pyzmq PUB/SUB"
    copies = (
        "the sender copies once into a message of zmq for all, the kernel in and out for each, "
        "and the receiver as with PUSH/PULL; a thread on each side; XPUB_NODROP"
    )
    fans_out = True

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """An XPUB socket, which receives every subscription."""
        with _zmq_socket("XPUB") as sink:
            sink.xpub_nodrop = True
            sink.xpub_verbose = True  # repeated ones, too
            sink.bind(self.address)
            yield LinkSender(
                self._sending(sink), wait_for_receivers=partial(self._receive_subscriptions, sink)
            )

    def _receive_subscriptions(self, sink: zmq.Socket[bytes]) -> None:
        for _ in range(self.readers):
            sink.recv()

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A SUB socket that takes everything."""
        with _zmq_socket("SUB") as source:
            source.subscribe(b"")
            source.connect(self.address)
            yield self._received(source)


# ---- iceoryx2 ------------------------------------------------------------------------------


class Iceoryx(Transport):
    """Publish-subscribe of iceoryx2. To wait asleep it uses one event per message, as the
    documentation of iceoryx2 recommends."""

    name = "iceoryx2"
    copies = (
        "the sender copies into a loan in shared memory; readers look at it there; an event per "
        "message, through a socket, wakes a sleeping reader, which also looks every 50 ms"
    )
    modules = ("iceoryx2",)
    fans_out = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A folder for its files. What dead children leave of them is removed."""
        prefix = f"{_name()}_"
        try:
            with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as self.folder:
                self.prefix = prefix
                yield
        finally:
            for path in Path("/dev/shm").glob(f"{prefix}*"):
                path.unlink(missing_ok=True)

    def _node(self) -> Any:
        import iceoryx2 as iox

        iox.set_log_level(iox.LogLevel.Error)
        config = iox.config.default()
        config.global_cfg.root_path = iox.Path.new(self.folder)
        config.global_cfg.prefix = iox.FileName.new(self.prefix)
        return (
            iox.NodeBuilder.new()
            .config(config)
            .signal_handling_mode(iox.SignalHandlingMode.Disabled)
            .create(iox.ServiceType.Ipc)
        )

    @property
    def _depth(self) -> int:
        """Number of messages that a reader may be behind."""
        return max(8, min(256, _POOL_BYTES // self.size))

    def _service(self, node: Any) -> Any:
        import iceoryx2 as iox

        return (
            node.service_builder(iox.ServiceName.new("flow"))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(self.readers)
            .max_nodes(self.readers + 1)
            .subscriber_max_buffer_size(self._depth)
            .subscriber_max_borrowed_samples(4)
            .open_or_create()
        )

    def _event(self, node: Any) -> Any:
        import iceoryx2 as iox

        return (
            node.service_builder(iox.ServiceName.new("flow"))
            .event()
            .max_notifiers(1)
            .max_listeners(self.readers)
            .max_nodes(self.readers + 1)
            .open_or_create()
        )

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A publisher, which waits while a reader's buffer is full."""
        import iceoryx2 as iox

        node = self._node()
        publisher = (
            self._service(node)
            .publisher_builder()
            .initial_max_slice_len(self.size)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        loan, memmove = publisher.loan_slice_uninit, ctypes.memmove

        def send(data: bytes) -> None:
            sample = loan(len(data))
            memmove(sample.payload_ptr, data, len(data))
            sample.assume_init().send()

        if self.wait == "spin":
            yield LinkSender(send)
            return
        notifier = self._event(node).notifier_builder().create()

        def send_and_wake(data: bytes) -> None:
            send(data)
            notifier.notify()

        yield LinkSender(send_and_wake)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscriber, and a listener if it waits asleep."""
        import iceoryx2 as iox

        node = self._node()
        receive = self._service(node).subscriber_builder().create().receive
        array = (
            ctypes.c_uint8 * self.size
        ).from_address  # takes a quarter of the time of payload()
        if self.wait == "spin":
            yield _samples(receive, array, lambda: None)
            return
        listener = self._event(node).listener_builder().create()
        yield _samples(
            receive, array, partial(listener.timed_wait, iox.Duration.from_secs_f64(_POLL_S))
        )


def _samples(
    receive: Callable[[], Any], array: Callable[[int], Any], wait: Callable[[], object]
) -> Iterator[Any]:
    while True:
        while (sample := receive()) is not None:
            yield array(sample.payload_ptr)
        wait()


# ---- kickmsg -------------------------------------------------------------------------------


class Kickmsg(Transport):
    """kickmsg: for each reader a ring of references to messages in a pool. A writer that finds a
    ring full discards its oldest message."""

    name = "kickmsg"
    copies = "the sender copies into a slot in shared memory; readers look at it there"
    modules = ("kickmsg",)
    lossy = True
    fans_out = True
    many_senders = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The region, with slots for all that rings and processes can hold, so none is missing."""
        import kickmsg

        self.region = f"/{_name()}"
        config = kickmsg.Config()
        config.max_subscribers = self.readers
        config.sub_ring_capacity = _power_of_two(_POOL_BYTES // self.size // self.readers)
        config.pool_size = self.readers * (config.sub_ring_capacity + 4) + 2 * self.senders
        config.max_payload_size = self.size
        kickmsg.SharedRegion.create(self.region, kickmsg.ChannelType.PubSub, config)
        try:
            yield
        finally:
            kickmsg.unlink_shm(self.region)

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A publisher, which tries again while there is no slot."""
        import kickmsg

        publish = kickmsg.Publisher(kickmsg.SharedRegion.open(self.region)).send

        def send(data: bytes) -> None:
            while True:
                try:
                    publish(data)
                except BlockingIOError:
                    continue
                return

        yield LinkSender(send)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscriber, which looks at messages in their slots."""
        import kickmsg

        subscriber = kickmsg.Subscriber(kickmsg.SharedRegion.open(self.region))
        if self.wait == "block":
            timeout = datetime.timedelta(seconds=_WAIT_S)
            yield _views(subscriber.try_receive_view, partial(subscriber.receive_view, timeout))
        else:
            yield _views(subscriber.try_receive_view, subscriber.try_receive_view)


def _power_of_two(most: int) -> int:
    """The power of two at or below `most`; at least 8, and at most 2048, with which small messages
    went fastest."""
    return 1 << max(3, min(11, most.bit_length() - 1))


def _views(receive: Callable[[], Any], wait: Callable[[], Any]) -> Iterator[Any]:
    while True:
        while (view := receive()) is not None:
            yield view
        if (view := wait()) is not None:
            yield view


# ---- faster-fifo ---------------------------------------------------------------------------


class FasterFifo(Transport):
    """faster-fifo: a circular buffer under a lock."""

    name = "faster-fifo"
    copies = (
        "the sender copies into shared memory, the receiver out into one buffer, of which it gets "
        "a view; pickle, its default, is off"
    )
    modules = ("faster_fifo",)
    many_senders = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The queue."""
        import faster_fifo

        room = max(_FIFO_BYTES, 8 * (self.size + 8), 2 * self.item_messages * (self.size + 8))
        self.queue = faster_fifo.Queue(room, loads=_same, dumps=_same)
        yield
        del self.queue  # and its memory with it

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """put(), or put_many()."""
        put = self.queue.put if self.item_messages == 1 else self.queue.put_many
        yield LinkSender(put if self.wait == "block" else _putting(put))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """get(), or get_many()."""
        get = self.queue.get if self.item_messages == 1 else self.queue.get_many
        self.queue.reallocate_msg_buffer(self.queue.max_size_bytes)
        received = _trying(partial(get, self.wait == "block", _WAIT_S), queue.Empty)
        yield received if self.item_messages == 1 else itertools.chain.from_iterable(received)


def _same(data: Any) -> Any:
    return data


def _putting(put: Callable[..., object]) -> Callable[[Any], object]:
    def send(item: Any) -> None:
        while True:
            try:
                put(item, False)
            except queue.Full:
                continue
            return

    return send


class FasterFifoBatched(FasterFifo):
    """faster-fifo with many messages under one lock."""

    name = "faster-fifo, batched"
    copies = "as faster-fifo, 64 messages at a time in, and as many out as there are"
    item_messages = BATCH_SIZE
