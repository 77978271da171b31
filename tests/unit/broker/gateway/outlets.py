"""What the tests of the gateway's core share: a ring, outlets on pairs of sockets, and what comes
out of them, read by code of the tests' own."""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ringcast.broker.gateway import _fanout
from ringcast.broker.worker.wire import Record, records
from ringcast.shm.broadcast import Reader, Writer
from tests.frames import BINARY, FIN, frame
from tests.unit.conftest import DATA_HEADER, data_path

EVENT: Final = 16
DESCRIPTOR_BYTES: Final = 64
_POSITION: Final = struct.Struct("<QI")
"""Position and length, from byte 8 of a descriptor."""
_FLAGS: Final = 46
"""Where they stand in it."""


class Frame(NamedTuple):
    """A frame that came."""

    opcode: int
    payload: bytes


def parse(data: bytes) -> list[Frame]:
    """Whole frames, unmasked and FIN, and nothing else."""
    found, at = [], 0
    while at < len(data):
        first, length = data[at], data[at + 1]
        assert first & 0xF0 == FIN, f"a frame begins with {first:#x}, at {at}"
        at += 2
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        found.append(Frame(first & 0x0F, data[at : at + length]))
        assert len(found[-1].payload) == length, "a frame is cut off"
        at += length
    return found


class Ring:
    """A writer whose messages can have the header before them that a server sent."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        with data_path(writer.name).open("r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)

    def descriptor(self, sequence: int) -> int:
        """Where the descriptor of a message stands."""
        return DATA_HEADER + DESCRIPTOR_BYTES * (sequence % self.writer.slots)

    def publish(
        self, payload: bytes, kind: int = BINARY, topic: int = 0, *, received: bool = False
    ) -> int | None:
        """Publish a message, if there is room; `received`: as one that came in a frame, whose
        header then stands before the payload."""
        whole = frame(kind, payload) if received else payload
        sequence = self.writer.try_publish(whole, kind=kind, topic=topic)
        header = len(whole) - len(payload)
        if sequence is not None and header:
            at = self.descriptor(sequence)
            position, length = _POSITION.unpack_from(self.bytes, at + 8)
            _POSITION.pack_into(self.bytes, at + 8, position + header, length - header)
            struct.pack_into("<H", self.bytes, at + _FLAGS, header)
        return sequence

    def close(self) -> None:
        """Not the writer."""
        self.bytes.close()


@contextlib.contextmanager
def ring(name: str, slots: int = 64, capacity: int = 1 << 16) -> Iterator[Ring]:
    """A ring of the test's own."""
    with Writer.create(
        name, slots=slots, capacity=capacity, max_readers=4, max_topics=64
    ) as writer:
        made = Ring(writer)
        try:
            yield made
        finally:
            made.close()


@dataclass
class Line:
    """An outlet, and the client's end of its socket."""

    outlet: _fanout.Outlet
    ours: socket.socket
    theirs: socket.socket
    data: bytearray = field(default_factory=bytearray)

    def read(self, most: int = 1 << 20) -> int:
        """Read at most so many bytes of what is there."""
        with contextlib.suppress(BlockingIOError):
            some = self.theirs.recv(most)
            self.data += some
            return len(some)
        return 0

    def frames(self) -> list[Frame]:
        """All that came."""
        return parse(bytes(self.data))

    def messages(self) -> list[Frame]:
        """Without control frames."""
        return [frame for frame in self.frames() if frame.opcode < 8]

    def records(self) -> list[Record]:
        """The records of all frames."""
        assert {frame.opcode for frame in self.messages()} <= {BINARY}
        return [record for frame in self.messages() for record in records(frame.payload)]


class Out:
    """A fan-out and its outlets."""

    def __init__(self, name: str) -> None:
        self.reader = Reader.attach(name, start="oldest")
        self.fanout = _fanout.Fanout(self.reader)
        self.lines: list[Line] = []

    def add(
        self,
        *,
        records: bool = False,
        lossy: bool = True,
        chooses: bool = False,
        start: int | None = None,
        missed: int = 0,
        small: bool = False,
    ) -> Line:
        """One client more; `small`: with the smallest buffer that the kernel gives."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        try:
            outlet = self.fanout.add(
                ours.fileno(),
                records=records,
                lossy=lossy,
                chooses=chooses,
                start=start,
                missed=missed,
            )
        except ValueError:
            ours.close()
            theirs.close()
            raise
        self.lines.append(Line(outlet, ours, theirs))
        return self.lines[-1]

    def pump(self) -> dict[_fanout.Outlet, int]:
        """What came of it."""
        return dict(self.fanout.pump())

    def drain(self) -> None:
        """Send all that there is; the clients take it."""
        self.fanout.look()
        while True:
            for line in self.lines:
                line.outlet.resume()
            found = self.pump()
            read = sum(line.read() for line in self.lines)
            if not read and not {*found.values()} & {_fanout.MORE, _fanout.BLOCKED}:
                return

    def close(self) -> None:
        """All of it."""
        for line in self.lines:
            line.ours.close()
            line.theirs.close()
        self.fanout.close()
        self.reader.close()


@contextlib.contextmanager
def out(name: str) -> Iterator[Out]:
    """A fan-out of the test's own."""
    made = Out(name)
    try:
        yield made
    finally:
        made.close()
