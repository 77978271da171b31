"""What the tests of the gateway's queues share: a ring, a gateway's end, and one who reads raw."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast.broker.gateway.queues import QueueOptions, QueueWriter
from ringcast.broker.worker.wire import Record, RecordType, records
from ringcast.shm import names
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.queues import Queue

INSTANCE: Final = 0xABC
LABEL: Final = "strategy"
SMALL: Final = 2048
"""Bytes of a queue's message, in most of the tests."""


@pytest.fixture
def mqueue(name: str, tmp_path: Path) -> Iterator[Path]:
    """Where the queues can be seen, mounted for the test alone; none of the ring's is left."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts mqueue")
    folder = tmp_path / "mqueue"
    folder.mkdir()
    subprocess.run(["/bin/mount", "-t", "mqueue", "none", str(folder)], check=True, timeout=60)
    try:
        yield folder
        assert [path.name for path in folder.iterdir() if f"rc.{name}." in path.name] == []
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True, timeout=60)


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    """The writer of a ring of 256 messages and 64 KiB."""
    with Writer.create(name, slots=256, capacity=1 << 16, max_readers=4) as writer:
        yield writer


@dataclass
class Gateway:
    """A gateway's end of one queue."""

    reader: Reader
    writer: QueueWriter

    def pass_on(self) -> int:
        """Offer everything that the ring has; how many messages were not taken."""
        left = 0
        while True:
            with self.reader.batch(timeout=0) as batch:
                if len(batch) == 0:
                    return left
                left += len(batch) - self.writer.offer(batch)


def new_writer(ring: str, reader: Reader, **options: Any) -> QueueWriter:
    """The writer of the queue `LABEL`."""
    return QueueWriter.create(
        ring,
        LABEL,
        instance=INSTANCE,
        topic_name=reader.topic_name,
        options=QueueOptions(**{"depth": 4, "message_size": SMALL} | options),
    )


@dataclass
class Tap:
    """Takes records out of a queue as they are; joins nothing."""

    queue: Queue
    sizes: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, ring: str) -> Tap:
        """Of the queue `LABEL`."""
        return cls(Queue.open_to_read(names.queue_name(ring, LABEL)))

    def take(self, queue_messages: int = 1 << 20) -> list[Record]:
        """The records of so many messages of the queue, as far as there are."""
        found: list[Record] = []
        while queue_messages and (data := self.queue.try_receive()) is not None:
            self.sizes.append(len(data))
            found += records(data)
            queue_messages -= 1
        return found

    def messages(self, queue_messages: int = 1 << 20) -> list[Record]:
        """Those of type MESSAGE."""
        return [r for r in self.take(queue_messages) if r.type is RecordType.MESSAGE]


def joined(parts: list[Record]) -> list[tuple[int, bytes]]:
    """Sequence and bytes of whole messages; parts come one after the other."""
    found: list[tuple[int, bytes]] = []
    data = b""
    for part in parts:
        assert part.offset == len(data)
        data += bytes(part.payload)
        if len(data) == part.total:
            found.append((part.sequence, data))
            data = b""
    assert data == b""
    return found


@pytest.fixture
def gateway(ring: Writer) -> Iterator[Gateway]:
    """A gateway with a lossy queue."""
    with Reader.attach(ring.name) as reader:
        gateway = Gateway(reader, new_writer(ring.name, reader))
        yield gateway
        gateway.writer.close("over")


@pytest.fixture
def tap(gateway: Gateway) -> Iterator[Tap]:
    """The other end of its queue."""
    tap = Tap.of(gateway.reader.name)
    yield tap
    tap.queue.close()
