"""From a server to N processes that all need each message: one connection and ringcast's workers,
against N connections; N is 1, 4 and 16.

The same server for all, on the first core: see `websocket.py`, also for who copies what. Everything
else runs where the scheduler likes. Compared are

* ringcast: one manager, a ring of 16 MiB, N workers that take each message and its memoryview in a
  `for` loop;
* picows: N processes with a connection each, a callback that takes the payload's memoryview;
* websockets: likewise, recv(decode=False) of its asyncio client.

Two loads of 200-byte messages. Flood: as fast as the slowest receives, for the server writes a
block to each connection in turn. Fixed rate: so many messages each millisecond, in one write a
connection: 100 with 1 and 4 workers, 10 with 16, which two cores can just do for N connections.

Every payload is checked where it is received, as `websocket.py` tells; in the flood without a call,
at the fixed rate with one, which takes the time too and costs all the same.

Figures:

* messages a second that each worker received: from the first message of all to the end of the last;
* CPU time, user and system, of all processes on the clients' side, manager included, from the first
  message to the last, by message and worker;
* the server's CPU time by message: with N connections it writes each N times;
* latency at the fixed rate: from the time at which the server was due to send a message until the
  worker holds its payload, of all messages and workers. The due time follows from the message's
  number, so whoever is late makes all that waits late, the server's own sleep included. The times
  are kept in memory, and put into an hdrhistogram (three digits) when all is over; without
  that package there are no latencies. No percentile is told beyond which fewer than ten lie.

Who can't keep up with the fixed rate falls behind ever more: its latencies tell the length of the
run. Who was more than a tenth of the run late at its end is named in the parameters, as behind.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import numpy as np

from .method import (
    Channel,
    Figure,
    Plan,
    Report,
    RunFailedError,
    Samples,
    describe_machine,
    interleave,
    percentiles,
    ratio,
)
from .transports.rings import ring_names
from .websocket import (
    SIZE,
    TICK_NS,
    Load,
    Place,
    Receiver,
    Take,
    Tally,
    collect,
    feed_each,
    is_installed,
    manage,
    picows,
    picows_each,
    versions,
    websockets,
    websockets_each,
    work,
)

WORKERS: Final = (1, 4, 16)
PER_TICK: Final[Mapping[int, int]] = {1: 100, 4: 100, 16: 10}
"""Messages each millisecond, by the number of workers."""
PACED_S_MOST: Final = 10.0
"""Seconds at the fixed rate: each worker keeps 8 bytes a message."""
BEHIND: Final = 0.1
QUANTILES: Final = (50.0, 99.0, 99.9)
_LONGEST_NS: Final = 3_600_000_000_000

_NO_LATENCY: Final = "not installed, so there are no latencies: pip install 'ringcast[bench]'"


# ---- latency -------------------------------------------------------------------------------


class _Stamped(Tally):
    """Notes when each payload was in hand, too."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self._stamps = array("q", bytes(8 * load.ticks * load.per_tick))

    def take(self, payload: bytes | memoryview) -> bool:
        """Note the time and check a payload; are there more to come?"""
        now = time.monotonic_ns()
        count = self.count
        more = super().take(payload)
        if more:
            self._stamps[count] = now
        return more

    def tell(self, channel: Channel) -> None:
        """As all; and, told when the first tick was due, tell the latencies as a histogram, and
        the last one, s."""
        super().tell(channel)
        began_ns = channel.hear()
        number = np.arange(self.count, dtype=np.int64) // self._load.per_tick
        late = np.frombuffer(self._stamps, np.int64) - (began_ns + number * TICK_NS)
        channel.tell({"histogram": _encoded(late), "last_s": float(late[-1]) / 1e9})


def _histogram() -> Any:
    """For nanoseconds, up to an hour, three digits."""
    return importlib.import_module("hdrh.histogram").HdrHistogram(1, _LONGEST_NS, 3)


