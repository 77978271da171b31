"""A ring against a Unix stream socket: throughput, latency, and what readers cost the writer.

Every message is 128 bytes: a counter, zeros, and a last word made of the counter. Every reader
checks length, counter and last word of every message, so it touches both cache lines of each
payload, and at the end the counts of both sides are compared. That is the work a figure includes;
nothing else is done with a message. Rings have their default sizes, endpoints their default way of
waiting unless a figure says otherwise.

Who copies what:

* Ring: the writer copies a payload into shared memory; the readers look at it there.
* Socket: the kernel copies it in, and out again into the reader's buffer of 256 KiB; the reader
  gets a memoryview of that buffer, good until the next one. Frames (4 bytes of length, payload)
  are made beforehand, so the writer neither packs nor joins for single sends; for 64 a send it
  joins them, since which go together is known only then.

A flow is timed from the writer's first send after the warm-up until the reader has read the last
message, so a large buffer makes nothing faster: what it holds at the end is yet to be read.

Processes run where the scheduler puts them, but for latency: a sleeper woken on the core of who
wakes it answers in a tenth of the time it takes to rouse an idle core, and which of the two the
scheduler does changes from run to run. So both sides are pinned, to a core each or to the same one,
and like is compared with like. A spinning reader needs a core of its own and is compared with the
socket between two.

Latency is half the time of there and back again, as one side measures it, payload check excluded.

What readers cost the writer is its CPU time (user and system) in publish() by one message, with 16
readers attached against 1. On a machine with fewer cores than processes nothing else can be
compared: throughput would show the readers' want of cores. So the writer publishes bursts of a
quarter of the ring and between them waits, outside the measurement, until every reader has read
all; it never waits for room. Reading readers sleep in the ring between bursts: waking them, one
system call each, is included, as is what it costs that they run on the writer's core in turn and
pull its cache lines. It is spread over a burst, though: a writer so slow that everybody sleeps
between two messages pays a wake-up a reader and message, and that is not this figure. Rare readers
gate as well, but sleep outside the ring and look in each 20 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.synchronize import Semaphore
from struct import Struct
from typing import Any, Final

import numpy as np

import shm
from shm import broadcast

from .method import (
    Channel,
    Figure,
    Placement,
    Report,
    RunFailedError,
    crew,
    describe_machine,
    interleave,
    ratio,
)

SIZE: Final = 128
ROUND: Final = 4096
"""Messages whose contents differ; they are sent over and over."""
GROUP: Final = 64
WARM_UP: Final = 4 * ROUND
BURST: Final = 4 * ROUND
"""A quarter of a ring of default size."""
READERS: Final = 16
RARELY_S: Final = 0.02
BUFFER: Final = 256 << 10

_HEADER: Final = Struct("<I")
LAYOUT: Final = Struct("<Q112xQ")
_RECORD: Final = np.dtype(
    {"names": ["counter", "last"], "formats": ["<u8", "<u8"], "offsets": [0, 120], "itemsize": SIZE}
)
_EXPECTED: Final = [(i, i * 0x9E3779B97F4A7C15 % 2**64) for i in range(ROUND)]
PAYLOADS: Final = [LAYOUT.pack(*words) for words in _EXPECTED]
_GROUPS: Final = [PAYLOADS[i : i + GROUP] for i in range(0, ROUND, GROUP)]
_FRAMES: Final = [_HEADER.pack(SIZE) + payload for payload in PAYLOADS]
_FRAME_GROUPS: Final = [_FRAMES[i : i + GROUP] for i in range(0, ROUND, GROUP)]

# What a batch of any length, starting anywhere in a round, must hold.
_LONGEST_BATCH: Final = 65536
_EXPECTED_RECORDS: Final = np.tile(
    np.array(_EXPECTED, dtype=[("counter", "<u8"), ("last", "<u8")]), _LONGEST_BATCH // ROUND + 1
)
_COUNTERS: Final = _EXPECTED_RECORDS["counter"].copy()
_LASTS: Final = _EXPECTED_RECORDS["last"].copy()

Payload = bytes | memoryview | broadcast.Message

_numbers = itertools.count()


@contextlib.contextmanager
def ring_names(count: int) -> Iterator[list[str]]:
    """Names of rings that nobody else uses; what a dead child leaves of them is removed."""
    names = [f"bench{os.getpid()}-{next(_numbers)}" for _ in range(count)]
    try:
        yield names
    finally:
        for name in names:
            with contextlib.suppress(shm.RingNotFound):
                shm.unlink(name)


# ---- reading and checking ------------------------------------------------------------------


def _check(items: Iterable[Payload]) -> int:
    """Read messages to the end, one by one; returns how many there were.

    Raises:
        RunFailedError: one is missing, comes twice, out of order, or has other bytes.
    """
    unpack = LAYOUT.unpack
    count = 0
    for item, expected in zip(items, itertools.cycle(_EXPECTED)):
        if unpack(item) != expected:
            raise RunFailedError(f"message {count} has {unpack(item)}, not {expected}")
        count += 1
    return count


def _check_batch(batch: broadcast.Batch, read: int) -> int:
    """Read the messages of a batch, the first of which is number `read`; returns how many.

    The lengths are summed, and counters and last words compared with what they must be, as numpy
    arrays in place. Raises as `_check`.
    """
    count = len(batch)
    start = read % ROUND
    records = batch.records(_RECORD)
    if (
        int(batch.descriptors["length"].sum()) != count * SIZE
        or not np.array_equal(records["counter"], _COUNTERS[start : start + count])
        or not np.array_equal(records["last"], _LASTS[start : start + count])
    ):
        raise RunFailedError(f"messages {read} to {read + count} are not what was sent")
    return count


def _check_batches(reader: broadcast.Reader, stop: int | None = None) -> int:
    """Read `stop` messages in batches, or until the ring ends; returns how many."""
    read = 0
    with contextlib.suppress(shm.RingClosed):
        while stop is None or read < stop:
            with reader.batch(_LONGEST_BATCH if stop is None else stop - read) as batch:
                read += _check_batch(batch, read)
    return read


def _frames(source: socket.socket) -> Iterator[memoryview]:
    """Payloads of the frames that come in, each valid until the next is asked for."""
    view = memoryview(bytearray(BUFFER))
    length_at = _HEADER.unpack_from
    start = end = 0
    while True:
        received = source.recv_into(view[end:])
        if not received:
            return
        end += received
        while end - start >= 4:
            payload = start + 4
            stop = payload + length_at(view, start)[0]
            if stop > end:
                break
            yield view[payload:stop]
            start = stop
        view[: end - start] = view[start:end]
        start, end = 0, end - start


# ---- flows ---------------------------------------------------------------------------------


def _send(
    channel: Channel, send: Callable[[Any], object], items: list[Any], seconds: float
) -> tuple[int, int]:
    """Send the same round of messages over and over; returns when that began (monotonic, ns) and
    how many messages were sent, those of the warm-up included."""
    for _ in range(WARM_UP // ROUND):
        for item in items:
            send(item)
    channel.hear()  # the reader has read them
    began = time.monotonic_ns()
    end = began + int(seconds * 1e9)
    sent = WARM_UP
    while time.monotonic_ns() < end:
        for item in items:
            send(item)
        sent += ROUND
    return began, sent


def _ring_writer(channel: Channel, name: str, seconds: float, grouped: bool) -> None:
    with broadcast.Writer.create(name) as writer:
        channel.tell()
        channel.hear()  # the reader is attached
        if grouped:
            result = _send(channel, writer.publish_many, _GROUPS, seconds)
        else:
            result = _send(channel, writer.publish, PAYLOADS, seconds)
    channel.tell(result)


def _ring_reader(channel: Channel, name: str, grouped: bool) -> None:
    with broadcast.Reader.attach(name) as reader:
        channel.tell()
        if grouped:
            _check_batches(reader, WARM_UP)
            channel.tell()
            read = _check_batches(reader)
        else:
            _check(itertools.islice(reader, WARM_UP))
            channel.tell()
            read = _check(reader)
        ended = time.monotonic_ns()
    channel.tell((ended, read + WARM_UP))


def _socket_writer(channel: Channel, sink: socket.socket, seconds: float, grouped: bool) -> None:
    channel.tell()
    channel.hear()
    if grouped:
        result = _send(channel, lambda g: sink.sendall(b"".join(g)), _FRAME_GROUPS, seconds)
    else:
        result = _send(channel, sink.sendall, _FRAMES, seconds)
    sink.shutdown(socket.SHUT_WR)
    channel.tell(result)


def _socket_reader(channel: Channel, source: socket.socket) -> None:
    frames = _frames(source)
    channel.tell()
    _check(itertools.islice(frames, WARM_UP))
    channel.tell()
    read = _check(frames)
    channel.tell((time.monotonic_ns(), read + WARM_UP))


def _rate(writer: Channel, start_reader: Callable[[], Channel]) -> float:
    """Lead one writer and one reader through a flow; returns messages a second."""
    writer.hear()
    reader = start_reader()
    reader.hear()
    writer.tell()
    reader.hear()
    writer.tell()
    began, sent = writer.hear()
    ended, read = reader.hear()
    if sent != read:
        raise RunFailedError(f"{sent} messages were sent and {read} read")
    messages_a_second: float = (sent - WARM_UP) / (ended - began) * 1e9
    return messages_a_second


def _ring_flow(seconds: float, grouped: bool) -> float:
    with ring_names(1) as (name,), crew(seconds) as group:
        writer = group.start(_ring_writer, name, seconds, grouped)
        return _rate(writer, lambda: group.start(_ring_reader, name, grouped))


def _socket_flow(seconds: float, grouped: bool) -> float:
    sink, source = socket.socketpair()
    with sink, source, crew(seconds) as group:
        writer = group.start(_socket_writer, sink, seconds, grouped)
        return _rate(writer, lambda: group.start(_socket_reader, source))


# ---- there and back again ------------------------------------------------------------------


def ping(
    channel: Channel, send: Callable[[bytes], object], answers: Iterator[Payload], seconds: float
) -> None:
    """Send, wait for the answer, and tell median and 99th percentile of half the time, in us."""
    clock = time.perf_counter_ns
    times: list[int] = []
    end = 0
    for number in itertools.count():
        if number == ROUND // 4:  # the warm-up is over
            times.clear()
            end = clock() + int(seconds * 1e9)
        payload = PAYLOADS[number % ROUND]
        before = clock()
        send(payload)
        answer = next(answers)
        after = clock()
        times.append(after - before)
        if bytes(answer) != payload:
            raise RunFailedError(f"the answer to message {number} has other bytes")
        if end and after > end:
            break
    half_us = np.percentile(times, (50, 99)) / 2000
    channel.tell({"p50": half_us[0], "p99": half_us[1]})


def _ring_ping(
    channel: Channel, there: str, back: str, wait: shm.BusySpin | shm.Blocking, seconds: float
) -> None:
    with broadcast.Writer.create(there, wait=wait) as writer:
        channel.tell()
        channel.hear()
        with broadcast.Reader.attach(back, wait=wait) as reader:
            channel.tell()
            channel.hear()
            ping(channel, writer.publish, reader, seconds)


def _ring_pong(channel: Channel, there: str, back: str, wait: shm.BusySpin | shm.Blocking) -> None:
    with broadcast.Writer.create(back, wait=wait) as writer:
        channel.tell()
        channel.hear()
        with broadcast.Reader.attach(there, wait=wait) as reader:
            channel.tell()
            for message in reader:
                writer.publish(message)


def _ring_latency(
    seconds: float, wait: shm.BusySpin | shm.Blocking, place: Placement
) -> dict[str, float]:
    with ring_names(2) as (there, back), crew(seconds, place) as group:
        ping = group.start(_ring_ping, there, back, wait, seconds)
        pong = group.start(_ring_pong, there, back, wait)
        for step in (Channel.hear, Channel.tell, Channel.hear):  # both are made, then attached
            step(ping)
            step(pong)
        ping.tell()
        found: dict[str, float] = ping.hear()
        return found


def _socket_ping(channel: Channel, end: socket.socket, seconds: float) -> None:
    answers = _frames(end)
    ping(channel, lambda payload: end.sendall(_HEADER.pack(SIZE) + payload), answers, seconds)
    end.shutdown(socket.SHUT_RDWR)


def _socket_pong(_channel: Channel, end: socket.socket) -> None:
    view = memoryview(bytearray(BUFFER))
    while received := end.recv_into(view):
        end.sendall(view[:received])


def socket_latency(seconds: float, place: Placement) -> dict[str, float]:
    one, other = socket.socketpair()
    with one, other, crew(seconds, place) as group:
        group.start(_socket_pong, other)
        found: dict[str, float] = group.start(_socket_ping, one, seconds).hear()
        return found


# ---- what readers cost the writer ----------------------------------------------------------


def _burst_writer(
    channel: Channel, name: str, seconds: float, readers: int, burst_read: Semaphore
) -> None:
    cpu_ns = bursts = 0
    with broadcast.Writer.create(name) as writer:
        channel.tell()
        channel.hear()  # the readers are attached
        end = time.monotonic() + seconds
        while bursts < 2 or time.monotonic() < end:
            before = time.process_time_ns()
            for _ in range(BURST // ROUND):
                for payload in PAYLOADS:
                    writer.publish(payload)
            used_ns = time.process_time_ns() - before
            cpu_ns += used_ns if bursts else 0  # the first is the warm-up
            bursts += 1
            for _ in range(readers):
                if not burst_read.acquire(timeout=channel.deadline_s):
                    raise RunFailedError("a reader did not read a burst in time")
    channel.tell((cpu_ns / ((bursts - 1) * BURST), bursts * BURST))


def _burst_reader(channel: Channel, name: str, rarely: bool, burst_read: Semaphore) -> None:
    read = 0
    with broadcast.Reader.attach(name) as reader, contextlib.suppress(shm.RingClosed):
        channel.tell()
        while True:
            if rarely and read % BURST == 0:
                time.sleep(RARELY_S)
            with reader.batch(BURST - read % BURST, timeout=0 if rarely else None) as batch:
                read += _check_batch(batch, read)
                if len(batch) and read % BURST == 0:
                    burst_read.release()
    channel.tell(read)


def _writer_cost(seconds: float, readers: int, rarely: bool) -> float:
    """CPU time of the writer by one publish(), ns."""
    burst_read = multiprocessing.get_context("fork").Semaphore(0)
    with ring_names(1) as (name,), crew(seconds) as group:
        writer = group.start(_burst_writer, name, seconds, readers, burst_read)
        writer.hear()
        attached = [group.start(_burst_reader, name, rarely, burst_read) for _ in range(readers)]
        for reader in attached:
            reader.hear()
        writer.tell()
        cost_ns, sent = writer.hear()
        read = [reader.hear() for reader in attached]
        if read != [sent] * readers:
            raise RunFailedError(f"{sent} messages were sent and {read} read")
        return float(cost_ns)


# ---- one process ---------------------------------------------------------------------------


def _alone(channel: Channel, name: str, seconds: float) -> None:
    """Tell what each call costs by one message, in ns, `for` loop included, where writing and
    reading take turns in one process."""
    with (
        broadcast.Writer.create(name) as writer,
        broadcast.Reader.attach(name) as reader,
    ):

        def publish() -> None:
            for payload in PAYLOADS:
                writer.publish(payload)

        def publish_many() -> None:
            for group in _GROUPS:
                writer.publish_many(group)

        def iterate() -> None:
            for _ in itertools.islice(reader, ROUND):
                pass

        def iterate_and_check() -> None:
            _check(itertools.islice(reader, ROUND))

        def batch_and_check() -> None:
            _check_batches(reader, ROUND)

        steps = (publish, iterate, publish_many, iterate_and_check, publish, batch_and_check)
        spent_ns = dict.fromkeys(steps, 0)
        calls = dict.fromkeys(steps, 0)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for step in steps:
                before = time.perf_counter_ns()
                step()
                spent_ns[step] += time.perf_counter_ns() - before
                calls[step] += 1
    channel.tell({s.__name__: spent_ns[s] / calls[s] / ROUND for s in steps})


def _single_process(seconds: float) -> dict[str, float]:
    with ring_names(1) as (name,), crew(seconds) as group:
        found: dict[str, float] = group.start(_alone, name, seconds).hear()
        return found


# ---- the scenario --------------------------------------------------------------------------


def prefixed(prefix: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in found.items()}


def measure(seconds: float, repeat: int) -> Report:
    """Run the scenario: each measurement for so many seconds, all of them `repeat` times in turn.

    Raises:
        RunFailedError: a reader did not get exactly what was sent, or a process failed.
    """
    sleep = shm.Blocking(spin_us=0)
    runs: list[Callable[[], dict[str, float]]] = [
        lambda: {"ring": _ring_flow(seconds, grouped=False)},
        lambda: {"socket": _socket_flow(seconds, grouped=False)},
        lambda: {"ring 64": _ring_flow(seconds, grouped=True)},
        lambda: {"socket 64": _socket_flow(seconds, grouped=True)},
        lambda: prefixed("busy ", _ring_latency(seconds, shm.BusySpin(), "apart")),
        lambda: prefixed("socket ", socket_latency(seconds, "apart")),
        lambda: prefixed("blocking ", _ring_latency(seconds, sleep, "apart")),
        lambda: prefixed("one core socket ", socket_latency(seconds, "together")),
        lambda: prefixed("one core blocking ", _ring_latency(seconds, sleep, "together")),
        lambda: {"1 reading": _writer_cost(seconds, 1, rarely=False)},
        lambda: {"16 reading": _writer_cost(seconds, READERS, rarely=False)},
        lambda: {"1 rare": _writer_cost(seconds, 1, rarely=True)},
        lambda: {"16 rare": _writer_cost(seconds, READERS, rarely=True)},
        lambda: _single_process(seconds),
    ]
    machine = describe_machine()
    found = interleave(runs, repeat)

    def plain(what: str, name: str, unit: str) -> Figure:
        return Figure(what, unit, tuple(found[name]))

    def rate(what: str, name: str) -> Figure:
        return Figure(what, "M/s", tuple(value / 1e6 for value in found[name]))

    def blocking_ratios(place: str) -> list[Figure]:
        ring, other = f"{place}blocking", f"{place}socket"
        return [
            ratio(
                "Blocking / socket, p50",
                found[f"{ring} p50"],
                found[f"{other} p50"],
                1.2,
                "smaller",
            ),
            ratio("Blocking / socket, p99", found[f"{ring} p99"], found[f"{other} p99"]),
        ]

    groups = {
        "messages, one writer and one reader": [
            rate("ring: publish, iterate", "ring"),
            rate("socket: a sendall each", "socket"),
            rate("ring: publish_many(64), batch", "ring 64"),
            rate("socket: 64 a sendall", "socket 64"),
            ratio("ring / socket", found["ring"], found["socket"], 5),
            ratio("ring 64 / socket", found["ring 64"], found["socket"], 20),
            ratio("ring 64 / socket 64", found["ring 64"], found["socket 64"], 8),
        ],
        "one way, half a round trip, each side on its own core": [
            plain("ring, BusySpin, p50", "busy p50", "us"),
            plain("ring, BusySpin, p99", "busy p99", "us"),
            plain("socket, p50", "socket p50", "us"),
            plain("socket, p99", "socket p99", "us"),
            plain("ring, Blocking(spin_us=0), p50", "blocking p50", "us"),
            plain("ring, Blocking(spin_us=0), p99", "blocking p99", "us"),
            ratio("socket / BusySpin, p50", found["socket p50"], found["busy p50"], 40),
            ratio("socket / BusySpin, p99", found["socket p99"], found["busy p99"]),
            *blocking_ratios(""),
        ],
        "the same, both sides on one core": [
            plain("socket, p50", "one core socket p50", "us"),
            plain("socket, p99", "one core socket p99", "us"),
            plain("ring, Blocking(spin_us=0), p50", "one core blocking p50", "us"),
            plain("ring, Blocking(spin_us=0), p99", "one core blocking p99", "us"),
            *blocking_ratios("one core "),
        ],
        "the writer's CPU time by publish()": [
            plain("1 reader, reading", "1 reading", "ns"),
            plain("16 readers, reading", "16 reading", "ns"),
            plain("1 reader, looking in rarely", "1 rare", "ns"),
            plain("16 readers, looking in rarely", "16 rare", "ns"),
            ratio("16 / 1, reading", found["16 reading"], found["1 reading"], 1.3, "smaller"),
            ratio("16 / 1, rarely", found["16 rare"], found["1 rare"], 1.3, "smaller"),
        ],
        "in one process, by message": [
            plain("publish", "publish", "ns"),
            plain("publish_many(64)", "publish_many", "ns"),
            plain("iterate", "iterate", "ns"),
            plain("iterate, check each payload", "iterate_and_check", "ns"),
            plain("batch, check each payload", "batch_and_check", "ns"),
        ],
    }
    parameters = {"message_bytes": SIZE, "seconds": seconds, "repeat": repeat}
    return Report("ring", parameters, machine, groups)
