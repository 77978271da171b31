"""The whole of it on one machine: a server, a manager and workers, each a process of its own, and a
check of every message at its end. `ringcast demo` shows it.

The server stands in for an exchange (`exchange.server`). What it says and what each worker
gets go through the same chain of checksums (`exchange.captures.chain`): they agree only if
every message came, whole, once and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from ringcast import shm

from ..config import Config
from ..manager import Manager
from ..worker.feed import attach
from . import captures, market
from .server import Item, Server, Source, at_rate, timed

__all__ = ["DemoError", "Latency", "Report", "Script", "WorkerReport", "run"]

SLOTS: Final = 16384
CAPACITY: Final = 16 << 20
"""Bytes. With the descriptors 17 MiB: it fits into a container's /dev/shm of 64 MB."""

_PATIENCE: Final = 30.0
_LOOK: Final = 0.1
_GATHERED: Final = 8192
_BINS: Final = numpy.geomspace(100.0, 1e11, 2700)  # ns; each a hundredth wider than the one before


class DemoError(RuntimeError):
    """The demonstration did not come to its end."""


@dataclass(frozen=True, slots=True)
class Script:
    """What the server says.

    Attributes:
        seconds: for how long, at most.
        capture: a file of `ringcast.broker.exchange.captures`; None for made-up market data.
        rate: messages a second of the latter.
        speed: pace of the former; 1 is its own.
        flood: as fast as it can instead.
    """

    seconds: float
    capture: Path | None = None
    rate: float = 20_000.0
    speed: float = 1.0
    flood: bool = False

    def source(self) -> Source:
        """The stream.

        Raises:
            captures.CaptureError, OSError: the capture can't be read.
        """
        if self.capture is None:
            return lambda: at_rate(market.messages(), 0 if self.flood else self.rate)
        records = list(captures.read(self.capture))
        speed = math.inf if self.flood else self.speed
        return lambda: _until(timed(records, speed), self.seconds)


def _until(items: Iterator[Item], seconds: float) -> Iterator[Item]:
    for item in items:
        if item[0] > seconds * 1e9:
            return
        yield item


@dataclass(frozen=True, slots=True)
class Latency:
    """From the manager's receiving a message to a worker's having it, microseconds."""

    p50: float
    p99: float
    p999: float


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker.

    Attributes:
        label: its name.
        received: messages that the manager received, all of them for this worker.
        delivered: those this worker got.
        lost: those it was told it missed.
        whole: what it got is what the server said, every byte and in order.
        latency_us: from receiving to having, microseconds; None if nothing was delivered.
    """

    label: str
    received: int
    delivered: int
    lost: int
    whole: bool
    latency_us: Latency | None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it.

    Attributes:
        said: messages that the server said.
        payload_bytes: their bytes.
        seconds: from the first to the end of the ring.
        occupancy: how full the ring was at most, 0..1, of looks 100 ms apart.
        workers: one each.
    """

    said: int
    payload_bytes: int
    seconds: float
    occupancy: float
    workers: tuple[WorkerReport, ...]

    @property
    def ok(self) -> bool:
        """Did every worker get everything, whole and in order?"""
        return all(w.whole and not w.lost and w.delivered == self.said for w in self.workers)


# ---- the processes -------------------------------------------------------------------------


