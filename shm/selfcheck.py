"""``python -m ringcast.shm``: does the ring work here? A writer, three readers, and a kill -9."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import zlib
from multiprocessing.connection import Connection
from typing import Literal

from . import RingError, status
from .broadcast import Reader, Writer
from .spawning import safe_path

MESSAGES = 200_000
DEADLINE = 60.0  # seconds


def _payload(sequence: int) -> bytes:
    body = sequence.to_bytes(8, "little") * (1 + sequence % 31)
    return zlib.crc32(body).to_bytes(4, "little") + body


def _is_whole(sequence: int, payload: memoryview) -> bool:
    head = int.from_bytes(payload[:4], "little")
    return head == zlib.crc32(payload[4:]) and payload[4:12] == sequence.to_bytes(8, "little")


def _read(name: str, policy: Literal["block", "lossy"], results: Connection) -> None:
    """A worker: check every message, then report how many came, were missed, were wrong."""
    received = wrong = 0
    with Reader.attach(name, policy=policy, start="oldest", label=policy) as reader:
        results.send("attached")
        for message in reader:
            received += 1
            with message.payload as payload:
                wrong += not _is_whole(message.sequence, payload)
        results.send((received, reader.lost, wrong))


def _hold(name: str, results: Connection) -> None:
    """A worker that reads one message, keeps a view of it and does not go on."""
    with Reader.attach(name, start="oldest", label="stuck") as reader:
        message = reader.read(DEADLINE)
        view = memoryview(message) if message is not None else None
        results.send(("holds", view is not None))
        time.sleep(DEADLINE)


def check(name: str) -> list[str]:
    """Run it all on a new ring of this name; returns what went wrong."""
    context = multiprocessing.get_context("spawn")
    faults = []
    with Writer.create(name, slots=1024, capacity=1 << 20) as writer:
        print(f"ring {name}: {writer.slots} slots, {writer.capacity >> 10} KiB")
        writer.publish(_payload(0))
        pipes, workers = [], []
        for arguments in ((name, "block"), (name, "block"), (name, "lossy"), (name,)):
            mine, theirs = context.Pipe()
            target = _read if len(arguments) == 2 else _hold
            worker = context.Process(target=target, args=(*arguments, theirs), daemon=True)
            with safe_path():
                worker.start()
            theirs.close()
            pipes.append(mine)
            workers.append(worker)
        try:
            for pipe in pipes:
                if not pipe.poll(DEADLINE):
                    return ["a worker did not attach in time"]
                pipe.recv()
            faults += _publish_past_a_dead_reader(writer, workers.pop())
            writer.close()
            for pipe, worker in zip(pipes, workers, strict=False):
                if not pipe.poll(DEADLINE):
                    return [*faults, "a worker did not finish in time"]
                received, lost, wrong = pipe.recv()
                print(f"  process {worker.pid}: received {received}, lost {lost}, wrong {wrong}")
                if wrong or received + lost != MESSAGES:
                    faults.append(f"process {worker.pid} did not get every message as it was")
        finally:
            for worker in workers:
                worker.kill()
                worker.join(DEADLINE)
    return faults


def _publish_past_a_dead_reader(
    writer: Writer, stuck: multiprocessing.context.SpawnProcess
) -> list[str]:
    """Fill the ring against a reader that does not read; kill it; publish the rest."""
    sequence = 1
    while writer.try_publish(_payload(sequence)) is not None or _is_moving(writer.name):
        sequence = writer.sequence
    print(f"  ring full at message {sequence}: occupancy {status(writer.name).occupancy:.2f}")
    stuck.kill()
    stuck.join(DEADLINE)
    begun = time.perf_counter()
    writer.publish(_payload(sequence), timeout=DEADLINE)
    waited_ms = (time.perf_counter() - begun) * 1000
    print(f"  reader killed -9: the writer went on after {waited_ms:.0f} ms")
    begun = time.perf_counter()
    for number in range(sequence + 1, MESSAGES):
        writer.publish(_payload(number), timeout=DEADLINE)
    rate = (MESSAGES - sequence) / (time.perf_counter() - begun)
    print(f"  {rate:,.0f} messages a second to 2 lossless readers and a lossy one")
    return [] if waited_ms < DEADLINE * 1000 else ["a dead reader held the ring"]


def _is_moving(name: str) -> bool:
    """Is anybody but the stuck reader still behind?"""
    now = status(name)
    return any(r.gating and r.label != "stuck" and r.lag for r in now.readers)


def main() -> int:
    """Exit status 0 if all is well, 1 if not."""
    try:
        faults = check(f"check-{os.getpid()}")
    except RingError as error:
        faults = [str(error)]
    for fault in faults:
        print(f"FAILED: {fault}", file=sys.stderr)
    if not faults:
        print("all is well: every message in order, none torn, every loss reported")
    return 1 if faults else 0
