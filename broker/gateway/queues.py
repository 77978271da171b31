"""POSIX message queues of a gateway: one for each label, filled from the ring, and one for what
goes up.

The gateway's loop drives both ends; nothing here waits. It offers each `QueueWriter` what it has
read, calls `flush` when `fileno` is writable while `waiting`, and `UplinkQueue.drain` when that one
is readable or the uplink has room again.

A queue message holds as many whole records as fit, and is complete in itself: it names each topic
that it uses, since the reader that got the name earlier may have died. A payload that does not fit
goes in parts. Once its first part is in the queue, the rest is copied aside and goes in as soon as
there is room, so a reader never waits for a part that does not come.

A full queue. ``lossy``: messages are lost, and the next record that goes in says how many.
``block``: `offer` returns where to go on, and the gateway offers the rest once there is room. What
it can't keep so long it does not offer any more, and says so with `lapse`; or else the writer finds
the gap in the sequences of what comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ringcast import shm
from ringcast.shm import blocks, names
from ringcast.shm.queues import DEPTH, MESSAGE_SIZE, OwnedQueue

from ..worker.wire import HEADER, HEADER_SIZE, Record, RecordType, WireError, encode, records

__all__ = ["MESSAGE_SIZE_MIN", "Messages", "QueueOptions", "QueueWriter", "UplinkQueue"]

MESSAGE_SIZE_MIN: Final = 2048
"""Bytes: HELLO and STATE fit together into the smallest message of a queue."""

_SAID: Final = (RecordType.HELLO, RecordType.STATE)
"""In the order in which they go in."""
_HEADERS_AT_ONCE: Final = 1024
"""Messages whose headers are made at once: a batch may have many more than the queue has room."""
_ASSEMBLIES_MAX: Final = 64
"""Long messages that come up in parts at once; of more, the oldest is dropped."""
_DRAINED_AT_ONCE: Final = 64
"""Queue messages that one call of `UplinkQueue.drain` takes."""


class Messages(Protocol):
    """What `QueueWriter.offer` takes: a `shm.broadcast.Batch`, or the like. Its messages follow
    each other in the ring: its reader has no `topics` and no `skip`."""

    @property
    def descriptors(self) -> NDArray[np.void]:
        """With dtype `shm.DESCRIPTOR`."""

    def payload(self, index: int) -> memoryview:
        """The bytes of one of them."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a queue is made.

    Attributes:
        depth: messages that it holds.
        message_size: bytes of the longest, at least 2048.
        policy: "lossy" or "block".
        mode: 0o600, or 0o640 to let the group use it.

    Raises:
        ValueError: one of them is not possible.
    """

    depth: int = DEPTH
    message_size: int = MESSAGE_SIZE
    policy: Literal["lossy", "block"] = "lossy"
    mode: int = 0o600

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"a queue's depth is at least 1 message, not {self.depth}")
        if self.message_size < MESSAGE_SIZE_MIN:
            raise ValueError(
                f"a queue's message size is at least {MESSAGE_SIZE_MIN} bytes, not"
                f" {self.message_size}"
            )
        if self.policy not in ("lossy", "block"):
            raise ValueError(f'a queue\'s policy is "lossy" or "block", not {self.policy!r}')
        blocks.check_mode(self.mode)


class QueueWriter:
    """Fills the queue of one label. Made with `create`; not for several threads.

    Attributes:
        label: of the queue.
        sent: messages put into the queue.
        lost: messages that were lost, those of a predecessor that died included.
    """

    def __init__(
        self,
        label: str,
        queue: OwnedQueue,
        options: QueueOptions,
        topic_name: Callable[[int], str | None],
    ) -> None:
        self.label = label
        self.sent = 0
        self.lost = queue.lost
        self._queue = queue
        self._options = options
        self._topic_name = topic_name
        self._topic_records: dict[int, bytes] = {}
        self._expected = queue.next  # sequence after the last message that was taken or lost
        self._gap = 0  # messages lost and not reported yet
        self._said: dict[RecordType, bytes] = {}  # HELLO and STATE that are to go in
        self._rest: deque[bytes] = deque()  # queue messages with the parts of one that has begun
        self._rest_next = 0  # the sequence after that one

    @classmethod
    def create(
        cls,
        ring: str,
        label: str,
        *,
        instance: int,
        topic_name: Callable[[int], str | None],
        options: QueueOptions | None = None,
    ) -> Self:
        """Make the queue, or go on with that of a gateway that died.

        Args:
            ring: name of the ring.
            label: of the queue; it obeys the rule for names of rings.
            instance: of the ring.
            topic_name: the name of a topic, or None; `shm.broadcast.Reader.topic_name`. Called
                during `offer` alone, so the reader may be attached later.
            options: how to make it.

        Raises:
            ValueError: no queue can have this label.
            shm.RingExists: another gateway fills it.
            shm.RingError: the system's limits do not allow it.
        """
        options = options or QueueOptions()
        queue = OwnedQueue.claim(
            names.queue_name(ring, label),
            instance=instance,
            depth=options.depth,
            message_size=options.message_size,
            mode=options.mode,
        )
        return cls(label, queue, options, topic_name)

    def fileno(self) -> int:
        """The descriptor: writable while the queue has room."""
        return self._queue.fileno()

    @property
    def next_sequence(self) -> int | None:
        """The sequence after the last message that was taken or lost; None if there was none. So
        the gateway starts to read the ring at the smallest of its queues; what a queue has already
        it passes over."""
        return self._expected

    @property
    def waiting(self) -> bool:
        """Is there something that `flush` is to put in once there is room?"""
        return bool(self._rest or self._said or self._gap)

    # -- filling

    def say(self, record: Record) -> None:
        """Put HELLO or STATE in, now or when there is room. Of each only the newest counts."""
        assert record.type in _SAID
        self._said[RecordType(record.type)] = encode(record)
        self._say()

    def offer(self, messages: Messages, start: int = 0) -> int:
        """Put messages in, as far as there is room.

        Args:
            messages: they are looked at during the call alone.
            start: the first of them that was not taken before.

        Returns:
            The first that was not taken: with the policy "lossy" always their number. With "block"
            the rest is to be offered again when `fileno` is writable, or it counts as lost.
        """
        end = len(messages.descriptors)
        while start < end:
            stop = min(end, start + _HEADERS_AT_ONCE)
            start = self._offer_some(messages, start, stop)
            if start < stop:
                break
        return start

    def _offer_some(self, messages: Messages, start: int, end: int) -> int:
        """As `offer`, for those from `start` to `end`."""
        first = int(messages.descriptors["seq1"][start]) - 1
        if self._expected is None:
            self._expected = first
            self._queue.note(first, self.lost)
        self.lapse(first)
        outgoing = _Outgoing(messages, start, end, self._expected)
        taken = self._take(outgoing) if self._flush_rest() and self._say() else 0
        if taken < len(outgoing) and self._options.policy == "block":
            self._expected = int(outgoing.sequences[taken])
            return int(outgoing.indices[taken])
        self._lose(len(outgoing) - taken)
        self._expected = max(self._expected, first + end - start)
        return end

    def lapse(self, sequence: int) -> None:
        """Messages below this sequence are not offered any more, since the gateway can't keep them:
        those that were not taken count as lost. A gateway need not say so if it offers more."""
        if self._expected is not None and sequence > self._expected:
            self._lose(sequence - self._expected)
            self._expected = sequence

    def _take(self, outgoing: _Outgoing) -> int:
        """Put in what fits. How many were taken; with "lossy" those that were lost before others
        count, too."""
        at, count = 0, len(outgoing)
        while at < count and not self._rest:
            data, after = self._pack(outgoing, at)
            if after > at:
                went_in = self._queue.try_send(data)
                if went_in:
                    self._gap = 0
                    self._went_in(after - at, int(outgoing.sequences[after - 1]) + 1)
            else:
                after = at + 1
                went_in = self._send_parts(outgoing, at)
            if went_in:
                at = after
            elif self._options.policy == "block":
                return at
            else:
                at = self._lose_until_room(at, after - at, count)
        return at

    def _lose_until_room(self, at: int, stride: int, count: int) -> int:
        """Lose so many messages at a time until there is room; where to go on."""
        while at < count:
            lost = min(stride, count - at)
            self._lose(lost)
            at += lost
            if not self._queue.full:
                break
        return at

    def _pack(self, outgoing: _Outgoing, at: int) -> tuple[bytes, int]:
        """A queue message with the messages from `at` on, and the first that it has no room for:
        `at` itself if that one has to go in parts."""
        outgoing.headers["gap"][at] = self._gap
        room = self._options.message_size
        pieces: list[bytes | memoryview] = []
        named: set[int] = set()
        for i in range(at, len(outgoing)):
            topic = outgoing.topics[i]
            naming = b"" if topic in named else self._naming(topic)
            room -= len(naming) + HEADER_SIZE + outgoing.lengths[i]
            if room < 0:
                return b"".join(pieces), i
            named.add(topic)
            pieces += (naming, outgoing.header(i), outgoing.payload(i))
        return b"".join(pieces), len(outgoing)

    def _send_parts(self, outgoing: _Outgoing, at: int) -> bool:
        """Put a long message in; what has no room goes aside. False: nothing of it went in."""
        header = outgoing.headers[at : at + 1].copy()  # its gap is there already
        naming = self._naming(outgoing.topics[at])
        payload = outgoing.payload(at)
        offset = 0
        while offset < len(payload):
            room = self._options.message_size - HEADER_SIZE - len(naming)
            part = payload[offset : offset + room]
            header["offset"], header["size"] = offset, len(part)
            data = naming + header.tobytes() + part
            if self._rest or not self._queue.try_send(data):
                if offset == 0:
                    return False
                self._rest.append(data)
            offset += len(part)
            header["gap"], naming = 0, b""
        self._gap = 0
        self._rest_next = int(outgoing.sequences[at]) + 1
        if not self._rest:
            self._went_in(1, self._rest_next)
        return True

    def _naming(self, topic: int) -> bytes:
        """The record that names a topic; nothing for one that has no name."""
        if topic == 0:
            return b""
        naming = self._topic_records.get(topic)
        if naming is None:
            name = self._topic_name(topic)
            if name is None:
                return b""
            record = Record(RecordType.TOPIC, name.encode(), topic=topic)
            naming = self._topic_records[topic] = encode(record)
        return naming

    def _went_in(self, count: int, next_sequence: int) -> None:
        self.sent += count
        self._queue.note(next_sequence, self.lost)

    def _lose(self, count: int) -> None:
        self._gap += count
        self.lost += count

    # -- what waits

    def flush(self) -> bool:
        """Put in what waits for room: the rest of a long message, HELLO and STATE, and a gap that
        no message has reported. True if nothing waits any more."""
        return self._flush_rest() and self._say() and self._report()

    def _flush_rest(self) -> bool:
        while self._rest:
            if not self._queue.try_send(self._rest[0]):
                return False
            self._rest.popleft()
            if not self._rest:
                self._went_in(1, self._rest_next)
        return True

    def _say(self) -> bool:
        if not self._said:
            return True
        data = b"".join(self._said[kind] for kind in _SAID if kind in self._said)
        if self._rest or not self._queue.try_send(data):
            return False
        self._said.clear()
        return True

    def _report(self) -> bool:
        if self._gap == 0:
            return True
        sequence = self._expected or 0
        if not self._queue.try_send(
            encode(Record(RecordType.GAP, sequence=sequence, gap=self._gap))
        ):
            return False
        self._gap = 0
        self._went_in(0, sequence)
        return True

    # -- the end

    def close(self, why: str) -> None:
        """End the queue: put ENDED in, with the reason, if there is room, and remove the name. The
        reader takes out what is in it, and then finds the end in any case."""
        if self._queue.closed:
            return
        ended = Record(RecordType.ENDED, why.encode(), sequence=self._expected or 0, gap=self._gap)
        if self._flush_rest() and self._say():
            self._queue.try_send(encode(ended))
        self._queue.remove()

    def abandon(self) -> None:
        """Let go of the queue, as a crash would: the next gateway goes on with it."""
        self._queue.close()


class _Outgoing:
    """The messages of a batch that go into a queue, with their headers.

    Args:
        messages, start, end: which of which.
        expected: the first sequence that the queue does not have yet.

    Attributes:
        indices: where they stand in `messages`.
        sequences, lengths, topics: of each.
        headers: with dtype `wire.HEADER`.
    """

    def __init__(self, messages: Messages, start: int, end: int, expected: int) -> None:
        descriptors = messages.descriptors[start:end]
        wanted = (descriptors["destination"] == 0) & (descriptors["seq1"] > expected)
        self.indices = np.flatnonzero(wanted) + start
        descriptors = descriptors[wanted]
        self.sequences = descriptors["seq1"] - np.uint64(1)
        self.lengths: list[int] = descriptors["length"].tolist()
        self.topics: list[int] = descriptors["topic"].tolist()
        self.headers = np.zeros(len(descriptors), HEADER)
        self.headers["type"] = RecordType.MESSAGE
        self.headers["sequence"] = self.sequences
        self.headers["size"] = self.headers["total"] = descriptors["length"]
        for field in ("kind", "time_ns", "key", "topic", "epoch"):
            self.headers[field] = descriptors[field]
        self._rows = memoryview(self.headers.view(np.uint8))  # type: ignore[arg-type]
        self._messages = messages

    def __len__(self) -> int:
        return len(self.lengths)

    def header(self, at: int) -> memoryview:
        """Its bytes, as they are in `headers` when they are read."""
        return self._rows[at * HEADER_SIZE : (at + 1) * HEADER_SIZE]

    def payload(self, at: int) -> memoryview:
        """As long as `messages` has it."""
        return self._messages.payload(int(self.indices[at]))


# ---- what goes up --------------------------------------------------------------------------


@dataclass(slots=True)
class _Assembly:
    """A message that comes up in parts."""

    kind: int
    total: int
    data: bytearray


class UplinkQueue:
    """The queue for what goes up. Made with `create`; not for several threads.

    Attributes:
        received: messages that came whole.
        dropped: records, and queue messages that hold none, that were thrown away.
    """

    def __init__(self, queue: OwnedQueue, max_message: int) -> None:
        self.received = 0
        self.dropped = 0
        self._queue = queue
        self._max_message = max_message
        self._held: deque[tuple[bytes, shm.Kind]] = deque()  # for which there was no room
        self._assemblies: dict[tuple[int, int], _Assembly] = {}

    @classmethod
    def create(
        cls,
        ring: str,
        *,
        instance: int,
        max_message: int,
        options: QueueOptions | None = None,
    ) -> Self:
        """Make the queue, or take over that of a gateway that died, with what is in it.

        Args:
            ring: name of the ring.
            instance: of the ring.
            max_message: bytes of the longest message that the uplink takes.
            options: how to make it; the policy has no meaning here.

        Raises:
            shm.RingExists: another gateway drains it.
            shm.RingError: the system's limits do not allow it.
        """
        options = options or QueueOptions()
        queue = OwnedQueue.claim(
            names.upward_queue_name(ring),
            instance=instance,
            depth=options.depth,
            message_size=options.message_size,
            mode=blocks.shared_mode(options.mode),
        )
        return cls(queue, max_message)

    def fileno(self) -> int:
        """The descriptor: readable while there is something in the queue."""
        return self._queue.fileno()

    @property
    def waiting(self) -> bool:
        """Are there messages for which the uplink had no room? Then `drain` takes no others."""
        return bool(self._held)

    def drain(self, send: Callable[[bytes, shm.Kind], bool]) -> int:
        """Pass on what is in the queue, a bounded number of queue messages at a time.

        Args:
            send: takes a message, or returns False if there is no room now; then it gets it again
                at the next call. What it raises comes out of here, and the message is dropped.

        Returns:
            How many messages were passed on.
        """
        passed = self._pass_on(send)
        for _ in range(_DRAINED_AT_ONCE):
            if self._held:
                break
            data = self._queue.try_receive()
            if data is None:
                break
            self._decode(data)
            passed += self._pass_on(send)
        return passed

    def _pass_on(self, send: Callable[[bytes, shm.Kind], bool]) -> int:
        passed = 0
        while self._held:
            payload, kind = self._held.popleft()
            if not send(payload, kind):
                self._held.appendleft((payload, kind))
                break
            passed += 1
        return passed

    def _decode(self, data: bytes) -> None:
        try:
            for record in records(data):
                self._add(record)
        except WireError:
            self.dropped += 1

    def _add(self, record: Record) -> None:
        if (
            record.type is not RecordType.SEND
            or record.kind not in (shm.Kind.TEXT, shm.Kind.BINARY)
            or record.total > self._max_message
        ):
            self.dropped += 1
            return
        payload = bytes(record.payload)
        if len(payload) < record.total:
            whole = self._join(record, payload)
            if whole is None:
                return
            payload = whole
        if record.kind == shm.Kind.TEXT and not _is_text(payload):
            self.dropped += 1
            return
        self.received += 1
        self._held.append((payload, shm.Kind(record.kind)))

    def _join(self, part: Record, payload: bytes) -> bytes | None:
        """The whole message, if this was its last part."""
        sender = (part.sequence, part.key)
        assembly = self._assemblies.pop(sender, None)
        if part.offset == 0:
            self.dropped += assembly is not None
            assembly = _Assembly(part.kind, part.total, bytearray())
        expected = None if assembly is None else (assembly.kind, assembly.total, len(assembly.data))
        if assembly is None or expected != (part.kind, part.total, part.offset) or not payload:
            self.dropped += 1
            return None
        assembly.data += payload
        if len(assembly.data) == assembly.total:
            return bytes(assembly.data)
        if len(self._assemblies) == _ASSEMBLIES_MAX:
            del self._assemblies[next(iter(self._assemblies))]
            self.dropped += 1
        self._assemblies[sender] = assembly
        return None

    def close(self) -> None:
        """Remove the queue. What is still in it is lost; nobody was told that it was sent."""
        self._queue.remove()

    def abandon(self) -> None:
        """Let go of the queue, as a crash would: the next gateway drains it."""
        self._queue.close()


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