def _tell(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(json.dumps(value).encode())


def _hear(pipe: Connection, seconds: float, what: str) -> Any:
    if not pipe.poll(seconds):
        raise DemoError(f"{what} did not answer within {seconds:g} s")
    try:
        value = json.loads(pipe.recv_bytes())
    except EOFError:
        raise DemoError(f"{what} died") from None
    if isinstance(value, dict) and "error" in value:
        raise DemoError(f"{what}: {value['error']}")
    return value


def _process(pipe: Connection, work: Callable[..., None], *arguments: Any) -> None:
    """A child's frame: Ctrl-C is for the parent, which ends it; errors are told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(pipe, *arguments)
    except (OSError, captures.CaptureError, shm.RingError) as error:
        _tell(pipe, {"error": str(error)})


def _serve(pipe: Connection, script: Script) -> None:
    asyncio.run(_say(pipe, script))


async def _say(pipe: Connection, script: Script) -> None:
    """Say the stream between the parent's two words, "go" and "stop"."""
    loop = asyncio.get_running_loop()
    async with Server(script.source(), hold=True) as server:
        _tell(pipe, server.url)
        await loop.run_in_executor(None, pipe.recv_bytes)
        server.release()
        await loop.run_in_executor(None, pipe.recv_bytes)
        await server.stop()
        said = server.said[0]
    _tell(pipe, [said.messages, said.payload_bytes, said.digest])


def _work(pipe: Connection, name: str, label: str) -> None:
    """A worker: take every message, check it, and time it."""
    delivered = digest = 0
    delays = array("q")
    counts = numpy.zeros(len(_BINS) + 1, numpy.int64)
    with attach(name, start="oldest", label=label) as feed:
        _tell(pipe, "attached")
        for message in feed:
            delays.append(time.time_ns() - message.time_ns)
            with message.payload as payload:
                digest = captures.chain(digest, message.kind == shm.Kind.TEXT, payload)
            delivered += 1
            if len(delays) == _GATHERED:
                counts += _binned(delays)
                del delays[:]
        counts += _binned(delays)
        _tell(pipe, [delivered, feed.lost, digest, _percentiles(counts)])


def _binned(delays: array[int]) -> NDArray[numpy.int64]:
    places = numpy.searchsorted(_BINS, numpy.array(delays, numpy.float64))
    return numpy.bincount(places, minlength=len(_BINS) + 1)


def _percentiles(counts: NDArray[numpy.int64]) -> list[float] | None:
    """p50, p99 and p99.9 in microseconds, each the upper end of its bin."""
    total = int(counts.sum())
    if total == 0:
        return None
    up_to = numpy.cumsum(counts)
    places = [int(numpy.searchsorted(up_to, math.ceil(total * q))) for q in (0.5, 0.99, 0.999)]
    return [round(float(_BINS[min(place, len(_BINS) - 1)]) / 1000, 2) for place in places]


class _Cast:
    """The child processes; none outlives the block."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._started: list[BaseProcess] = []

    def start(self, work: Callable[..., None], *arguments: Any) -> Connection:
        """Start one; returns the pipe to it."""
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_process, args=(theirs, work, *arguments), daemon=True
        )
        process.start()
        theirs.close()
        self._started.append(process)
        return mine

    def __enter__(self) -> _Cast:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._started:
            process.join(1.0)
            if process.is_alive():
                process.kill()
            process.join(_PATIENCE)


# ---- the play ------------------------------------------------------------------------------


def run(name: str, script: Script, workers: int, watch: Callable[[shm.RingStatus], None]) -> Report:
    """Run it to the end.

    Args:
        name: of the ring.
        script: what the server says.
        workers: how many.
        watch: called each 100 ms with the ring's status.

    Raises:
        DemoError: a process died or did not answer.
        broker.ManagerError, shm.RingError: the manager could not start.
    """
    with _Cast() as cast:
        server = cast.start(_serve, script)
        url = _hear(server, _PATIENCE, "the server")
        config = Config(
            name=name,
            url=url,
            reconnect=False,
            ping_interval=1.0,
            slots=SLOTS,
            capacity=CAPACITY,
            max_readers=workers + 2,
            drain_timeout=_PATIENCE,
            demote_after=None,
            evict_after=None,
        )
        with Manager(config) as manager:
            labels = [f"worker-{number}" for number in range(workers)]
            pipes = {label: cast.start(_work, name, label) for label in labels}
            for label, pipe in pipes.items():
                _hear(pipe, _PATIENCE, label)
            return _play(name, script, manager, server, pipes, watch)


def _play(
    name: str,
    script: Script,
    manager: Manager,
    server: Connection,
    workers: dict[str, Connection],
    watch: Callable[[shm.RingStatus], None],
) -> Report:
    began = time.monotonic()
    _tell(server, "go")
    occupancy = 0.0
    while time.monotonic() < began + script.seconds and manager.join(_LOOK) is None:
        with contextlib.suppress(shm.RingNotFound):  # it may just have ended
            status = shm.status(name)
            occupancy = max(occupancy, status.occupancy)
            watch(status)
    _tell(server, "stop")
    said, payload_bytes, digest = _hear(server, _PATIENCE, "the server")
    told = {label: _hear(pipe, _PATIENCE, label) for label, pipe in workers.items()}
    seconds = time.monotonic() - began
    if manager.join(_PATIENCE) != 0:
        raise DemoError("the manager did not end in order")
    reports = tuple(_report(label, said, digest, *values) for label, values in told.items())
    return Report(said, payload_bytes, seconds, occupancy, reports)


def _report(
    label: str,
    said: int,
    digest_said: int,
    delivered: int,
    lost: int,
    digest: int,
    percentiles: list[float] | None,
) -> WorkerReport:
    latency = Latency(*percentiles) if percentiles is not None else None
    return WorkerReport(label, said, delivered, lost, digest == digest_said, latency)


def default_name() -> str:
    """A ring's name that no other demonstration has."""
    return f"demo-{os.getpid()}"
