"""The records of ``ringcast.1``: how messages, and what goes with them, look on a socket or in a
queue.

A WebSocket binary frame, and a message of a POSIX message queue, holds whole records, one after the
other. A record is a header of 64 bytes, little-endian, and `size` bytes of payload. docs/wire.md
draws the header and says who sends what and when.

There is no version in a header: a client asks for ``ringcast.1`` before anything is sent, and the
first record, HELLO, names the version again. The header's last field is zero, so that a later
version can be told apart where it changes what a header means.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from . import _wire

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "FIELDS",
    "HEADER",
    "HEADER_SIZE",
    "PAYLOAD_MAX",
    "VERSION",
    "Frame",
    "Hello",
    "Record",
    "RecordType",
    "WireError",
    "encode",
    "parse",
    "records",
]

VERSION: Final = 1

FIELDS: Final = struct.Struct("<IHHQQQQIIIIII")
"""A header: its fields in the order of `HEADER`."""
HEADER: Final = np.dtype(
    [
        ("size", "<u4"),
        ("type", "<u2"),
        ("kind", "<u2"),
        ("sequence", "<u8"),
        ("time_ns", "<u8"),
        ("key", "<u8"),
        ("gap", "<u8"),
        ("topic", "<u4"),
        ("epoch", "<u4"),
        ("total", "<u4"),
        ("offset", "<u4"),
        ("deliveries", "<u4"),
        ("zero", "<u4"),
    ]
)
"""A header as numpy sees it."""
HEADER_SIZE: Final = FIELDS.size
PAYLOAD_MAX: Final = 2_147_483_647
"""Bytes of the longest message: no ring has a longer one."""


class WireError(ValueError):
    """What came is no sequence of whole records of this version."""


class RecordType(enum.IntEnum):
    """What a record is. Those below 32 go from the gateway to a client, the others to it."""

    MESSAGE = 1
    TOPIC = 2
    STATE = 3
    GAP = 4
    ACK = 5
    REFUSED = 6
    HELLO = 7
    ENDED = 8
    ANSWER = 9
    SEND = 32
    SUBSCRIBE = 33
    UNSUBSCRIBE = 34
    DONE = 35
    GIVE_BACK = 36
    REQUEST = 37
    END_REQUEST = 38


_TYPES: Final[dict[int, RecordType | int]] = {int(member): member for member in RecordType}


@dataclass(frozen=True, slots=True)
class Record:
    """One record. What the fields mean for each type stands in docs/wire.md.

    Attributes:
        type: a `RecordType`, or the number of one that this version does not know.
        payload: bytes, or a view of the buffer that was decoded; it is valid as long as that.
        kind: of a message, a `shm.Kind`.
        sequence: of a message; otherwise the one that the next message has at least.
        time_ns: when the message was received, Unix time.
        key: of a message, the descriptor's; otherwise the sender's number for what is answered.
        gap: messages missed just before.
        topic: id of the topic.
        epoch: of the ring.
        total: bytes of the whole message; 0 stands for those of the payload.
        offset: where in the message the payload stands.
        deliveries: in a work group, how often the message was delivered.
    """

    type: RecordType | int
    payload: bytes | memoryview = b""
    kind: int = 0
    sequence: int = 0
    time_ns: int = 0
    key: int = 0
    gap: int = 0
    topic: int = 0
    epoch: int = 0
    total: int = 0
    offset: int = 0
    deliveries: int = 0

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self.payload))


def encode(record: Record) -> bytes:
    """A record as it goes out.

    Raises:
        WireError: a field does not fit, or the payload reaches beyond the whole message.
    """
    size = len(record.payload)
    if record.offset + size > record.total or record.total > PAYLOAD_MAX:
        raise WireError(
            f"a payload of {size} bytes at {record.offset} is no part of a message of"
            f" {record.total} bytes (at most {PAYLOAD_MAX})"
        )
    try:
        header = FIELDS.pack(
            size,
            record.type,
            record.kind,
            record.sequence,
            record.time_ns,
            record.key,
            record.gap,
            record.topic,
            record.epoch,
            record.total,
            record.offset,
            record.deliveries,
            0,
        )
    except struct.error as error:
        raise WireError(
            f"a field of {record.type!r} does not fit into its header: {error}"
        ) from None
    return header + record.payload


# ---- decoding ------------------------------------------------------------------------------


class Frame:
    """All records of a frame, or of a queue's message, at once; made with `parse`.

    Attributes:
        headers: the headers, a copy with dtype `HEADER`.
        starts: where in the buffer each payload begins.
        error: what is wrong after these records; None if nothing is.
    """

    __slots__ = ("_data", "error", "headers", "starts")

    def __init__(
        self,
        data: memoryview,
        headers: NDArray[np.void],
        starts: NDArray[np.int64],
        error: WireError | None,
    ) -> None:
        self._data = data
        self.headers = headers
        self.starts = starts
        self.error = error

    def __len__(self) -> int:
        return len(self.headers)

    def payload(self, index: int) -> memoryview:
        """A view of one record's payload, valid as long as the buffer is."""
        start = int(self.starts[index])
        return self._data[start : start + int(self.headers["size"][index])]

    def payloads(self) -> Iterator[memoryview]:
        """All of them, one after the other."""
        ends = self.starts + self.headers["size"]
        for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True):
            yield self._data[start:end]


