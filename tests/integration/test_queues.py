"""Message queues between processes: gateways and readers that are killed, and slow readers."""

from __future__ import annotations

import itertools
import os
import random
import select
import struct
import time
from multiprocessing.process import BaseProcess
from typing import Final, Literal, cast

import pytest

import ringcast
from ringcast import shm
from ringcast.broker.gateway.queues import QueueOptions, QueueWriter
from ringcast.broker.worker.queue_feed import QueueFeed
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually

LABEL: Final = "strategy"
INSTANCE: Final = 77
NUMBER: Final = struct.Struct("<Q")
NOTE: Final = struct.Struct("<QQ")
"""Sequence and gap of a message, as a reader's process writes them down."""
Policy = Literal["lossy", "block"]

A_WHILE: Final = 0.02
"""Seconds for which a gateway of these tests keeps the ring for a queue that blocks."""


def payload_of(number: int) -> bytes:
    """Of any length, known from the number; some go in parts."""
    rng = random.Random(number)
    return NUMBER.pack(number) + bytes(rng.choice((0, 1, 50, 200, 2100, 6000)))


def check(payload: bytes, sequence: int) -> None:
    """Is it that message, whole?"""
    assert payload == payload_of(sequence)


def gateway(name: str, policy: Policy, hold: float) -> None:
    """A gateway's process with one queue, as simple as one can be; ends with the ring."""
    readers: list[Reader] = []  # its queue says where to start, so the reader comes later

    def name_of(topic: int) -> str | None:
        return readers[0].topic_name(topic)

    writer = QueueWriter.create(
        name,
        LABEL,
        instance=INSTANCE,
        topic_name=name_of,
        options=QueueOptions(depth=8, message_size=2048, policy=policy),
    )
    start = writer.next_sequence
    with Reader.attach(name, start="oldest" if start is None else start) as reader:
        readers.append(reader)
        try:
            while True:
                with reader.batch(limit=50, timeout=0.05) as batch:
                    until = time.monotonic() + hold
                    at = writer.offer(batch)
                    while at < len(batch) and (policy == "block" and time.monotonic() < until):
                        select.select([], [writer], [], hold)
                        at = writer.offer(batch, at)
                    writer.lapse(batch.first + len(batch))
                writer.flush()
        except shm.RingClosed:
            while not writer.flush():
                select.select([], [writer], [], DEADLINE)
            writer.close("the ring has ended")


def started(processes: Processes, name: str, policy: Policy, hold: float = A_WHILE) -> BaseProcess:
    """A gateway that fills the queue."""
    process = processes.start(gateway, name, policy, hold)

    def reads() -> bool:
        assert process.is_alive()
        readers = [r for r in shm.status(name).readers if r.pid == process.pid]
        return any(r.state == "active" for r in readers)

    eventually(reads, "the gateway has its queue, and reads the ring")
    return process


def publish(writer: Writer, first: int, count: int) -> None:
    topics = [writer.topic(f"t{n}") for n in range(5)]
    for number in range(first, first + count):
        writer.publish(payload_of(number), topic=topics[number % 5], timeout=DEADLINE)


def attach(name: str) -> QueueFeed:
    return cast(QueueFeed, ringcast.attach(f"mq:{name}/{LABEL}"))


def test_a_gateway_killed_under_load_loses_nothing_that_the_ring_holds(
    name: str, processes: Processes, seed: int
) -> None:
    rng = random.Random(seed)
    rounds, per_round = 8, 300
    with Writer.create(name, slots=8192, capacity=1 << 24, max_readers=4) as writer:
        process = started(processes, name, "block", DEADLINE)
        with attach(name) as feed:
            expected = 0
            for turn in range(rounds):
                publish(writer, turn * per_round, per_round)
                for _ in range(rng.randrange(per_round)):
                    message = feed.read(DEADLINE)
                    assert message is not None
                    check(bytes(message), expected)
                    assert (message.sequence, message.gap) == (expected, 0)
                    assert message.topic_name == f"t{expected % 5}"
                    expected += 1
                processes.kill(process)
                process = started(processes, name, "block", DEADLINE)
            while expected < rounds * per_round:
                message = feed.read(DEADLINE)
                assert message is not None
                assert (message.sequence, message.gap) == (expected, 0)
                check(bytes(message), expected)
                expected += 1
            assert feed.lost == 0
            writer.close()
            with pytest.raises(shm.RingClosed, match=r"the ring has ended|it was removed"):
                feed.read(DEADLINE)
    processes.join(process)


@pytest.mark.parametrize("policy", ["lossy", "block"])
def test_a_slow_reader_is_told_exactly_what_it_missed(
    name: str, processes: Processes, seed: int, policy: Policy
) -> None:
    rng = random.Random(seed)
    total = 4000
    with Writer.create(name, slots=1024, capacity=1 << 20, max_readers=4) as writer:
        process = started(processes, name, policy)
        with attach(name) as feed:
            expected = 0
            published = 0
            while published < total:
                count = rng.randrange(200)
                publish(writer, published, count)
                published += count
                for message in feed.read_available(rng.randrange(60)):
                    assert message.sequence == expected + message.gap
                    check(bytes(message), message.sequence)
                    expected = message.sequence + 1
            writer.close()
            for message in feed:
                assert message.sequence == expected + message.gap
                check(bytes(message), message.sequence)
                expected = message.sequence + 1
            assert feed.cursor == published
            assert feed.lost > 0
    processes.join(process)


def read_and_say(name: str, to: int) -> None:
    """Reads for ever; writes down what it has got."""
    for message in attach(name):
        check(bytes(message), message.sequence)
        os.write(to, NOTE.pack(message.sequence, message.gap))


def test_a_reader_that_is_killed_is_followed_by_another(
    name: str, processes: Processes, seed: int
) -> None:
    """Each gets whole messages in their order and exact gaps, and goes on behind the last one."""
    rng = random.Random(seed)
    with Writer.create(name, slots=4096, capacity=1 << 24, max_readers=4) as writer:
        process = started(processes, name, "lossy")
        published, last = 0, -1
        for _ in range(5):
            ours, theirs = os.pipe()
            reader = processes.start(read_and_say, name, theirs)
            os.close(theirs)
            wanted = rng.randrange(1, 100)
            got: list[tuple[int, int]] = []
            until = time.monotonic() + DEADLINE
            while len(got) < wanted:
                assert time.monotonic() < until
                publish(writer, published, 10)
                published += 10
                while select.select([ours], [], [], 0.001)[0]:
                    got.append(NOTE.unpack(os.read(ours, NOTE.size)))
            processes.kill(reader)
            while record := os.read(ours, NOTE.size):
                got.append(NOTE.unpack(record))
            os.close(ours)
            assert got[0][0] > last
            for before, after in itertools.pairwise(got):
                assert after[0] == before[0] + 1 + after[1]
            last = got[-1][0]
        with attach(name) as feed:
            writer.close()
            assert all(message.sequence > last for message in feed)
    processes.join(process)
