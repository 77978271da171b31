"""From a server to N processes that all need each message: ringcast's workers behind one
connection, against N connections. N is 1, 4 and 16.

All use the same server, on the first core. The package `websocket` describes it, and who copies
what. Everything else runs where the scheduler likes. Compared are

* ringcast: one manager, a ring of 16 MiB, and N workers that read message by message in a `for`
  loop and take the memoryview of each;
* picows: N processes with a connection each, and a callback that takes the memoryview of the
  payload;
* websockets: likewise, with recv(decode=False) of its asyncio client.

There are two loads of 200-byte messages. The flood goes as fast as the slowest receives, because
the server writes a block to each connection in turn. The fixed rate is so many messages per
millisecond, in one write per connection: 100 with 1 and 4 workers, 10 with 16, which two cores can
just do for N connections.

Every payload is checked where it is received, as the package `websocket` describes. In the flood
the check is in the receiver's loop. At the fixed rate it is a call that also takes the time, and
costs all receivers the same.

Figures:

* messages per second that each worker received, from the first message of any worker to the end of
  the last;
* CPU time, user and system, of all processes on the clients' side, including the manager, from the
  first message to the last, per message and worker;
* the server's CPU time per message: with N connections it writes each message N times;
* latency at the fixed rate, of all messages and workers: from the time at which the server was due
  to send a message until the worker holds its payload. The due time follows from the number of the
  message. So a delay makes late whatever waits behind it, and the server's own sleep is included.
  The times are kept in memory, and put into a histogram of three digits at the end. Without the
  package hdrhistogram there are no latencies. A percentile beyond which fewer than ten lie is not
  reported.

A receiver that cannot keep up with the fixed rate falls behind more and more, and its latencies
show the length of the run. One that was late by more than a tenth of the run at its end is named in
the parameters, as behind.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Final

import numpy as np

from . import histograms
from .figures import Figure, Samples, interleave, ratio
from .processes import Channel
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .websocket.checking import StreamChecker, collect
from .websocket.clients import (
    CheckingClient,
    HandlingClient,
    check_picows,
    check_websockets,
    handle_picows,
    handle_websockets,
    is_installed,
    versions,
)
from .websocket.frames import MESSAGE_BYTES
from .websocket.ringcast_side import check_messages, handle_messages, run_manager
from .websocket.server import TICK_NS, Address, Load

WORKERS: Final = (1, 4, 16)
PER_TICK: Final[Mapping[int, int]] = {1: 100, 4: 100, 16: 10}
"""Number of messages per millisecond, by number of workers."""
PACED_S_MOST: Final = 10.0
"""Seconds at the fixed rate: each worker keeps 8 bytes per message."""
BEHIND_SHARE: Final = 0.1
"""Lateness at the end, as a share of the run, from which on a receiver is named as behind."""
PERCENTILES: Final = (50.0, 99.0, 99.9)


# ---- latency -------------------------------------------------------------------------------


class _TimingChecker(StreamChecker):
    """Checks each payload, and notes when it came."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self._times_ns = array("q", bytes(8 * load.ticks * load.per_tick))

    def check(self, payload: bytes | memoryview) -> bool:
        """Note the time and check a payload. Returns whether more are to come."""
        now = time.monotonic_ns()
        count = self.count
        more = super().check(payload)
        if more:
            self._times_ns[count] = now
        return more

    def report(self, channel: Channel) -> None:
        """Report as all do. Then receive when the first tick was due, and send a histogram of the
        latencies, and the last one in s."""
        super().report(channel)
        began_ns = channel.receive()
        number = np.arange(self.count, dtype=np.int64) // self._load.per_tick
        late_ns = np.frombuffer(self._times_ns, np.int64) - (began_ns + number * TICK_NS)
        histogram = histograms.Histogram()
        histogram.record(late_ns)
        channel.send({"histogram": histogram.as_text(), "last_s": float(late_ns[-1]) / 1e9})


def _latencies(workers: Sequence[Channel], began_ns: float, seconds: float) -> dict[str, float]:
    """Percentiles over all workers in us; and `late`, the lateness of the last message, of the
    worker where it is largest, as a share of the run."""
    histogram = histograms.Histogram()
    last_s = []
    for channel in workers:
        channel.send(began_ns)
    for channel in workers:
        found = channel.receive()
        histogram.add_text(found["histogram"])
        last_s.append(found["last_s"])
    return histogram.percentiles(PERCENTILES) | {"late": max(last_s) / seconds}


# ---- runs ----------------------------------------------------------------------------------

Run = Callable[[Load, int, bool], dict[str, float]]
"""A function of the load, the number of workers, and whether to measure latencies. It returns
rate, M/s; cpu and server, us; and what `_latencies` returns."""


