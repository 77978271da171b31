"""A worker's end of a message queue: what ``attach("mq:NAME/LABEL")`` gives.

It needs nothing of the ring but the queue's name, so it works where the ring can't be mapped. A
queue passes on what the gateway puts in; so there is nothing to choose here, and nothing to ask.

A queue that was removed wakes nobody. So whoever waits looks once a second whether it still has a
name; that is all that an idle feed does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from ringcast import shm
from ringcast.shm import names
from ringcast.shm.aio import MESSAGES_A_TURN
from ringcast.shm.queues import Queue

from .deadlines import deadline
from .sending import MessageKind, check_length, encoded
from .state import ConnectionState
from .wire import HEADER_SIZE, Hello, Record, RecordType, WireError, encode, records

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .addresses import ClientAddress

__all__ = ["QueueFeed", "QueueMessage"]

_LOOK_S: Final = 1.0
"""Seconds between two looks whether the queue was removed."""
_KINDS: Final[dict[int, shm.Kind | int]] = {int(kind): kind for kind in shm.Kind}
_MISSING: Final = frozenset(
    ("subscribe", "unsubscribe", "topics", "latest", "batch", "flush", "aflush", "request", "note")
)
"""What a `Feed` has, and a queue can't do."""


@dataclass(slots=True, eq=False)
class QueueMessage:
    """One message, with bytes of its own: it stays as it is.

    Attributes:
        sequence: its number in the ring.
        topic: id of its topic, 0 for none.
        topic_name: the topic's name, or None.
        kind: a `shm.Kind`.
        time_ns: when the manager received it, Unix time.
        gap: messages missed just before it.
        epoch: of the ring.
        key: what work groups share messages out by.
        payload: its bytes, a read-only view.
    """

    sequence: int
    topic: int
    topic_name: str | None
    kind: shm.Kind | int
    time_ns: int
    gap: int
    epoch: int
    key: int
    payload: memoryview

    def __len__(self) -> int:
        return len(self.payload)

    def __bool__(self) -> bool:
        return True

    def __bytes__(self) -> bytes:
        return bytes(self.payload)

    def text(self) -> str:
        """The payload as a str; UnicodeDecodeError if it is not UTF-8."""
        return str(self.payload, "utf-8")


