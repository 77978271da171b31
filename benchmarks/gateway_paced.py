"""What a gateway costs a manager that receives at a fixed rate.

A server sends `PER_TICK` messages per millisecond, in one write. A manager receives them, and a
worker reads them one by one. Beside it, the same with a gateway and `CLIENTS` clients, which are
lossy: `STOPPED` of them are stopped before the first message, and go on after the last.

Every message is checked, by the worker and by each client. A client that is stopped has to get
messages without a gap until the gateway closes its connection.

Figures:

* CPU time of the manager per message;
* how late a message was when the manager had received it, as its time stamp says; when the worker
  held it; and when a client that was not stopped had received it. All count from when the server
  was due to send it;
* the number of clients that were not stopped, and yet were cut off because they fell behind.
"""

from __future__ import annotations

import os
import signal
import time
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import ringcast

from .errors import RunFailedError
from .figures import Figure, Samples, percentiles, ratio, samples_of
from .gateway_client import SIZE, ClientResult, Clients, ReceivingEnd, flow_contents
from .gateway_ring import LOSSY, Gateway, load_of
from .payloads import SAMPLE_EVERY, last_word, words_unpacker
from .processes import Channel
from .ring_names import temporary_ring_name
from .websocket.frames import end_payload
from .websocket.ringcast_side import run_manager
from .websocket.server import TICK_NS

PER_TICK: Final = 200
CLIENTS: Final = 16
STOPPED: Final = 4
SECONDS_LEAST: Final = 1.0
"""So long that a stopped client falls behind by more than a ring."""
SECONDS_MOST: Final = 10.0
"""Each message takes 8 bytes per process that notes when it came."""
COST: Final = 1.05
"""The manager's CPU time per message with a gateway, at most, relative to that without."""
LATENESS: Final = 1.5
"""Its p99 likewise."""
WITH: Final = "with a gateway"
WITHOUT: Final = "without"
CUT_OFF: Final = "clients that were not stopped and yet cut off"

Times = np.ndarray[Any, np.dtype[np.int64]]


def _late(times_ns: Times, began_ns: int) -> Times:
    """How late each message was; the first was due at `began_ns`."""
    return times_ns - (began_ns + np.arange(len(times_ns)) // PER_TICK * TICK_NS)


def _percentiles(late_ns: Times) -> dict[str, float]:
    return percentiles((50.0, 99.0), len(late_ns), partial(np.percentile, late_ns))


def _note_times(channel: Channel, name: str) -> None:
    """Be a worker: check each message, and note when the manager and this worker had it. Then
    receive when the first tick was due, and report percentiles of how late they were."""
    clock, unpack = time.monotonic_ns, words_unpacker(SIZE)
    payloads = flow_contents().payloads
    due = [(i, last_word(i)) for i in range(len(payloads))]
    received, held = array("q"), array("q")
    count = 0
    realtime_ns = time.time_ns() - clock()
    with ringcast.attach(name) as feed:
        channel.send()
        for message in feed:
            payload = message.payload
            index = count % len(due)
            if len(payload) != SIZE or unpack(payload) != due[index]:
                if payload != end_payload(count):
                    raise RunFailedError(f"message {count} is not what was sent")
                break
            if not index % SAMPLE_EVERY and payload != payloads[index]:
                raise RunFailedError(f"message {count} is not what was sent")
            received.append(message.time_ns)
            held.append(clock())
            count += 1
    channel.send(count)
    began_ns = channel.receive()
    late = {
        "manager": _late(np.frombuffer(received, np.int64) - realtime_ns, began_ns),
        "worker": _late(np.frombuffer(held, np.int64), began_ns),
    }
    channel.send(
        {f"{who} {q}": us for who, ns in late.items() for q, us in _percentiles(ns).items()}
    )


def run(end: ReceivingEnd | None, folder: Path, seconds: float) -> dict[str, float]:
    """Measure a manager, with a gateway if there is a receiving end for it.

    Args:
        end: of the gateway's clients, or None.
        folder: an empty one.
        seconds: for which messages come.

    Raises:
        RunFailedError: somebody got other messages than were sent, or a process failed.
    """
    seconds = min(max(seconds, SECONDS_LEAST), SECONDS_MOST)
    load = load_of(seconds, PER_TICK)
    with temporary_ring_name() as name, load.serve(1) as (children, server, address):
        manager = children.start(run_manager, address, name)
        manager.receive()
        worker = children.start(_note_times, name)
        worker.receive()
        clients = None
        if end is not None:
            gateway = Gateway(children, name, folder)
            clients = end.start(children, folder, gateway.address, CLIENTS, *LOSSY, timed=True)
            _signal_some(clients, signal.SIGSTOP)
        manager.send()
        count = worker.receive()
        results: list[ClientResult] = []
        if clients is not None:
            _signal_some(clients, signal.SIGCONT)
            results = clients.results()
        server.send()
        served = server.receive()
        if count != served["sent"]:
            raise RunFailedError(f"{served['sent']} messages were sent, and {count} came")
        worker.send(served["began_ns"])
        found: dict[str, float] = worker.receive()
        found["cpu"] = manager.receive()["cpu"] / count * 1e6
        if clients is not None:
            found |= _of_clients(clients, results, served["began_ns"])
            gateway.stop()
    return {f"{WITHOUT if end is None else WITH}: {what}": v for what, v in found.items()}


def _signal_some(clients: Clients, number: signal.Signals) -> None:
    for program in clients.programs[:STOPPED]:
        os.kill(program.pid, number)


def _of_clients(
    clients: Clients, results: Sequence[ClientResult], began_ns: int
) -> dict[str, float]:
    late = [_late(clients.times_ns(k), began_ns) for k in range(STOPPED, CLIENTS)]
    found = {f"client {q}": us for q, us in _percentiles(np.concatenate(late)).items()}
    return found | {CUT_OFF: sum(one.close > 0 for one in results[STOPPED:])}


def figures(found: Samples) -> dict[str, Sequence[Figure]]:
    """The figures of the samples that `run` gave with and without a gateway."""
    having, lacking = samples_of(found, WITH), samples_of(found, WITHOUT)
    if not having:
        return {}
    floors = {"cpu": COST, "manager p99": LATENESS}
    rate = f"{PER_TICK * 10**9 // TICK_NS:,} messages per second"
    return {
        f"{rate}, {WITH} / {WITHOUT}": [
            ratio(name, having[name], lacking[name], floors.get(name), "smaller")
            for name in lacking
        ],
        rate: [
            Figure(f"{name} | {how}", "us", tuple(values))
            for how, samples in ((WITHOUT, lacking), (WITH, having))
            for name, values in samples.items()
            if name != CUT_OFF
        ],
        f"{rate}, {CUT_OFF}": [Figure(f"of {CLIENTS - STOPPED}", "", tuple(having[CUT_OFF]))],
    }
