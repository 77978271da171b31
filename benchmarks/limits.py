"""What this machine can do at most: no transport can be faster.

*Copying.* memcpy of messages of 64 KiB and more, from as many sources as a round has, into memory
as large as a ring's arena, from front to back as publish() fills it. Beside it, publish() and
reading take turns in one process; the reader looks at each message in place, at its first and last
word.

*The kernel.* recv() of what another process sends through a Unix socket or TCP, 256 KiB at a time.
The bytes are only counted.

*Waking.* Half the time of a round trip with a POSIX semaphore each way, which is a futex; both
sides on one core, and on two. Nothing wakes a sleeping process faster.

*Calls.* What one process pays for a system call, for a look at the clock, and for each step of the
ring per message of 128 bytes: publishing one by one and 64 at a time, reading one by one with and
without its check, and reading in batches with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
import posix_ipc

from ringcast.shm import broadcast

from .errors import RunFailedError
from .figures import (
    Figure,
    bytes_text,
    figures_of,
    interleave,
    prefixed,
    ratio,
    samples_of,
)
from .one_process import in_child, in_turns
from .payloads import Checker, contents, last_word, words_unpacker
from .processes import Channel, Placement, child_processes
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .transports import BATCH_SIZE
from .transports.rings import batches
from .transports.stdlib import TcpLoopback, UnixStream

SIZES: Final = (65536, 262144, 1 << 20)
BRIEF_SIZES: Final = (65536, 1 << 20)
SHARE_OF_COPYING: Final = 0.7
"""The share of the rate of copying alone that publishing and reading large messages has to
reach."""
ARENA_BYTES: Final = 64 << 20
STEP_MESSAGES_MOST: Final = 512
STEP_BYTES_MOST: Final = 8 << 20
"""Between two looks at the clock there are at most so many messages and about so many bytes."""
SMALL: Final = 128
"""Size of a message whose steps are measured."""
RECEIVE_BYTES: Final = 256 << 10
CALLS: Final = 1000
"""Number of calls between two looks at the clock."""


# ---- copying -------------------------------------------------------------------------------


def _copying(channel: Channel, name: str, seconds: float, size: int) -> None:
    """Copy some, then publish and read some, in turns. Reports bytes per second of each."""
    step = max(4, min(STEP_MESSAGES_MOST, STEP_BYTES_MOST // size))
    payloads = contents(size).payloads
    unpack = words_unpacker(size)
    arena = mmap.mmap(-1, ARENA_BYTES)
    to = ctypes.addressof(ctypes.c_char.from_buffer(arena))
    ctypes.memset(to, 1, ARENA_BYTES)  # its pages are mapped, as a ring's are
    offsets = itertools.cycle(range(0, ARENA_BYTES, size))
    sources = itertools.cycle(enumerate(payloads))
    copied = itertools.cycle(payloads)
    with broadcast.Writer.create(name) as writer, broadcast.Reader.attach(name) as reader:
        publish, read, move = writer.publish, reader.__next__, ctypes.memmove

        def copy() -> None:
            for payload, offset in itertools.islice(zip(copied, offsets, strict=False), step):
                move(to + offset, payload, size)

        def publish_and_read() -> None:
            for counter, payload in itertools.islice(sources, step):
                publish(payload)
                if unpack(read()) != (counter, last_word(counter)):
                    raise RunFailedError(f"message {counter} of the round is not what was sent")

        spent = in_turns({"copying": copy, "publish and read": publish_and_read}, seconds)
    column = bytes_text(size)
    rates = {f"{what} | {column}": size * step / ns for what, ns in spent.items()}
    channel.send(prefixed("copying: ", rates))


def _steps(channel: Channel, name: str, seconds: float) -> None:
    """Do each step of the ring in turn. Reports what it costs per message in ns."""
    what = contents(SMALL)
    count = len(what.payloads)
    groups = [what.payloads[i : i + BATCH_SIZE] for i in range(0, count, BATCH_SIZE)]
    checker = Checker(what, lossy=False)
    mark = what.mark(0)
    with broadcast.Writer.create(name) as writer, broadcast.Reader.attach(name) as reader:

        def publish() -> None:
            for payload in what.payloads:
                writer.publish(payload)

        def publish_many() -> None:
            for group in groups:
                writer.publish_many(group)

        def iterate() -> None:
            for _ in itertools.islice(reader, count):
                pass

        def check_each() -> None:
            writer.publish(mark)
            checker.read(reader, 0)

        def check_batches() -> None:
            writer.publish(mark)
            checker.read_batches(batches(reader), 0)

        spent = in_turns(
            {
                "publish, one by one": publish,
                "iterate": iterate,
                "publish_many, 64": publish_many,
                "iterate, check each": check_each,
                "publish again": publish,
                "batches, check each": check_batches,
            },
            seconds,
        )
    del spent["publish again"]
    channel.send({f"steps: {step}": ns / count for step, ns in spent.items()})


# ---- the kernel ----------------------------------------------------------------------------


def _sockets(tcp: bool) -> tuple[socket.socket, socket.socket]:
    link = (TcpLoopback if tcp else UnixStream)(RECEIVE_BYTES)
    return link.pair()


def _send_bytes(
    _channel: Channel, sink: socket.socket, source: socket.socket, seconds: float
) -> None:
    source.close()
    data = bytes(RECEIVE_BYTES)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sink.sendall(data)
    sink.close()


def _receive_bytes(channel: Channel, sink: socket.socket, source: socket.socket) -> None:
    sink.close()
    view = memoryview(bytearray(RECEIVE_BYTES))
    total = 0
    source.recv_into(view)  # the other process has started
    began = time.perf_counter()
    while received := source.recv_into(view):
        total += received
    channel.send(total / (time.perf_counter() - began))


def _receiving(name: str, tcp: bool, seconds: float) -> dict[str, float]:
    sink, source = _sockets(tcp)
    with sink, source, child_processes(seconds) as children:
        receiver = children.start(_receive_bytes, sink, source)
        children.start(_send_bytes, sink, source, seconds)
        sink.close()
        return {f"receiving: {name}": receiver.receive()}


# ---- waking --------------------------------------------------------------------------------


def _wake(channel: Channel, names: tuple[str, str], seconds: float) -> None:
    there, back = (posix_ipc.Semaphore(name) for name in names)
    clock = time.perf_counter_ns
    times: list[int] = []
    end = clock() + int(seconds * 1e9)
    while clock() < end:
        before = clock()
        there.release()
        back.acquire()
        times.append(clock() - before)
    channel.send(float(np.median(times)) / 2000)


def _answer(_channel: Channel, names: tuple[str, str]) -> None:
    there, back = (posix_ipc.Semaphore(name) for name in names)
    while True:
        there.acquire()
        back.release()


def _waking(what: str, placement: Placement, seconds: float) -> dict[str, float]:
    with contextlib.ExitStack() as stack:
        there, back = (stack.enter_context(temporary_ring_name()) for _ in range(2))
        names = (f"/{there}", f"/{back}")
        for name in names:
            semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX)
            semaphore.close()
            stack.callback(posix_ipc.unlink_semaphore, name)
        with child_processes(seconds, placement) as children:
            waker = children.start(_wake, names, seconds)
            answerer = children.start(_answer, names)
            found = waker.receive()
            children.stop(answerer)
            return {f"waking: {what}": found}


def _calls(channel: Channel, _name: str, seconds: float) -> None:
    """Report what a look at the clock and a system call cost in ns."""

    def look_at_clock() -> None:
        for _ in range(CALLS):
            time.monotonic_ns()

    def call_kernel() -> None:
        for _ in range(CALLS):
            os.getppid()

    spent = in_turns(
        {"time.monotonic_ns()": look_at_clock, "os.getppid(), a system call": call_kernel}, seconds
    )
    channel.send({f"calls: {name}": ns / CALLS for name, ns in spent.items()})


# ---- the scenario --------------------------------------------------------------------------


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: what was read is not what was published, or a process failed.
    """
    seconds = plan.seconds
    sizes = BRIEF_SIZES if plan.brief else SIZES
    runs: list[Callable[[], dict[str, float]]] = [
        *(partial(in_child, _copying, seconds, size) for size in sizes),
        lambda: _receiving("Unix stream", tcp=False, seconds=seconds),
        lambda: _receiving("TCP loopback", tcp=True, seconds=seconds),
        lambda: _waking("a semaphore, two cores", "apart", seconds),
        lambda: _waking("a semaphore, one core", "together", seconds),
        lambda: in_child(_calls, seconds),
        lambda: in_child(_steps, seconds),
    ]
    machine = describe_machine()
    for size in (*sizes, SMALL):
        contents(size)
    found = interleave(runs, plan.repeat)
    copying = samples_of(found, "copying")

    def listed(what: str, unit: str, scale: float = 1.0) -> list[Figure]:
        return [
            Figure(name, unit, tuple(value * scale for value in values))
            for name, values in samples_of(found, what).items()
        ]

    groups: dict[str, Sequence[Figure]] = {
        "copying, in one process": [
            *figures_of(copying, "GB/s"),
            *(
                ratio(
                    f"publish and read / copying | {size}",
                    copying[f"publish and read | {size}"],
                    copying[f"copying | {size}"],
                    SHARE_OF_COPYING,
                )
                for size in map(bytes_text, sizes)
            ),
        ],
        "receiving from the kernel": listed("receiving", "GB/s", 1e-9),
        "waking, one way": listed("waking", "us"),
        "calls": listed("calls", "ns"),
        "steps of the ring, per message of 128 B": listed("steps", "ns"),
    }
    return Report("limits", plan.as_json(), machine, groups)