def _encoded(values: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """A histogram of them as text."""
    histogram = _histogram()
    for value, count in zip(*np.unique(values, return_counts=True), strict=True):
        if not histogram.record_value(int(value), int(count)):
            raise RunFailedError(f"a latency of {value} ns is out of range")
    text: bytes = histogram.encode()
    return text.decode()


def _latencies(stamped: Sequence[Channel], began_ns: float, seconds: float) -> dict[str, float]:
    """Percentiles over all, us; `late`, by what share of the run the latest came last."""
    whole = _histogram()
    last_s = []
    for channel in stamped:
        channel.tell(began_ns)
    for channel in stamped:
        told = channel.hear()
        whole.decode_and_add(told["histogram"].encode())
        last_s.append(told["last_s"])
    found = percentiles(QUANTILES, whole.get_total_count(), whole.get_value_at_percentile)
    return found | {"late": max(last_s) / seconds}


# ---- runs ----------------------------------------------------------------------------------

Run = Callable[[Load, int, bool], dict[str, float]]
"""Given the load, how many workers, and whether latencies are taken: rate, M/s; cpu and server, us;
and what `_latencies` has."""


def _found(
    load: Load, server: Channel, workers: Sequence[Channel], manager: Channel | None, timed: bool
) -> dict[str, float]:
    told, served = collect(server, workers)
    seconds = (max(t["ended_ns"] for t in told) - min(t["began_ns"] for t in told)) / 1e9
    late = _latencies(workers, served["began_ns"], load.seconds) if timed else {}
    cpu = sum(one["cpu"] for one in told)
    if manager is not None:
        cpu += manager.hear()["cpu"]
    sent = served["sent"]
    return {
        "rate": sent / seconds / 1e6,
        "cpu": cpu / sent / len(workers) * 1e6,
        "server": served["cpu"] / sent * 1e6,
        **late,
    }


def _ringcast(load: Load, workers: int, timed: bool) -> dict[str, float]:
    def work_timed(channel: Channel, name: str) -> None:
        tally = _Stamped(load)
        feed_each(channel, name, tally.take)
        tally.tell(channel)

    with ring_names(1) as (name,), load.begin(1) as (group, server, place):
        manager = group.start(manage, place, name)
        manager.hear()
        attached = [group.start(work_timed if timed else work, name) for _ in range(workers)]
        for channel in attached:
            channel.hear()
        manager.tell()
        return _found(load, server, attached, manager, timed)


def _clients(receive: Receiver, each: Callable[[Place, Take], None]) -> Run:
    def run(load: Load, workers: int, timed: bool) -> dict[str, float]:
        def receive_timed(channel: Channel, place: Place) -> None:
            tally = _Stamped(load)
            each(place, tally.take)
            tally.tell(channel)

        with load.begin(workers) as (group, server, place):
            clients = [
                group.start(receive_timed if timed else receive, place) for _ in range(workers)
            ]
            return _found(load, server, clients, None, timed)

    return run


def _peers() -> dict[str, Run]:
    clients = {
        "picows": _clients(picows, picows_each),
        "websockets": _clients(websockets, websockets_each),
    }
    return {name: run for name, run in clients.items() if is_installed(name)}


def _named(
    prefix: str, run: Run, load: Load, workers: int, timed: bool
) -> Callable[[], dict[str, float]]:
    def named() -> dict[str, float]:
        found = run(load, workers, timed)
        return {f"{prefix} {what}": value for what, value in found.items()}

    return named


# ---- the scenario --------------------------------------------------------------------------


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _label(name: str, workers: int) -> str:
    return f"{name}, {_workers(workers)}"


def _group(
    samples: Samples, what: str, unit: str, peers: Sequence[str], behind: Sequence[str] = ()
) -> list[Figure]:
    """Ratios, but of those that are not behind, then the figures themselves."""
    load, _, part = what.partition(" ")

    def key(name: str, workers: int) -> str:
        return f"{load} {_label(name, workers)} {part}"

    measured = [n for n in WORKERS if key("ringcast", n) in samples]
    return [
        *(
            ratio(
                f"ringcast / {peer} | {_workers(n)}",
                samples[key("ringcast", n)],
                samples[key(peer, n)],
            )
            for peer in peers
            for n in measured
            if not {_label("ringcast", n), _label(peer, n)} & set(behind)
        ),
        *(
            Figure(f"{name} | {_workers(n)}", unit, tuple(samples[key(name, n)]))
            for name in ("ringcast", *peers)
            for n in measured
        ),
    ]


def _groups(
    samples: Samples, peers: Sequence[str], behind: Sequence[str], timed: bool
) -> dict[str, Sequence[Figure]]:
    groups: dict[str, Sequence[Figure]] = {
        "messages a second to each worker, flood": _group(samples, "flood rate", "M/s", peers),
        "CPU time by message and worker, flood": _group(samples, "flood cpu", "us", peers),
        "server's CPU time by message, flood": _group(samples, "flood server", "us", peers),
    }
    for q in QUANTILES if timed else ():
        heading = f"latency from the due time, fixed rate, p{q:g}"
        groups[heading] = _group(samples, f"paced p{q:g}", "us", peers, behind)
    return groups | {
        "CPU time by message and worker, fixed rate": _group(samples, "paced cpu", "us", peers),
        "server's CPU time by message, fixed rate": _group(samples, "paced server", "us", peers),
    }


def measure(plan: Plan) -> Report:
    """Run the scenario: each measurement for so many seconds, at most ten at the fixed rate, all of
    them in turn, round by round.

    Raises:
        RunFailedError: a worker did not get exactly what was sent, or a process failed.
    """
    machine = describe_machine()
    timed = importlib.util.find_spec("hdrh") is not None
    peers = _peers()
    paced_s = min(plan.seconds, PACED_S_MOST)
    runs = []
    for n in WORKERS:
        loads = {"flood": Load(plan.seconds), "paced": Load(paced_s, per_tick=PER_TICK[n])}
        for load, how in loads.items():
            for name, run in {"ringcast": _ringcast, **peers}.items():
                prefix = f"{load} {_label(name, n)}"
                runs.append(_named(prefix, run, how, n, timed and load == "paced"))
    samples = interleave(runs, plan.repeat)
    behind = [
        name.removeprefix("paced ").removesuffix(" late")
        for name, values in samples.items()
        if name.endswith(" late") and statistics.median(values) > BEHIND
    ]
    parameters = {
        "message_bytes": SIZE,
        **plan.as_json(),
        "fixed_rate": {_workers(n): f"{each * 1000:,} /s" for n, each in PER_TICK.items()},
        "behind": behind or "none",
        "placement": "server on the first core, all else where the scheduler likes",
        **versions("picows", "websockets"),
        "hdrhistogram": metadata.version("hdrhistogram") if timed else _NO_LATENCY,
    }
    return Report("end-to-end", parameters, machine, _groups(samples, list(peers), behind, timed))