def _collect_figures(
    load: Load, server: Channel, workers: Sequence[Channel], manager: Channel | None, timed: bool
) -> dict[str, float]:
    found, served = collect(server, workers)
    seconds = (max(one["ended_ns"] for one in found) - min(one["began_ns"] for one in found)) / 1e9
    latencies = _latencies(workers, served["began_ns"], load.seconds) if timed else {}
    cpu = sum(one["cpu"] for one in found)
    if manager is not None:
        cpu += manager.receive()["cpu"]
    sent = served["sent"]
    return {
        "rate": sent / seconds / 1e6,
        "cpu": cpu / sent / len(workers) * 1e6,
        "server": served["cpu"] / sent * 1e6,
        **latencies,
    }


def _ringcast(load: Load, workers: int, timed: bool) -> dict[str, float]:
    def time_messages(channel: Channel, name: str) -> None:
        checker = _TimingChecker(load)
        handle_messages(channel, name, checker.check)
        checker.report(channel)

    worker = time_messages if timed else check_messages
    with temporary_ring_name() as name, load.serve(1) as (children, server, address):
        manager = children.start(run_manager, address, name)
        manager.receive()
        attached = [children.start(worker, name) for _ in range(workers)]
        for channel in attached:
            channel.receive()
        manager.send()
        return _collect_figures(load, server, attached, manager, timed)


def _clients(check: CheckingClient, handle: HandlingClient) -> Run:
    def run(load: Load, workers: int, timed: bool) -> dict[str, float]:
        def time_messages(channel: Channel, address: Address) -> None:
            checker = _TimingChecker(load)
            handle(address, checker.check)
            checker.report(channel)

        client = time_messages if timed else check
        with load.serve(workers) as (children, server, address):
            clients = [children.start(client, address) for _ in range(workers)]
            return _collect_figures(load, server, clients, None, timed)

    return run


def _peers() -> dict[str, Run]:
    clients = {
        "picows": _clients(check_picows, handle_picows),
        "websockets": _clients(check_websockets, handle_websockets),
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


def _workers_text(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _label(name: str, workers: int) -> str:
    return f"{name}, {_workers_text(workers)}"


def _group(
    samples: Samples, what: str, unit: str, peers: Sequence[str], behind: Sequence[str] = ()
) -> list[Figure]:
    """Ratios, without those that are behind, then the figures themselves."""
    load, _, part = what.partition(" ")

    def key(name: str, workers: int) -> str:
        return f"{load} {_label(name, workers)} {part}"

    measured = [n for n in WORKERS if key("ringcast", n) in samples]
    return [
        *(
            ratio(
                f"ringcast / {peer} | {_workers_text(n)}",
                samples[key("ringcast", n)],
                samples[key(peer, n)],
            )
            for peer in peers
            for n in measured
            if not {_label("ringcast", n), _label(peer, n)} & set(behind)
        ),
        *(
            Figure(f"{name} | {_workers_text(n)}", unit, tuple(samples[key(name, n)]))
            for name in ("ringcast", *peers)
            for n in measured
        ),
    ]


def _groups(
    samples: Samples, peers: Sequence[str], behind: Sequence[str], timed: bool
) -> dict[str, Sequence[Figure]]:
    groups: dict[str, Sequence[Figure]] = {
        "messages per second to each worker, flood": _group(samples, "flood rate", "M/s", peers),
        "CPU time per message and worker, flood": _group(samples, "flood cpu", "us", peers),
        "server's CPU time per message, flood": _group(samples, "flood server", "us", peers),
    }
    for q in PERCENTILES if timed else ():
        heading = f"latency from the due time, fixed rate, p{q:g}"
        groups[heading] = _group(samples, f"paced p{q:g}", "us", peers, behind)
    return groups | {
        "CPU time per message and worker, fixed rate": _group(samples, "paced cpu", "us", peers),
        "server's CPU time per message, fixed rate": _group(samples, "paced server", "us", peers),
    }


def measure(plan: Plan) -> Report:
    """Run the scenario: every measurement in turn, round by round; those at the fixed rate for at
    most ten seconds each.

    Raises:
        RunFailedError: a worker did not get exactly what was sent, or a process failed.
    """
    machine = describe_machine()
    timed = histograms.is_installed()
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
        if name.endswith(" late") and statistics.median(values) > BEHIND_SHARE
    ]
    parameters = {
        "message_bytes": MESSAGE_BYTES,
        **plan.as_json(),
        "fixed_rate": {_workers_text(n): f"{each * 1000:,} /s" for n, each in PER_TICK.items()},
        "behind": behind or "none",
        "placement": "server on the first core, all else where the scheduler likes",
        **versions("picows", "websockets"),
        "hdrhistogram": metadata.version("hdrhistogram") if timed else histograms.NOT_INSTALLED,
    }
    return Report("end-to-end", parameters, machine, _groups(samples, list(peers), behind, timed))