class QueueFeed:
    """The server's messages from a gateway's queue; made with ``attach("mq:NAME/LABEL")``.

    Iterating it, plainly or with ``async for``, waits for messages and ends with the queue.
    Messages have bytes of their own. One feed reads a queue: the gateway fills one for each label.
    Threads may share it: each message goes to one of them. A forked child can't use it; it attaches
    anew.

    What a queue can't do is missing: choosing topics, where to start, batches, the newest of a
    topic, and knowing what became of a message that was sent. It is lossless only as far as the
    gateway's policy for it is, but says exactly what is missing.
    """

    def __init__(self, name: str, label: str, queue: Queue, *, events: bool) -> None:
        self.name = name
        self.label = label
        self._queue = queue
        self._events = events
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._decoder = _Decoder(events=events)
        self._sender = _UpwardSender(name, self._decoder)
        self._arrivals = _Readiness(queue, writing=False)
        self._taken = 0

    @classmethod
    def attach(cls, address: ClientAddress, *, events: bool = False) -> Self:
        """As the function `attach`, for the address of a queue.

        Raises:
            shm.RingNotFound: there is no such queue.
            shm.RingExists: another feed reads it.
        """
        queue = Queue.open_to_read(names.queue_name(address.ring, address.label))
        return cls(address.ring, address.label, queue, events=events)

    # -- reading

    def read(self, timeout: float | None = None) -> QueueMessage | None:
        """The next message.

        Args:
            timeout: seconds to wait; None waits as long as it takes, 0 not at all.

        Returns:
            The message, or None if none came in time.

        Raises:
            shm.RingClosed: the queue has ended, or this end is closed.
            shm.RingCorrupt, shm.LayoutMismatch: what is in the queue is not what a gateway of this
                version puts in.
        """
        until = deadline(timeout)
        while (message := self._take()) is None:
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._arrivals.wait(min(left, _LOOK_S))
        return message

    def read_available(self, limit: int = 256) -> list[QueueMessage]:
        """Up to `limit` messages that are there, without waiting.

        Raises: as `read` does, once there is no message left.
        """
        found: list[QueueMessage] = []
        while len(found) < limit:
            try:
                message = self._take()
            except shm.RingError:
                if found:
                    break
                raise
            if message is None:
                break
            found.append(message)
        return found

    def __iter__(self) -> Iterator[QueueMessage]:
        return self

    def __next__(self) -> QueueMessage:
        try:
            message = self.read()
        except shm.RingClosed:
            if self._decoder.ended is None:
                raise
            raise StopIteration from None
        assert message is not None
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> QueueMessage:
        self._taken += 1
        if self._taken % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        try:
            while (message := self._take()) is None:
                await self._arrivals.wait_async(_LOOK_S)
        except shm.RingClosed:
            if self._decoder.ended is None:
                raise
            raise StopAsyncIteration from None
        return message

    def _take(self) -> QueueMessage | None:
        """The next message, if there is one."""
        with self._lock:
            while not self._decoder.messages:
                if self._decoder.ended is not None:
                    raise shm.RingClosed(
                        f"queue {self._queue.name} has ended: {self._decoder.ended}"
                    )
                self._check_process()
                data = self._queue.try_receive()
                if data is None and self._queue.unlinked:
                    data = self._queue.try_receive()  # what came in just before
                    if data is None:
                        self._decoder.ended = "it was removed"
                        continue
                if data is None:
                    return None
                self._decoder.feed(data)
            return self._decoder.messages.popleft()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise shm.RingClosed("this feed is the parent process's: attach anew in the child")

    # -- what is known

    @property
    def state(self) -> ConnectionState:
        """The connection, as the newest state says that has come through the queue.

        Raises:
            shm.RingError: none has come yet: a queue passes a state on when it changes, and can't
                be asked.
        """
        state = ConnectionState.decode(self._decoder.note)
        if state is None:
            raise shm.RingError(
                f"no state of the connection has come through queue {self._queue.name} yet: it"
                " comes when it changes, and a queue can't be asked"
            )
        return state

    @property
    def lost(self) -> int:
        """Messages missed, as far as this feed has read."""
        return self._decoder.lost

    @property
    def cursor(self) -> int | None:
        """The sequence that the next message has at least; None before the first."""
        return self._decoder.next

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return self._queue.closed

    def fileno(self) -> int:
        """The queue's descriptor, readable while something is in it. A message may have been taken
        out with others before: call `read_available` until it returns nothing, and then poll."""
        return self._queue.fileno()

    if not TYPE_CHECKING:  # a type checker knows what is not there

        def __getattr__(self, name: str) -> Any:
            why = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _MISSING:
                why = (
                    f"a message queue has no {name}: it passes on what the gateway puts in. Attach"
                    " to the ring, or to the gateway's socket"
                )
            raise AttributeError(why, name=name, obj=self)

    # -- sending

    def send(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send a message to the server, through the gateway's queue for what goes up.

        Nothing comes back: not whether the gateway, the manager or the server got it.

        Args:
            payload: a str (UTF-8), or bytes or any C-contiguous buffer; copied.
            kind: as in `Feed.send`.
            timeout: seconds to wait for room; None waits as long as it takes.

        Raises:
            shm.RingFull: no room in time. Nothing was sent: parts of a message come to nothing.
            shm.MessageTooLarge: longer than the ring's longest message.
            shm.RingNotFound: the gateway has no queue for what goes up.
            shm.RingClosed: that queue was removed, or this end is closed.
            ValueError: `kind` is another, or text as "text" is not UTF-8.
        """
        self._check_process()
        self._sender.send(payload, kind, timeout)

    async def asend(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> None:
        """As `send`, for asyncio: other tasks go on while it waits. Cancelled, it has sent nothing.

        Raises: as `send` does.
        """
        self._check_process()
        await self._sender.asend(payload, kind, timeout)

    # -- closing

    def close(self) -> None:
        """Close this end. What is in the queue stays there, and whoever attaches next reads on; but
        messages that came together with one that was read are gone."""
        self._sender.close()
        if os.getpid() == self._pid:
            self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.cursor}"
        return f"<QueueFeed of {self.name}/{self.label} {state}>"


# ---- decoding ------------------------------------------------------------------------------


class _Decoder:
    """From the bytes of a queue to messages.

    Attributes:
        messages: those that nobody has taken yet.
        note: the newest state, as JSON.
        hello: what the gateway said of the ring; None before it did.
        next: the sequence that the next message has at least; None before the first.
        lost: messages missed in all.
        ended: why the queue has ended; None if it has not.
    """

    def __init__(self, *, events: bool) -> None:
        self.messages: deque[QueueMessage] = deque()
        self.note = b""
        self.hello: Hello | None = None
        self.next: int | None = None
        self.lost = 0
        self.ended: str | None = None
        self._events = events
        self._names: dict[int, str] = {}
        self._gap = 0  # missed, and no message has said so yet
        self._parts = bytearray()

    def feed(self, data: bytes) -> None:
        """Decode a message of the queue.

        Raises:
            shm.RingCorrupt: it is no sequence of records.
            shm.LayoutMismatch: the gateway speaks another version.
        """
        try:
            for record in records(data):
                self._add(record)
        except WireError as error:
            raise shm.RingCorrupt(f"the queue has what no gateway puts in: {error}") from error

    def _add(self, record: Record) -> None:
        match record.type:
            case RecordType.MESSAGE:
                self._add_message(record)
            case RecordType.TOPIC:
                self._names[record.topic] = str(record.payload, "utf-8", "replace")
            case RecordType.STATE:
                self.note = bytes(record.payload)
            case RecordType.GAP:
                self._miss(record)
            case RecordType.HELLO:
                self._greet(record)
            case RecordType.ENDED:
                self._miss(record)
                self.ended = str(record.payload, "utf-8", "replace")
            case _:  # a later version's: passed over
                pass

    def _greet(self, record: Record) -> None:
        try:
            self.hello = Hello.decode(record.payload)
        except WireError as error:
            raise shm.LayoutMismatch(str(error)) from error

    def _add_message(self, record: Record) -> None:
        if self.next is not None and record.sequence < self.next:
            return  # it comes a second time, from the gateway after one that died
        if record.offset == 0:
            self._miss(record)
            self._parts.clear()
        if len(record.payload) == record.total:
            self._complete(record, record.payload)
            return
        if record.offset == len(self._parts):
            self._parts += record.payload
        if record.offset + len(record.payload) == record.total:
            if len(self._parts) == record.total:
                self._complete(record, memoryview(bytes(self._parts)))
            else:  # its first parts went to an earlier reader
                self._count(1)
                self.next = record.sequence + 1
            self._parts.clear()

    def _miss(self, record: Record) -> None:
        """Count what was missed before a record. The gateway after one that died may report, too,
        what has come."""
        missing = record.gap
        if self.next is not None:
            missing = min(missing, record.sequence - self.next)
        self._count(max(0, missing))
        if self.next is None or record.sequence > self.next:
            self.next = record.sequence

    def _count(self, missing: int) -> None:
        self._gap += missing
        self.lost += missing

    def _complete(self, record: Record, payload: bytes | memoryview) -> None:
        self.next = record.sequence + 1
        if record.kind == shm.Kind.EVENT and not self._events:
            return
        self.messages.append(
            QueueMessage(
                record.sequence,
                record.topic,
                self._names.get(record.topic),
                _KINDS.get(record.kind, record.kind),
                record.time_ns,
                self._gap,
                record.epoch,
                record.key,
                memoryview(payload),
            )
        )
        self._gap = 0


# ---- sending -------------------------------------------------------------------------------


class _UpwardSender:
    """Puts messages into the queue for what goes up, which is opened at the first use. Threads and
    tasks may send at once: parts of their messages may mix, as each message has a number."""

    def __init__(self, name: str, decoder: _Decoder) -> None:
        self._name = name
        self._decoder = decoder
        self._who = secrets.randbits(64)
        self._numbers = itertools.count(1)
        self._opening = threading.Lock()
        self._queue: Queue | None = None
        self._room: _Readiness | None = None
        self._closed = False

    def send(self, payload: str | Buffer, kind: MessageKind | None, timeout: float | None) -> None:
        until = deadline(timeout)
        view, number = encoded(payload, kind)
        queue, room = self._opened()
        for part in self._parts(view, number, queue.message_size):
            while not queue.try_send(part):
                left = until - time.monotonic()
                if left <= 0:
                    raise _full(queue)
                if not room.wait(min(left, _LOOK_S)):
                    self._check_removed(queue)

    async def asend(
        self, payload: str | Buffer, kind: MessageKind | None, timeout: float | None
    ) -> None:
        view, number = encoded(payload, kind)
        queue, room = self._opened()
        try:
            async with asyncio.timeout(timeout):
                for part in self._parts(view, number, queue.message_size):
                    while not queue.try_send(part):
                        if not await room.wait_async(_LOOK_S):
                            self._check_removed(queue)
        except TimeoutError:
            raise _full(queue) from None

    def _parts(self, view: memoryview, kind: shm.Kind, message_size: int) -> Iterator[bytes]:
        """The queue messages of one message."""
        hello = self._decoder.hello
        if hello is not None:
            check_length(view, hello.max_message)
        data = view.cast("B") if view.nbytes else memoryview(b"")
        number = next(self._numbers)
        size = message_size - HEADER_SIZE
        for offset in range(0, max(1, len(data)), size):
            yield encode(
                Record(
                    RecordType.SEND,
                    data[offset : offset + size],
                    kind=kind,
                    key=number,
                    sequence=self._who,
                    total=len(data),
                    offset=offset,
                )
            )

    def _opened(self) -> tuple[Queue, _Readiness]:
        if self._closed:
            raise shm.RingClosed("this feed is closed")
        with self._opening:
            if self._queue is None or self._room is None:
                self._queue = Queue.open_to_write(names.upward_queue_name(self._name))
                self._room = _Readiness(self._queue, writing=True)
            return self._queue, self._room

    def _check_removed(self, queue: Queue) -> None:
        if queue.unlinked:
            queue.close()
            self._queue = self._room = None
            raise shm.RingClosed(f"queue {queue.name} was removed: the gateway has ended")

    def close(self) -> None:
        self._closed = True
        if self._queue is not None:
            self._queue.close()


def _full(queue: Queue) -> shm.RingFull:
    return shm.RingFull(f"queue {queue.name} had no room in time: the gateway is behind, or dead")


# ---- waiting -------------------------------------------------------------------------------


class _Readiness:
    """Waits until a queue has something, or has room."""

    def __init__(self, queue: Queue, *, writing: bool) -> None:
        self._queue = queue
        self._writing = writing
        self._futures: set[asyncio.Future[None]] = set()

    def wait(self, timeout: float) -> bool:
        """Is it ready, at the latest after so many seconds?"""
        poll = select.poll()
        poll.register(self._queue, select.POLLOUT if self._writing else select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    async def wait_async(self, timeout: float) -> bool:
        """As `wait`; other tasks go on."""
        loop = asyncio.get_running_loop()
        descriptor = self._queue.fileno()
        if not self._futures:
            add = loop.add_writer if self._writing else loop.add_reader
            add(descriptor, self._wake)
        future = loop.create_future()
        self._futures.add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
            self._futures.discard(future)
            if not self._futures:
                remove = loop.remove_writer if self._writing else loop.remove_reader
                remove(descriptor)
        return future.done() and not future.cancelled()

    def _wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)
