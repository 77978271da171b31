"""Hostile segments: whatever stands in shared memory, a call of ringcast.h returns a status.

The sanitizers' builds are what this is for: a byte read outside a mapping ends the process.
"""

from __future__ import annotations

import random
from typing import Final

import pytest

from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import SHM
from tests.unit.hostile.conftest import Segment

from .ends import Ends, Status
from .toolchain import ADDRESS, UNDEFINED

ROUNDS: Final = 150
SLOTS: Final = 16
CAPACITY: Final = 1024
DESCRIPTORS: Final = 4096
"""Where they begin in the data segment."""


sanitized = pytest.mark.parametrize(
    "ends", [("gcc", ADDRESS), ("clang", UNDEFINED)], ids=["address", "undefined"], indirect=True
)


def reattach(ends: Ends, name: str) -> None:
    """Have a lossless and a lossy reader that know nothing of what was."""
    for end, policy in enumerate(("block", "lossy")):
        ends.ask("close", end)
        ends.attached(name, end, policy=policy)


@sanitized
def test_readers(ends: Ends, name: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=3) as writer:
        data, control = Segment(SHM / f"rc.{name}.d"), Segment(SHM / f"rc.{name}.c")
        for _ in range(ROUNDS):
            data.restore()
            control.restore()
            reattach(ends, name)
            for _ in range(rng.randint(0, 2 * SLOTS)):
                if writer.try_publish(rng.randbytes(rng.randint(0, 60))) is None:
                    ends.read_many(SLOTS)
            data.remember()
            if rng.random() < 0.7:
                low = DESCRIPTORS if rng.random() < 0.7 else 0
                data.spoil(rng, low, DESCRIPTORS + SLOTS * 64)
            else:
                control.spoil(rng, 128, len(control.good))
            for end in (0, 1):
                for _ in range(3):
                    ends.read(end)
                    ends.read_many(5, end)
                ends.ask("wait", end, 0)
                ends.ask("note", end, 100)
                ends.info(end)
                ends.ask("valid", end)
            answer = ends.attach(name, 2, start=rng.choice(("oldest", "latest", 3)))
            if answer["status"] is Status.OK:
                ends.read(2)
                ends.ask("close", 2)
        data.restore()
        control.restore()
        reattach(ends, name)
        writer.publish(b"as ever", timeout=0)
        for end in (0, 1):
            assert ends.read(end)["status"] is Status.OK
            ends.ask("close", end)


@sanitized
def test_senders(ends: Ends, name: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Receiver.create(name, max_senders=2, lane_bytes=1024) as receiver:
        segment = Segment(SHM / f"rc.{name}.u")
        for _ in range(ROUNDS):
            segment.restore()
            assert ends.ask("attach_sender", 0, name, 0, "-")["status"] is Status.OK
            segment.spoil(rng, 0, len(segment.good) if rng.random() < 0.3 else 2048)
            for _ in range(3):
                ends.send(rng.randbytes(rng.randint(0, 300)))
            ends.flush()
            if ends.ask("attach_sender", 1, name, 0, "-")["status"] is Status.OK:
                ends.ask("close_sender", 1)
            ends.ask("close_sender", 0)
        segment.restore()
        assert ends.ask("attach_sender", 0, name, 0, "-")["status"] is Status.OK
        assert ends.send(b"as ever")["status"] is Status.OK
        assert [bytes(message) for message in receiver.read_available()] == [b"as ever"]
        ends.ask("close_sender", 0)
