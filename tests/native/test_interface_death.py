"""Workers in C are killed, demoted, evicted and left without a writer, as workers in Python are."""

from __future__ import annotations

import math
import random
import threading
import time
import zlib
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually, reader_status
from tests.integration.traffic import (
    SLOTS,
    Followers,
    Payloads,
    Report,
    create,
    orphan,
    publish,
    send,
    stress_seconds,
)

from .conftest import StartEnds
from .ends import Answer, Ends, Status


@pytest.fixture
def seed() -> int:
    """A seed for one test, printed so that a failure can be repeated."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return seed


def check(messages: list[Answer], payloads: Payloads, first: int | None = None) -> int:
    """Each message is whole, and the next one but for the gap it tells. Returns the next sequence;
    `first` is that of the first message, if it is known."""
    expected = first
    for message in messages:
        sequence = message["sequence"]
        payload = payloads[sequence]
        assert expected is None or sequence == expected + message["gap"], message
        assert (message["length"], message["crc"]) == (len(payload), zlib.crc32(payload)), message
        expected = sequence + 1
    return expected or 0


def fill(writer: Writer, payloads: Payloads, pid: int) -> None:
    """Publish until the reader process `pid`, and no other, holds the ring full."""

    def held_by_it() -> bool:
        gating = [reader for reader in shm.status(writer.name).readers if reader.gating]
        caught_up = all(r.cursor == writer.sequence for r in gating if r.pid != pid)
        return writer.try_publish(payloads[writer.sequence]) is None and caught_up

    eventually(held_by_it, "the ring is full")


# ---- killed --------------------------------------------------------------------------------


@pytest.mark.parametrize("doing", ["holds", "holds many", "waits", "never reads"])
def test_a_killed_reader_lets_a_blocked_writer_go(
    start_ends: StartEnds, name: str, seed: int, processes: Processes, doing: str
) -> None:
    """Its slot is free for the next one; and a Python reader beside it loses nothing."""
    followers = Followers(processes, name, seed)
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        followers.start()
        publish(writer, payloads, 3)
        victim = start_ends()
        victim.attached(name, start="oldest" if doing.startswith("holds") else "latest")
        if doing == "holds":
            assert victim.read()["status"] is Status.OK
        elif doing == "holds many":
            assert victim.read_many(3)["count"] == 3
        elif doing == "waits":
            victim.begin("wait", 0, -1)
            eventually(lambda: (found := reader_status(name, 1)) and found.waiting, "it waits")
        fill(writer, payloads, victim.pid)
        killer = threading.Timer(0.02, victim.kill)  # while the writer waits for room
        killer.start()
        writer.publish(payloads[writer.sequence], timeout=DEADLINE)
        killer.join()
        assert [reader.slot for reader in shm.status(name).readers] == [0]
        heir = start_ends()
        heir.attached(name)
        assert heir.info()["slot"] == 1
        assert heir.read()["status"] is Status.TIMEOUT
        total = writer.sequence
    assert followers.reports() == [Report(total, 0, 1)]


def test_the_slot_of_a_killed_reader_is_used_again(start_ends: StartEnds, name: str) -> None:
    with create(name):
        for _ in range(3):
            victim = start_ends()
            victim.attached(name)
            victim.begin("read", 0, -1)
            eventually(lambda: (found := reader_status(name)) and found.waiting, "it waits")
            victim.kill()
        survivor = start_ends()
        survivor.attached(name)
        assert survivor.info()["slot"] == 0
        assert [reader.pid for reader in shm.status(name).readers] == [survivor.pid]


# ---- demoted and evicted -------------------------------------------------------------------


def test_a_demoted_reader_learns_exactly_what_it_missed(
    start_ends: StartEnds, name: str, seed: int
) -> None:
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        ends = start_ends()
        ends.attached(name)
        publish(writer, payloads, 2)
        held = ends.read_many(2)
        fill(writer, payloads, ends.pid)
        assert writer.demote(0)
        assert ends.ask("held", 0)["crcs"] == held["crcs"]  # it is asked, not forced
        assert ends.ask("valid", 0)["valid"] == 1
        messages = [ends.read()]
        assert ends.info()["policy"] == 1
        for n in range(5 * SLOTS):
            writer.publish(payloads[writer.sequence], timeout=0)
            if n % 29 == 0:
                messages.append(ends.read())
        writer.close()
        ends.begin_following()
        rest, end = ends.followed()
        assert end["status"] is Status.ENDED
        messages += rest
        assert check(messages, payloads, first=2) == writer.sequence
        info = ends.info()
        assert info["lost"] == sum(message["gap"] for message in messages) > 0
        assert info["received"] + info["lost"] == writer.sequence


def test_an_evicted_reader(start_ends: StartEnds, name: str) -> None:
    with create(name) as writer:
        ends = start_ends()
        ends.attached(name)
        writer.publish(b"x")
        ends.read()
        assert ends.ask("valid", 0)["valid"] == 1
        assert writer.evict(0)
        assert ends.ask("valid", 0)["valid"] == 0
        for answer in (ends.read(), ends.read(timeout=-1), ends.read_many(5)):
            assert answer["status"] is Status.EVICTED
            assert "evicted reader slot 0" in answer["error"]
        assert ends.ask("wait", 0, -1)["status"] is Status.OK  # there is reason to read
        for _ in range(3 * SLOTS):
            writer.publish(b"y", timeout=0)
        ends.ask("close", 0)
        ends.attached(name, start=1)
        assert ends.read()["gap"] == writer.oldest - 1
        assert shm.status(name).readers[0].pid == ends.pid


@pytest.mark.parametrize("request_", ["read", "wait"])
def test_a_reader_is_evicted_while_it_waits(
    start_ends: StartEnds, name: str, request_: str
) -> None:
    with create(name) as writer:
        ends = start_ends()
        ends.attached(name)
        ends.begin(request_, 0, -1)
        eventually(lambda: (found := reader_status(name)) and found.waiting, "it waits")
        writer.evict(0)
        expected = Status.EVICTED if request_ == "read" else Status.OK
        assert ends.answer()["status"] is expected


@pytest.mark.parametrize("handshake", [1, 0], ids=["event-loop", "both-wait"])
def test_one_with_a_waiting_thread_is_demoted_and_evicted(
    start_ends: StartEnds, name: str, seed: int, handshake: int
) -> None:
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        ends = start_ends()
        ends.attached(name)
        ends.begin_following(limit=handshake, loop=True)
        publish(writer, payloads, 3 * SLOTS)
        assert writer.demote(0)
        eventually(lambda: not shm.status(name).readers[0].gating, "it steps down")
        publish(writer, payloads, 3 * SLOTS)
        assert writer.evict(0)
        messages, end = ends.followed()
        assert end["status"] is Status.EVICTED
        check(messages, payloads, first=0)


def test_the_writer_goes_on_after_an_eviction(start_ends: StartEnds, name: str, seed: int) -> None:
    """An evicted reader that goes on reading, holding and releasing disturbs nobody."""
    with create(name) as writer, Reader.attach(name, policy="lossy") as python:
        payloads = Payloads(seed, writer.max_message)
        ends = start_ends()
        ends.attached(name)
        publish(writer, payloads, 1)
        ends.read()
        fill(writer, payloads, ends.pid)
        writer.evict(1)
        publish(writer, payloads, 3 * SLOTS)
        ends.ask("release", 0)
        assert ends.read()["status"] is Status.EVICTED
        for message in python.read_available():
            assert bytes(message) == payloads[message.sequence]


# ---- without a writer ----------------------------------------------------------------------


def write_for_ever(name: str, seed: int) -> None:
    """A process: resume the ring and publish until it is killed."""
    with Writer.resume(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        while True:
            publish(writer, payloads, 10)


def await_sequence(name: str, goal: int) -> None:
    """Return when so many messages are published."""
    eventually(lambda: shm.status(name).sequence > goal, "it publishes")


@pytest.mark.parametrize("limit", [1, 50])
def test_a_writer_is_killed_and_resumed(
    start_ends: StartEnds, name: str, seed: int, processes: Processes, limit: int
) -> None:
    """An attached reader stays attached, sees the next epoch, and loses nothing."""
    orphan(name)
    ends = start_ends()
    ends.attached(name, start=0)
    ends.begin_following(limit=limit)
    for epoch in (2, 3):
        process = processes.start(write_for_ever, name, seed)
        await_sequence(name, shm.status(name).sequence + 5 * SLOTS)
        assert shm.status(name).epoch == epoch
        processes.kill(process)
    with Writer.resume(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        publish(writer, payloads, 10)
        total = writer.sequence
    messages, end = ends.followed()
    assert end["status"] is Status.ENDED
    assert check(messages, payloads, first=0) == total
    assert sum(message["gap"] for message in messages) == 0
    assert sorted({message["epoch"] for message in messages}) == [2, 3, 4]


# ---- a crowd -------------------------------------------------------------------------------

WAYS: Final = ("one by one", "many", "lossy", "loop", "holds")


def start_victim(ends: Ends, name: str, way: str) -> None:
    """A C reader that works until it is killed."""
    wait = "busy-spin" if way == "lossy" else "blocking"
    ends.attached(name, policy="lossy" if way == "lossy" else "block", start="oldest", wait=wait)
    if way == "holds":
        ends.read_many(3)
    else:
        ends.begin_following(limit=20 if way == "many" else 1, loop=way == "loop")


def kill_at_random(
    start_ends: StartEnds,
    name: str,
    seed: int,
    processes: Processes,
    rounds: float,
    seconds: float,
) -> None:
    """C and Python workers on one ring that is always full; in each round a C worker joins, and is
    killed at any moment. What anybody read was whole and in order; who lived has it all."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    followers = Followers(processes, name, seed)
    done = 0
    with create(name) as writer:
        payloads = Payloads(seed, writer.max_message)
        survivors = [start_ends() for _ in range(3)]
        for ends, policy, limit in zip(
            survivors, ("block", "block", "lossy"), (1, 30, 1), strict=True
        ):
            ends.attached(name, policy=policy, start=0)
            ends.begin_following(limit=limit)
        followers.start("block")
        followers.start("lossy")
        while done < rounds and time.monotonic() < end:
            victim = start_ends()
            start_victim(victim, name, rng.choice(WAYS))
            killer = threading.Timer(rng.random() * 0.02, victim.kill)
            killer.start()
            send(writer, payloads, writer.sequence + rng.randint(1, 5 * SLOTS), rng)
            killer.join()
            check([m for m in victim.last_messages() if "sequence" in m], payloads)
            done += 1
        total = writer.sequence
    print(f"{done} rounds, {total} messages")
    for ends in survivors:
        messages, last = ends.followed()
        assert last["status"] is Status.ENDED
        gaps = sum(message["gap"] for message in messages)
        assert check(messages, payloads, first=0) == total
        assert len(messages) + gaps == total
        assert gaps == 0 or ends is survivors[-1]
    block, lossy = followers.reports()
    assert (block.received, block.lost) == (total, 0)
    assert lossy.received + lossy.lost == total


def test_killing_at_random(
    start_ends: StartEnds, name: str, seed: int, processes: Processes
) -> None:
    kill_at_random(start_ends, name, seed, processes, rounds=30, seconds=20)


@pytest.mark.stress
def test_killing_at_random_for_long(
    start_ends: StartEnds, name: str, seed: int, processes: Processes
) -> None:
    kill_at_random(start_ends, name, seed, processes, math.inf, stress_seconds())
