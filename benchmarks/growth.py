"""How costs grow with the number of readers, the size of a message and the size of the ring.

*Readers.* The writer's CPU time (user and system) in publish() per message of 128 bytes. On a
machine with fewer cores than processes nothing else can be compared: throughput would show that the
readers lack cores. So the writer publishes bursts of a quarter of the ring. Between them it waits,
outside the measurement, until every reader has read all, so it never waits for room. Reading
readers sleep in the ring between bursts. The figure includes waking them, one system call each. It
also includes the cost of their running on the writer's core in turn and taking its cache lines. But
that is spread over a burst: a writer so slow that all readers sleep between two messages pays a
wake-up per reader and message, which is not this figure. Idle readers are attached and hold the
ring as well, but read only every 20 ms.

*Bytes.* publish() and reading take turns in one process. The reader looks at each message in place,
at its first and last word. The figures are nanoseconds per message and bytes per second.

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
from typing import Any, Final

from ringcast import shm
from ringcast.shm import broadcast

from . import flows
from .errors import RunFailedError
from .figures import Figure, bytes_text, figures_of, interleave, ratio, samples_of
from .one_process import in_child, in_turns
from .payloads import Checker, contents, last_word, words_unpacker
from .processes import Channel, child_processes
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .transports.rings import Ring

SIZE: Final = 128
BURST: Final = 16384
"""Number of messages: a quarter of a ring of default size."""
IDLE_READ_INTERVAL_S: Final = 0.02
READERS: Final = (1, 2, 4, 8, 16, 32)
BRIEF_READERS: Final = (1, 16)
COST_16: Final = 1.3
"""How many times what one reader costs the writer 16 readers may cost, at most."""
SIZES: Final = (32, 128, 512, 2048, 8192, 32768, 131072, 524288, 1 << 20)
BRIEF_SIZES: Final = (128, 32768)
SLOTS: Final = (256, 1024, 4096, 16384, 65536, 262144)
BRIEF_SLOTS: Final = (1024, 65536)
SLOT_ARENA_BYTES: Final = 1024
"""Bytes of arena per slot, as by default."""
READ_AHEAD_BYTES: Final = 8 << 20
"""What may be published before it is read in turn: an eighth of the arena."""


# ---- readers -------------------------------------------------------------------------------


def _burst_writer(
    channel: Channel, name: str, seconds: float, readers: int, burst_read: Semaphore
) -> None:
    payloads = contents(SIZE).payloads
    cpu_ns = bursts = 0
    with broadcast.Writer.create(name) as writer:
        channel.send()
        channel.receive()  # the readers are attached
        end = time.monotonic() + seconds
        while bursts < 2 or time.monotonic() < end:
            before = time.process_time_ns()
            for _ in range(BURST // len(payloads)):
                for payload in payloads:
                    writer.publish(payload)
            used_ns = time.process_time_ns() - before
            cpu_ns += used_ns if bursts else 0  # the first burst is the warm-up
            bursts += 1
            for _ in range(readers):
                if not burst_read.acquire(timeout=channel.deadline_s):
                    raise RunFailedError("a reader did not read a burst in time")
        writer.publish(contents(SIZE).mark(0))
    channel.send((cpu_ns / ((bursts - 1) * BURST), bursts * BURST))


def _burst_reader(channel: Channel, name: str, idle: bool, burst_read: Semaphore) -> None:
    checker = Checker(contents(SIZE), lossy=False)
    with broadcast.Reader.attach(name) as reader, contextlib.suppress(shm.RingClosed):
        channel.send()
        checker.read_batches(_bursts(reader, idle, burst_read), 0)
    channel.send(checker.received)


def _bursts(reader: broadcast.Reader, idle: bool, burst_read: Semaphore) -> Any:
    read = 0
    while True:
        if idle and read % BURST == 0:
            time.sleep(IDLE_READ_INTERVAL_S)
        with reader.batch(BURST - read % BURST, timeout=0 if idle else None) as batch:
            read += len(batch)
            if batch:
                yield batch
            if batch and read % BURST == 0:
                burst_read.release()


def writer_cost(seconds: float, readers: int, idle: bool) -> dict[str, float]:
    """Measure the writer's CPU time per publish() in ns, while so many readers read, or are idle.

    Raises:
        RunFailedError: a reader did not get exactly what was sent, or a process failed.
    """
    contents(SIZE)
    burst_read = multiprocessing.get_context("fork").Semaphore(0)
    with temporary_ring_name() as name, child_processes(seconds) as children:
        writer = children.start(_burst_writer, name, seconds, readers, burst_read)
        writer.receive()
        attached = [children.start(_burst_reader, name, idle, burst_read) for _ in range(readers)]
        for reader in attached:
            reader.receive()
        writer.send()
        cost_ns, sent = writer.receive()
        read = [reader.receive() for reader in attached]
        if read != [sent] * readers:
            raise RunFailedError(f"{sent} messages were sent, and {read} were read")
        kind = "idle" if idle else "reading"
        return {f"readers: {kind} | {readers}": cost_ns}


# ---- bytes ---------------------------------------------------------------------------------


def _cost_by_size(channel: Channel, name: str, seconds: float, size: int) -> None:
    payloads = contents(size).payloads
    unpack = words_unpacker(size)
    step = max(4, min(len(payloads), READ_AHEAD_BYTES // size))
    written = itertools.cycle(payloads)
    due = itertools.cycle((i, last_word(i)) for i in range(len(payloads)))
    with broadcast.Writer.create(name) as writer, broadcast.Reader.attach(name) as reader:

        def publish() -> None:
            for payload in itertools.islice(written, step):
                writer.publish(payload)

        def read() -> None:
            for expected, message in zip(itertools.islice(due, step), reader, strict=False):
                if unpack(message) != expected:
                    raise RunFailedError(f"{unpack(message)} came instead of {expected}")

        spent = in_turns({"publish": publish, "read": read}, seconds)
    column = bytes_text(size)
    found = {f"bytes: {what} | {column}": ns / step for what, ns in spent.items()}
    found[f"flow: bytes per second | {column}"] = size * step / sum(spent.values())
    channel.send(found)


# ---- ring ----------------------------------------------------------------------------------


def _flow_by_slots(slots: int, seconds: float) -> dict[str, float]:
    geometry = {"slots": slots, "capacity": slots * SLOT_ARENA_BYTES}
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
        *(partial(writer_cost, plan.seconds, n, idle) for idle in (False, True) for n in readers),
        *(partial(in_child, _cost_by_size, plan.seconds, size) for size in sizes),
        *(partial(_flow_by_slots, n, plan.seconds) for n in slots),
    ]
    for size in (*sizes, SIZE):
        contents(size)
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    cost = samples_of(found, "readers")
    ring = samples_of(found, "ring")
    groups: dict[str, Sequence[Figure]] = {
        "writer's CPU time per publish(), by number of readers": figures_of(cost, "ns"),
        "writer's CPU time per publish(), 16 readers / 1 reader": [
            ratio(f"16 / 1, {k}", cost[f"{k} | 16"], cost[f"{k} | 1"], COST_16, "smaller")
            for k in ("reading", "idle")
        ],
        "time per message in one process, by size of the message": figures_of(
            samples_of(found, "bytes"), "ns"
        ),
        "bytes published and read in one process, by size of the message": figures_of(
            samples_of(found, "flow"), "GB/s"
        ),
        "messages per second to one reader, by size of the ring": figures_of(
            {name: values for name, values in ring.items() if name.startswith("rate")}, "M/s", 1e-6
        ),
        "context switches per 1000 messages, by size of the ring": figures_of(
            {name: values for name, values in ring.items() if name.startswith("switches")}, "", 1000
        ),
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, "arena_bytes_by_slot": SLOT_ARENA_BYTES}
    return Report("growth", parameters, machine, groups)
