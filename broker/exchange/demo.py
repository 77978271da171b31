"""The whole system on one machine: a server, a manager and workers, each in a process of its own,
and a check of every message in every worker. `ringcast demo` runs it.

The server stands in for an exchange (`exchange.server`). What it sends and what each worker gets go
through the same digest (`exchange.captures.extend_digest`): the two agree only if every message
arrived whole, once and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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
from ringcast.shm.spawning import safe_path

from ..config import Config
from ..manager import Manager
from ..worker.feed import attach
from . import captures, market
from .server import Item, Server, Source, Tally, at_rate, timed

__all__ = ["DemoError", "Latency", "Report", "Scenario", "WorkerReport", "default_name", "run"]

_SLOTS: Final = 16384
_CAPACITY: Final = 16 << 20
"""Bytes. With the descriptors 17 MiB, which fits into a container's /dev/shm of 64 MB."""
_ONLOOKERS: Final = 16
"""Reader slots beside the workers': for gateways, and whoever looks on."""

_DEADLINE: Final = 30.0
"""Seconds for anything that another process is to do."""
_WATCH_INTERVAL: Final = 0.1
"""Seconds between looks at the ring."""
_EXIT_TIMEOUT: Final = 1.0
"""Seconds for a child to end by itself before it is killed."""
_DELAYS_PER_STEP: Final = 8192
"""Delays that are gathered before they are counted, many at once."""
_BINS_NS: Final = numpy.geomspace(100.0, 1e11, 2700)
"""Upper ends of the bins of delays; each is a hundredth above the one before."""
_QUANTILES: Final = (0.5, 0.99, 0.999)


class DemoError(RuntimeError):
    """The demonstration did not reach its end."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What the server sends.

    Attributes:
        seconds: for how long, at most.
        capture: a file of `ringcast.broker.exchange.captures`; None for made-up market data.
        rate: made-up messages per second.
        speed: pace of the capture; 1 is its own.
        flood: send as fast as possible instead.
    """

    seconds: float
    capture: Path | None = None
    rate: float = 20_000.0
    speed: float = 1.0
    flood: bool = False

    def source(self) -> Source:
        """The stream that the server sends.

        Raises:
            captures.CaptureError, OSError: the capture can't be read.
        """
        if self.capture is None:
            return lambda: at_rate(market.messages(), 0 if self.flood else self.rate)
        records = list(captures.read(self.capture))
        speed = math.inf if self.flood else self.speed
        return lambda: _until(timed(records, speed), self.seconds)


def _until(items: Iterator[Item], seconds: float) -> Iterator[Item]:
    for due_ns, is_text, payload in items:
        if due_ns > seconds * 1e9:
            return
        yield due_ns, is_text, payload


@dataclass(frozen=True, slots=True)
class Latency:
    """Time from when the manager received a message until a worker had it, microseconds."""

    p50: float
    p99: float
    p999: float


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker's result.

    Attributes:
        label: the worker's name.
        received: messages that the manager received; each was for this worker, too.
        delivered: messages that this worker got.
        lost: messages that were reported to it as missed.
        whole: what it got is what the server sent, every byte and in order.
        latency_us: time from the manager to this worker; None if nothing was delivered.
    """

    label: str
    received: int
    delivered: int
    lost: int
    whole: bool
    latency_us: Latency | None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a demonstration.

    Attributes:
        sent: messages that the server sent.
        payload_bytes: their bytes.
        seconds: from the first message to the end of the ring.
        occupancy: how full the ring was at most, 0..1, seen every 100 ms.
        workers: one result per worker.
    """

    sent: int
    payload_bytes: int
    seconds: float
    occupancy: float
    workers: tuple[WorkerReport, ...]

    @property
    def ok(self) -> bool:
        """Did every worker get everything, whole and in order?"""
        return all(w.whole and not w.lost and w.delivered == self.sent for w in self.workers)


# ---- the processes -------------------------------------------------------------------------


