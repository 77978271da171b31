"""What it costs when there is more of something: readers, bytes, ring, and readers that do nothing.

*Readers.* The writer's CPU time (user and system) in publish() by one message of 128 bytes. On a
machine with fewer cores than processes nothing else can be compared: throughput would show the
readers' want of cores. So the writer publishes bursts of a quarter of the ring and between them
waits, outside the measurement, until every reader has read all; it never waits for room. Reading
readers sleep in the ring between bursts: waking them, one system call each, is included, as is what
it costs that they run on the writer's core in turn and pull its cache lines. It is spread over a
burst, though: a writer so slow that everybody sleeps between two messages pays a wake-up a reader
and message, and that is not this figure. Idle readers are attached and hold the ring as well, but
look in each 20 ms only.

*Bytes.* publish() and reading in one process, in turns, each message looked at where it lies, at
its first and last word: nanoseconds by message, and bytes a second.

*Ring.* A flow from one process to another, one by one, through rings from small to large.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.synchronize import Semaphore
from struct import Struct
from typing import Any, Final

from ringcast import shm
from ringcast.shm import broadcast

from . import flows
from .method import (
    Channel,
    Figure,
    Plan,
    Report,
    RunFailedError,
    crew,
    describe_machine,
    grid,
    in_turns,
    interleave,
    picked,
    ratio,
)
from .payloads import Checker, contents, last_word
from .throughput import bytes_text
from .transports.rings import Ring, in_a_child, ring_names

SIZE: Final = 128
BURST: Final = 16384
"""A quarter of a ring of default size."""
RARELY_S: Final = 0.02
READERS: Final = (1, 2, 4, 8, 16, 32)
BRIEF_READERS: Final = (1, 16)
COST_16: Final = 1.3
"""What 16 readers make a message cost the writer, at most, against one."""
SIZES: Final = (32, 128, 512, 2048, 8192, 32768, 131072, 524288, 1 << 20)
BRIEF_SIZES: Final = (128, 32768)
SLOTS: Final = (256, 1024, 4096, 16384, 65536, 262144)
BRIEF_SLOTS: Final = (1024, 65536)
ROOM: Final = 1024
"""Bytes of arena by slot, as by default."""


# ---- readers -------------------------------------------------------------------------------


def _burst_writer(
    channel: Channel, name: str, seconds: float, readers: int, burst_read: Semaphore
) -> None:
    payloads = contents(SIZE).payloads
    cpu_ns = bursts = 0
    with broadcast.Writer.create(name) as writer:
        channel.tell()
        channel.hear()  # the readers are attached
        end = time.monotonic() + seconds
        while bursts < 2 or time.monotonic() < end:
            before = time.process_time_ns()
            for _ in range(BURST // len(payloads)):
                for payload in payloads:
                    writer.publish(payload)
            used_ns = time.process_time_ns() - before
            cpu_ns += used_ns if bursts else 0  # the first is the warm-up
            bursts += 1
            for _ in range(readers):
                if not burst_read.acquire(timeout=channel.deadline_s):
                    raise RunFailedError("a reader did not read a burst in time")
        writer.publish(contents(SIZE).mark(0))
    channel.tell((cpu_ns / ((bursts - 1) * BURST), bursts * BURST))


def _burst_reader(channel: Channel, name: str, idle: bool, burst_read: Semaphore) -> None:
    checker = Checker(contents(SIZE), lossy=False)
    with broadcast.Reader.attach(name) as reader, contextlib.suppress(shm.RingClosed):
        channel.tell()
        checker.read_batches(_bursts(reader, idle, burst_read), 0)
    channel.tell(checker.received)


def _bursts(reader: broadcast.Reader, idle: bool, burst_read: Semaphore) -> Any:
    read = 0
    while True:
        if idle and read % BURST == 0:
            time.sleep(RARELY_S)
        with reader.batch(BURST - read % BURST, timeout=0 if idle else None) as batch:
            read += len(batch)
            if batch:
                yield batch
            if batch and read % BURST == 0:
                burst_read.release()


def _writer_cost(seconds: float, readers: int, idle: bool) -> dict[str, float]:
    burst_read = multiprocessing.get_context("fork").Semaphore(0)
    with ring_names(1) as (name,), crew(seconds) as group:
        writer = group.start(_burst_writer, name, seconds, readers, burst_read)
        writer.hear()
        attached = [group.start(_burst_reader, name, idle, burst_read) for _ in range(readers)]
        for reader in attached:
            reader.hear()
        writer.tell()
        cost_ns, sent = writer.hear()
        read = [reader.hear() for reader in attached]
        if read != [sent] * readers:
            raise RunFailedError(f"{sent} messages were sent and {read} read")
        kind = "idle" if idle else "reading"
        return {f"readers: {kind} | {readers}": cost_ns}


# ---- bytes ---------------------------------------------------------------------------------


def _by_size(channel: Channel, name: str, seconds: float, size: int) -> None:
    payloads = contents(size).payloads
    unpack = Struct(f"<Q{size - 16}xQ").unpack
    step = max(4, min(len(payloads), (8 << 20) // size))  # an eighth of the arena at most
    written = itertools.cycle(payloads)
    due = itertools.cycle((i, last_word(i)) for i in range(len(payloads)))
    with broadcast.Writer.create(name) as writer, broadcast.Reader.attach(name) as reader:

        def publish() -> None:
            for payload in itertools.islice(written, step):
                writer.publish(payload)

        def read() -> None:
            for expected, message in zip(itertools.islice(due, step), reader, strict=False):
                if unpack(message) != expected:
                    raise RunFailedError(f"{unpack(message)} came, not {expected}")

        spent = in_turns({"publish": publish, "read": read}, seconds)
    column = bytes_text(size)
    told = {f"bytes: {what} | {column}": ns / step for what, ns in spent.items()}
    told[f"flow: bytes a second | {column}"] = size * step / sum(spent.values())
    channel.tell(told)


# ---- ring ----------------------------------------------------------------------------------


def _by_slots(slots: int, seconds: float) -> dict[str, float]:
    geometry = {"slots": slots, "capacity": slots * ROOM}
    transport = type("SizedRing", (Ring,), {"geometry": geometry})
    found = flows.broadcast(transport, SIZE, 1, seconds)
    return {f"ring: {what} | {slots:,} slots": found[what] for what in ("rate", "switches")}


# ---- the scenario --------------------------------------------------------------------------


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a reader did not get exactly what was sent, or a process failed.
    """
    readers = BRIEF_READERS if plan.brief else READERS
    sizes = BRIEF_SIZES if plan.brief else SIZES
    slots = BRIEF_SLOTS if plan.brief else SLOTS
    runs: list[Callable[[], dict[str, float]]] = [
        *(partial(_writer_cost, plan.seconds, n, idle) for idle in (False, True) for n in readers),
        *(partial(in_a_child, _by_size, plan.seconds, size) for size in sizes),
        *(partial(_by_slots, n, plan.seconds) for n in slots),
    ]
    for size in (*sizes, SIZE):
        contents(size)
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    cost = picked(found, "readers")
    ring = picked(found, "ring")
    groups: dict[str, Sequence[Figure]] = {
        "the writer's CPU time by publish(), by readers attached": grid(cost, "ns"),
        "the same, 16 readers against 1": [
            ratio(f"16 / 1, {k}", cost[f"{k} | 16"], cost[f"{k} | 1"], COST_16, "smaller")
            for k in ("reading", "idle")
        ],
        "time by message in one process, by its size": grid(picked(found, "bytes"), "ns"),
        "publishing and reading in one process, by size": grid(picked(found, "flow"), "GB/s"),
        "messages a second to one reader, by size of the ring": grid(
            {name: values for name, values in ring.items() if name.startswith("rate")}, "M/s", 1e-6
        ),
        "context switches by 1000 messages, by size of the ring": grid(
            {name: values for name, values in ring.items() if name.startswith("switches")}, "", 1000
        ),
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, "arena_bytes_by_slot": ROOM}
    return Report("growth", parameters, machine, groups)
