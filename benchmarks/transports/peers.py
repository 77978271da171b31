"""Libraries that need no server: ZeroMQ, iceoryx2, kickmsg, faster-fifo."""

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

from .base import GROUP, Outlet, Transport

if TYPE_CHECKING:
    import zmq

_SECOND: Final = 1.0
"""Seconds after which a wait inside a library looks up, because signals are not seen before."""
_FRAMES_FROM: Final = 256 << 10
"""Bytes from which on a ZeroMQ frame is received faster than bytes, measured: at 128 B as fast, at
4 KiB a third slower, at 64 KiB as fast, at 1 MB a third faster."""
_AHEAD_BYTES: Final = 64 << 20
"""What a pool of messages may take, as far as it can be chosen."""
_FIFO_BYTES: Final = 4 << 20
_LOOK_S: Final = 0.05
"""Seconds after which a reader of iceoryx2 that sleeps looks by itself. Its event, as of 0.10, now
and then leaves one asleep that has a notification and messages: in 3 of 120 runs with 4 readers."""
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
                    # Another try would see for 3 million ticks nothing of what was read meanwhile;
                    # to ask for this looks at once.
                    sink.get(zmq.EVENTS)
                    continue
                return

        return send

    def _received(self, source: zmq.Socket[bytes]) -> Iterator[Any]:
        import zmq

        copy = self.size < _FRAMES_FROM
        if self.wait == "block":
            return iter(partial(source.recv, copy=copy), None)
        return _trying(partial(source.recv, zmq.NOBLOCK, copy), zmq.Again)


def _trying(receive: Callable[[], Any], empty: type[Exception]) -> Iterator[Any]:
    """What a function returns that raises if there is nothing."""
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
        socket.linger = 0  # or who fails would wait for others
        yield socket


class PushPull(_Zmq):
    """ZeroMQ's pipeline."""

    name = "pyzmq PUSH/PULL"
    copies = (
        "the sender copies into a message of zmq's, the kernel in and out, and the receiver into "
        "new bytes (from 256 KiB on it looks at zmq's message); a thread on each side"
    )
    many_senders = True

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """A socket that connects, as soon as there is something to connect to: it tries each 0.1 s,
        and until then what it is given waits."""
        import zmq

        with (
            _zmq_socket("PUSH") as sink,
            sink.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as events,
        ):
            sink.connect(self.address)
            yield Outlet(self._sending(sink), settle=events.recv_multipart)
            sink.disable_monitor()

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """The socket that binds: there is one."""
        with _zmq_socket("PULL") as source:
            source.bind(self.address)
            yield self._received(source)


class PubSub(_Zmq):
    """ZeroMQ's publish and subscribe, made to wait where it would drop."""

    name = "pyzmq PUB/SUB"
    copies = (
        "the sender copies once into a message of zmq's for all, the kernel in and out for each, "
        "and the receiver as with PUSH/PULL; a thread on each side; XPUB_NODROP"
    )
    fans_out = True

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """An XPUB socket, which hears of every subscription."""
        with _zmq_socket("XPUB") as sink:
            sink.xpub_nodrop = True
            sink.xpub_verbose = True  # not only of the first of its kind
            sink.bind(self.address)
            yield Outlet(self._sending(sink), settle=partial(self._settle, sink))

    def _settle(self, sink: zmq.Socket[bytes]) -> None:
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
    """iceoryx2, its publish-subscribe; to wait asleep, with an event a message beside it, which is
    what its documentation recommends."""

    name = "iceoryx2"
    copies = (
        "the sender copies into a loan in shared memory; readers look at it there; who waits "
        "asleep is woken by an event a message, through a socket, and looks each 50 ms"
    )
    modules = ("iceoryx2",)
    fans_out = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A place of its own for its files; what dead children leave of them is removed."""
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
        """Messages a reader may be behind."""
        return max(8, min(256, _AHEAD_BYTES // self.size))

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
    def sender(self) -> Iterator[Outlet]:
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
            yield Outlet(send)
            return
        notifier = self._event(node).notifier_builder().create()

        def send_and_wake(data: bytes) -> None:
            send(data)
            notifier.notify()

        yield Outlet(send_and_wake)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscriber, and a listener if it is to sleep."""
        import iceoryx2 as iox

        node = self._node()
        receive = self._service(node).subscriber_builder().create().receive
        array = (ctypes.c_uint8 * self.size).from_address  # a quarter of what payload() takes
        if self.wait == "spin":
            yield _samples(receive, array, lambda: None)
            return
        listener = self._event(node).listener_builder().create()
        yield _samples(
            receive, array, partial(listener.timed_wait, iox.Duration.from_secs_f64(_LOOK_S))
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
    """kickmsg: a ring of references for each reader, to messages in a pool. A writer that finds a
    ring full throws its oldest message away."""

    name = "kickmsg"
    copies = "the sender copies into a slot in shared memory; readers look at it there"
    modules = ("kickmsg",)
    lossy = True
    fans_out = True
    many_senders = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The region, with a slot for all that rings and hands can hold, so that none lacks."""
        import kickmsg

        self.region = f"/{_name()}"
        config = kickmsg.Config()
        config.max_subscribers = self.readers
        config.sub_ring_capacity = _power_of_two(_AHEAD_BYTES // self.size // self.readers)
        config.pool_size = self.readers * (config.sub_ring_capacity + 4) + 2 * self.senders
        config.max_payload_size = self.size
        kickmsg.SharedRegion.create(self.region, kickmsg.ChannelType.PubSub, config)
        try:
            yield
        finally:
            kickmsg.unlink_shm(self.region)

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """A publisher; if there is no slot, it tries again."""
        import kickmsg

        publish = kickmsg.Publisher(kickmsg.SharedRegion.open(self.region)).send

        def send(data: bytes) -> None:
            while True:
                try:
                    publish(data)
                except BlockingIOError:
                    continue
                return

        yield Outlet(send)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A subscriber, which looks at messages in their slots."""
        import kickmsg

        subscriber = kickmsg.Subscriber(kickmsg.SharedRegion.open(self.region))
        if self.wait == "block":
            second = datetime.timedelta(seconds=_SECOND)
            yield _views(subscriber.try_receive_view, partial(subscriber.receive_view, second))
        else:
            yield _views(subscriber.try_receive_view, subscriber.try_receive_view)


def _power_of_two(most: int) -> int:
    """At most that, and 2048, with which small messages went fastest; at least 8."""
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
        "a view; pickle, its default, is switched off"
    )
    modules = ("faster_fifo",)
    many_senders = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The queue."""
        import faster_fifo

        room = max(_FIFO_BYTES, 8 * (self.size + 8), 2 * self.group * (self.size + 8))
        self.queue = faster_fifo.Queue(room, loads=_same, dumps=_same)
        yield
        del self.queue  # and its memory with it

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """put(), or put_many()."""
        put = self.queue.put if self.group == 1 else self.queue.put_many
        yield Outlet(put if self.wait == "block" else _putting(put))

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """get(), or get_many()."""
        get = self.queue.get if self.group == 1 else self.queue.get_many
        self.queue.reallocate_msg_buffer(self.queue.max_size_bytes)
        taken = _trying(partial(get, self.wait == "block", _SECOND), queue.Empty)
        yield taken if self.group == 1 else itertools.chain.from_iterable(taken)


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
    """The same, many messages under one lock."""

    name = "faster-fifo, batched"
    copies = "as faster-fifo, 64 messages a time in and as many out as there are"
    group = GROUP
