"""What no transport can be faster than on this machine, measured beside.

*Copying.* memcpy of messages of 64 KiB and more, from as many sources as a round has, into memory
as large as a ring's arena, from front to back as publish() fills it; and publish() and reading, in
turns, in one process: the reader looks at each message where it lies, at its first and last word.

*The kernel.* recv() of what another process sends through a Unix socket and TCP, 256 KiB at a time,
only counted.

*Waking.* Half the time of there and back again with a POSIX semaphore each way, which is a futex:
both sides on one core, and on two. Nothing that sleeps is woken faster.

*Calls.* What one process pays for a call of the kernel, a look at the clock, and each step of the
ring by message of 128 bytes: publishing one by one and 64 at a time, reading one by one with and
without its check, and in batches with it.
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
from struct import Struct
from typing import Final

import numpy as np
import posix_ipc

from ringcast.shm import broadcast

from .method import (
    Channel,
    Figure,
    Placement,
    Plan,
    Report,
    RunFailedError,
    crew,
    describe_machine,
    grid,
    in_turns,
    interleave,
    picked,
    prefixed,
    ratio,
)
from .payloads import Checker, contents, last_word
from .throughput import bytes_text
from .transports import GROUP
from .transports.rings import batches, in_a_child, ring_names
from .transports.stdlib import TcpLoopback, UnixStream

SIZES: Final = (65536, 262144, 1 << 20)
BRIEF_SIZES: Final = (65536, 1 << 20)
OF_COPYING: Final = 0.7
"""What publishing and reading large messages reaches of copying alone, at least."""
ARENA: Final = 64 << 20
STEP: Final = 512
"""Messages between two looks at the clock, fewer if they are large."""
SMALL: Final = 128
RECEIVE: Final = 256 << 10


# ---- copying -------------------------------------------------------------------------------


def _copying(channel: Channel, name: str, seconds: float, size: int) -> None:
    """Take turns: copy some, publish and read some; tell bytes a second of each."""
    step = max(4, min(STEP, (8 << 20) // size))
    payloads = contents(size).payloads
    unpack = Struct(f"<Q{size - 16}xQ").unpack
    arena = mmap.mmap(-1, ARENA)
    to = ctypes.addressof(ctypes.c_char.from_buffer(arena))
    ctypes.memset(to, 1, ARENA)  # its pages are there, as a ring's are
    offsets = itertools.cycle(range(0, ARENA, size))
    sources = itertools.cycle(enumerate(payloads))
    copied = itertools.cycle(payloads)
    with broadcast.Writer.create(name) as writer, broadcast.Reader.attach(name) as reader:
        publish, read, move = writer.publish, reader.__next__, ctypes.memmove

        def copy() -> None:
            for payload, offset in itertools.islice(zip(copied, offsets, strict=False), step):
                move(to + offset, payload, size)

        def carry() -> None:
            for counter, payload in itertools.islice(sources, step):
                publish(payload)
                if unpack(read()) != (counter, last_word(counter)):
                    raise RunFailedError(f"message {counter} of the round is not what was sent")

        spent = in_turns({"copying": copy, "publish and read": carry}, seconds)
    column = bytes_text(size)
    rates = {f"{what} | {column}": size * step / ns for what, ns in spent.items()}
    channel.tell(prefixed("copying: ", rates))


def _steps(channel: Channel, name: str, seconds: float) -> None:
    """Tell what each step of the ring costs by message, ns, where they take turns."""
    what = contents(SMALL)
    count = len(what.payloads)
    groups = [what.payloads[i : i + GROUP] for i in range(0, count, GROUP)]
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
    channel.tell({f"steps: {step}": ns / count for step, ns in spent.items()})


# ---- the kernel ----------------------------------------------------------------------------


def _sockets(tcp: bool) -> tuple[socket.socket, socket.socket]:
    link = (TcpLoopback if tcp else UnixStream)(RECEIVE)
    return link.pair()


def _pour(_channel: Channel, sink: socket.socket, source: socket.socket, seconds: float) -> None:
    source.close()
    data = bytes(RECEIVE)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sink.sendall(data)
    sink.close()


def _drain(channel: Channel, sink: socket.socket, source: socket.socket) -> None:
    sink.close()
    view = memoryview(bytearray(RECEIVE))
    total = 0
    source.recv_into(view)  # the other process is there
    began = time.perf_counter()
    while received := source.recv_into(view):
        total += received
    channel.tell(total / (time.perf_counter() - began))


def _receiving(name: str, tcp: bool, seconds: float) -> dict[str, float]:
    sink, source = _sockets(tcp)
    with sink, source, crew(seconds) as group:
        drain = group.start(_drain, sink, source)
        group.start(_pour, sink, source, seconds)
        sink.close()
        return {f"receiving: {name}": drain.hear()}


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
    channel.tell(float(np.median(times)) / 2000)


def _answer(_channel: Channel, names: tuple[str, str]) -> None:
    there, back = (posix_ipc.Semaphore(name) for name in names)
    while True:
        there.acquire()
        back.release()


def _waking(what: str, place: Placement, seconds: float) -> dict[str, float]:
    with ring_names(2) as (there, back), contextlib.ExitStack() as stack:
        names = (f"/{there}", f"/{back}")
        for name in names:
            semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX)
            semaphore.close()
            stack.callback(posix_ipc.unlink_semaphore, name)
        with crew(seconds, place) as group:
            waker = group.start(_wake, names, seconds)
            answerer = group.start(_answer, names)
            found = waker.hear()
            group.dismiss(answerer)
            return {f"waking: {what}": found}


def _calls(channel: Channel, _name: str, seconds: float) -> None:
    """Tell what a look at the clock and a call of the kernel cost, ns."""

    def look() -> None:
        for _ in range(1000):
            time.monotonic_ns()

    def call() -> None:
        for _ in range(1000):
            os.getppid()

    spent = in_turns({"time.monotonic_ns()": look, "os.getppid(), a system call": call}, seconds)
    channel.tell({f"calls: {name}": ns / 1000 for name, ns in spent.items()})


# ---- the scenario --------------------------------------------------------------------------


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: what was read is not what was published, or a process failed.
    """
    seconds = plan.seconds
    sizes = BRIEF_SIZES if plan.brief else SIZES
    runs: list[Callable[[], dict[str, float]]] = [
        *(partial(in_a_child, _copying, seconds, size) for size in sizes),
        lambda: _receiving("Unix stream", tcp=False, seconds=seconds),
        lambda: _receiving("TCP loopback", tcp=True, seconds=seconds),
        lambda: _waking("a semaphore, two cores", "apart", seconds),
        lambda: _waking("a semaphore, one core", "together", seconds),
        lambda: in_a_child(_calls, seconds),
        lambda: in_a_child(_steps, seconds),
    ]
    machine = describe_machine()
    for size in (*sizes, SMALL):
        contents(size)
    found = interleave(runs, plan.repeat)
    copying = picked(found, "copying")

    def listed(what: str, unit: str, scale: float = 1.0) -> list[Figure]:
        return [
            Figure(name, unit, tuple(value * scale for value in values))
            for name, values in picked(found, what).items()
        ]

    groups: dict[str, Sequence[Figure]] = {
        "copying, in one process": [
            *grid(copying, "GB/s"),
            *(
                ratio(
                    f"publish and read / copying | {size}",
                    copying[f"publish and read | {size}"],
                    copying[f"copying | {size}"],
                    OF_COPYING,
                )
                for size in map(bytes_text, sizes)
            ),
        ],
        "receiving from the kernel": listed("receiving", "GB/s", 1e-9),
        "waking, one way": listed("waking", "us"),
        "calls": listed("calls", "ns"),
        "the ring's steps, by message of 128 B": listed("steps", "ns"),
    }
    return Report("limits", plan.as_json(), machine, groups)