def _send(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(json.dumps(value).encode())


def _receive(pipe: Connection, what: str) -> Any:
    """The next value from `what`, the process at the other end."""
    if not pipe.poll(_DEADLINE):
        raise DemoError(f"{what} did not answer within {_DEADLINE:g} s")
    try:
        value = json.loads(pipe.recv_bytes())
    except EOFError:
        raise DemoError(f"{what} died") from None
    if isinstance(value, dict) and "error" in value:
        raise DemoError(f"{what}: {value['error']}")
    return value


def _run_child(pipe: Connection, work: Callable[..., None], *arguments: Any) -> None:
    """Run a child's work. Ctrl-C is for the parent, which then ends the child; the child's errors
    are reported to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(pipe, *arguments)
    except (OSError, captures.CaptureError, shm.RingError) as error:
        _send(pipe, {"error": str(error)})


def _run_server(pipe: Connection, scenario: Scenario) -> None:
    asyncio.run(_serve(pipe, scenario))


async def _serve(pipe: Connection, scenario: Scenario) -> None:
    """Send the stream from the parent's "go" to its "stop"."""
    loop = asyncio.get_running_loop()
    async with Server(scenario.source(), hold=True) as server:
        _send(pipe, server.url)
        await loop.run_in_executor(None, pipe.recv_bytes)
        server.release()
        await loop.run_in_executor(None, pipe.recv_bytes)
        await server.stop()
        sent = server.sent[0] if server.sent else Tally()  # the manager is the only client
    _send(pipe, dataclasses.asdict(sent))


def _run_worker(pipe: Connection, name: str, label: str) -> None:
    """Take every message, add it to the digest, and measure its delay."""
    delivered = digest = 0
    delays_ns = array("q")
    counts = numpy.zeros(len(_BINS_NS) + 1, numpy.int64)
    with attach(name, start="oldest", label=label) as feed:
        _send(pipe, "attached")
        for message in feed:
            delays_ns.append(time.time_ns() - message.time_ns)
            with message.payload as payload:
                is_text = message.kind == shm.Kind.TEXT
                digest = captures.extend_digest(digest, is_text, payload)
            delivered += 1
            if len(delays_ns) == _DELAYS_PER_STEP:
                counts += _count_by_bin(delays_ns)
                del delays_ns[:]
        counts += _count_by_bin(delays_ns)
        result = _WorkerResult(delivered, feed.lost, digest, _percentiles_us(counts))
        _send(pipe, dataclasses.asdict(result))


@dataclass(frozen=True, slots=True)
class _WorkerResult:
    """What a worker reports to the parent."""

    delivered: int
    lost: int
    digest: int
    percentiles_us: list[float] | None


def _count_by_bin(delays_ns: array[int]) -> NDArray[numpy.int64]:
    places = numpy.searchsorted(_BINS_NS, numpy.array(delays_ns, numpy.float64))
    return numpy.bincount(places, minlength=len(_BINS_NS) + 1)


def _percentiles_us(counts: NDArray[numpy.int64]) -> list[float] | None:
    """p50, p99 and p99.9, each the upper end of its bin; None if nothing was counted."""
    total = int(counts.sum())
    if total == 0:
        return None
    up_to = numpy.cumsum(counts)
    bins = [int(numpy.searchsorted(up_to, math.ceil(total * quantile))) for quantile in _QUANTILES]
    return [round(float(_BINS_NS[min(place, len(_BINS_NS) - 1)]) / 1000, 2) for place in bins]


class _Children:
    """The child processes; none outlives the block."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._started: list[BaseProcess] = []

    def start(self, work: Callable[..., None], *arguments: Any) -> Connection:
        """Start one; returns the pipe to it."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_run_child, args=(theirs, work, *arguments), daemon=True
        )
        with safe_path():
            process.start()
        theirs.close()
        self._started.append(process)
        return ours

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._started:
            process.join(_EXIT_TIMEOUT)
            if process.is_alive():
                process.kill()
            process.join(_DEADLINE)


# ---- the demonstration ---------------------------------------------------------------------


def run(
    name: str, scenario: Scenario, workers: int, watch: Callable[[shm.RingStatus], None]
) -> Report:
    """Run a demonstration to its end.

    Args:
        name: of the ring.
        scenario: what the server sends.
        workers: how many.
        watch: called every 100 ms with the ring's status.

    Raises:
        DemoError: a process died or did not answer.
        ManagerError, shm.RingError: the manager could not start.
    """
    with _Children() as children:
        server = children.start(_run_server, scenario)
        url = _receive(server, "the server")
        with Manager(_config(name, url, scenario, workers)) as manager:
            labels = [f"worker-{number}" for number in range(workers)]
            pipes = {label: children.start(_run_worker, name, label) for label in labels}
            for label, pipe in pipes.items():
                _receive(pipe, label)
            return _measure(name, scenario, manager, server, pipes, watch)


def _config(name: str, url: str, scenario: Scenario, workers: int) -> Config:
    return Config(
        name=name,
        url=url,
        topic=market.TOPIC if scenario.capture is None else (),
        reconnect=False,
        ping_interval=1.0,
        slots=_SLOTS,
        capacity=_CAPACITY,
        max_readers=workers + _ONLOOKERS,
        drain_timeout=_DEADLINE,
        demote_after=None,
        evict_after=None,
    )


def _measure(
    name: str,
    scenario: Scenario,
    manager: Manager,
    server: Connection,
    workers: dict[str, Connection],
    watch: Callable[[shm.RingStatus], None],
) -> Report:
    began = time.monotonic()
    _send(server, "go")
    occupancy = 0.0
    while time.monotonic() < began + scenario.seconds and manager.join(_WATCH_INTERVAL) is None:
        with contextlib.suppress(shm.RingNotFound):  # it may just have ended
            status = shm.status(name)
            occupancy = max(occupancy, status.occupancy)
            watch(status)
    _send(server, "stop")
    sent = Tally(**_receive(server, "the server"))
    results = {label: _WorkerResult(**_receive(pipe, label)) for label, pipe in workers.items()}
    seconds = time.monotonic() - began
    if manager.join(_DEADLINE) != 0:
        raise DemoError("the manager did not end in order")
    reports = tuple(_report(label, sent, result) for label, result in results.items())
    return Report(sent.messages, sent.payload_bytes, seconds, occupancy, reports)


def _report(label: str, sent: Tally, result: _WorkerResult) -> WorkerReport:
    percentiles = result.percentiles_us
    return WorkerReport(
        label=label,
        received=sent.messages,
        delivered=result.delivered,
        lost=result.lost,
        whole=result.digest == sent.digest,
        latency_us=None if percentiles is None else Latency(*percentiles),
    )


def default_name() -> str:
    """A ring's name that no other demonstration has."""
    return f"demo-{os.getpid()}"