def parse(buffer: Buffer, *, strict: bool = True) -> Frame:
    """Decode a whole frame at once. Its payloads are views of `buffer`.

    Args:
        buffer: the frame, any C-contiguous buffer.
        strict: False: return the records before what is no record, too, and say in the frame's
            `error` what is wrong.

    Raises:
        WireError: a record is truncated, has an impossible size, or is of an unknown version.
    """
    view = memoryview(buffer)
    data = view if view.format == "B" and view.ndim == 1 else view.cast("B")
    rows, starts, wrong, at = _wire.scan(data, PAYLOAD_MAX)
    error = None if wrong == _wire.WHOLE else _error(data, wrong, at)
    if error is not None and strict:
        raise error
    return Frame(data, rows.reshape(-1).view(HEADER), starts, error)


def records(buffer: Buffer) -> Iterator[Record]:
    """The records of a frame or of a queue's message, in their order. Each payload is a view of
    `buffer`, valid as long as that is.

    Raises:
        WireError: as `parse` does; the records before that one were handed out.
    """
    frame = parse(buffer, strict=False)
    for header, payload in zip(frame.headers.tolist(), frame.payloads(), strict=True):
        _, number, kind, sequence, time_ns, key, gap, topic, epoch, total, offset, times, _ = header
        yield Record(
            _TYPES.get(number, number),
            payload,
            kind,
            sequence,
            time_ns,
            key,
            gap,
            topic,
            epoch,
            total,
            offset,
            times,
        )
    if frame.error is not None:
        raise frame.error


def _error(data: memoryview, wrong: int, at: int) -> WireError:
    if wrong == _wire.LATER:
        return WireError(
            f"the record at byte {at} is of an unknown version: its last field is not zero. This is"
            f" version {VERSION}"
        )
    if wrong == _wire.IMPOSSIBLE:
        fields = FIELDS.unpack_from(data, at)
        return WireError(
            f"the record at byte {at} has an impossible size: {fields[0]} bytes at {fields[10]} of"
            f" a message of {fields[9]}"
        )
    return WireError(f"the record at byte {at} is truncated: the frame has {len(data)} bytes")


# ---- the first record ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """What HELLO says of the ring.

    Attributes:
        ring: its name.
        instance: which of all rings that had the name; sequences of two instances have nothing to
            do with each other.
        slots: messages that it holds.
        capacity: bytes of payload that it holds.
        max_message: bytes of the longest message.
        version: of the records.
    """

    ring: str
    instance: int
    slots: int
    capacity: int
    max_message: int
    version: int = VERSION

    def encode(self) -> bytes:
        """As the payload of HELLO."""
        values: dict[str, Any] = {**asdict(self), "instance": f"{self.instance:016x}"}
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: Buffer) -> Self:
        """Read the payload of HELLO; members that this version does not know are passed over.

        Raises:
            WireError: it is no HELLO, or of another version.
        """
        try:
            values = json.loads(bytes(payload))
            numbers = {k: int(values[k]) for k in ("slots", "capacity", "max_message", "version")}
            hello = cls(ring=str(values["ring"]), instance=int(values["instance"], 16), **numbers)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise WireError(f"HELLO can't be read: {error!r}") from None
        if hello.version != VERSION:
            raise WireError(
                f"the gateway speaks version {hello.version} of the records, this is version"
                f" {VERSION}: install the same ringcast on both sides"
            )
        return hello
