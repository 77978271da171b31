"""Receiving a WebSocket flood: ringcast's manager against other clients, with and without TLS.

The server, the receivers and their checks are described in the package `websocket`. The server
sends a round over and over, each time 255 KiB in one write.

Over TLS, each SSL_write makes one record. 64 frames per write make large records. One frame per
write makes small ones, as of a server that sends each message when it has it. Encrypting small
records takes the server as long as decrypting takes the client, so all is encrypted before the
first is sent: as many blocks as a fast client receives in the seconds of the run, or in half a
second if that is less, which bounds the memory.

"ringcast" is the whole manager, in a process of its own, which receives into a ring, and a worker
that checks all of it meanwhile, on the manager's core, so the checking counts. The worker reads
batches as arrays, whenever about a quarter of the ring is new to it, and at least every 20 ms. The
ring has 16 MiB, which 65,536 such messages need.

"Into the ring" is the manager alone. Nothing reads meanwhile. At the end, what the ring still holds
is checked, and the number of all messages. It is compared only with "bare", which sees no frames
either: its bytes are counted and divided. The default ring has 64 MiB, which no cache holds.

A rate counts from the first receive to the last. With two cores or more, the server has the first
one for itself, and the receivers share the last one. With one core, all share it.

The CPU time of four workers: that of the manager and four workers together, user and system, which
read message by message in a `for` loop and take the memoryview of each. It is compared with that of
four processes with a picows connection each; from the first message to the last, per message and
worker. It is measured at a rate at which both keep up, 128 messages per millisecond, and as fast as
the slowest receives; and this again with workers that read batches as numpy arrays, for which
picows has no equivalent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from .figures import Figure, Samples, interleave, ratio
from .processes import Channel, on_last_core
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .websocket.checking import collect
from .websocket.clients import (
    CheckingClient,
    check_aiohttp,
    check_picows,
    check_websocket_client,
    check_websockets,
    count_bytes,
    is_installed,
    versions,
)
from .websocket.frames import MESSAGE_BYTES, round_in_writes
from .websocket.ringcast_side import (
    CAPACITY_BYTES,
    check_batches,
    check_batches_rarely,
    check_messages,
    check_remainder,
    run_manager,
)
from .websocket.server import Certificate, Load

WORKERS: Final = 4
LARGE_RECORD_FRAMES: Final = 64
"""Number of frames in a large TLS record. A record holds 16 KiB at most."""
TICK_MESSAGES: Final = 128
"""Number of messages per millisecond at the fixed rate."""
DEFAULT_CAPACITY_BYTES: Final = 64 << 20
ALONE: Final = "ringcast, into the ring"
ALONE_DEFAULT: Final = "ringcast, into the default ring"
PEERS: Final = ("websocket-client", "picows", "websockets", "aiohttp")
CPU_MOST: Final = 0.25
"""The share of picows' CPU time per message and worker that ringcast's may be, at most."""


def run_client(load: Load, client: CheckingClient, clients: int = 1) -> dict[str, float]:
    """Run so many clients of one kind. Returns the rate of the first, and the CPU time of all per
    message and client in us.

    Raises:
        RunFailedError: one did not get exactly what was sent, or a process failed.
    """
    with load.serve(clients) as (children, server, address):
        receivers = [children.start(on_last_core, client, address) for _ in range(clients)]
        found, served = collect(server, receivers)
    cpu = sum(one["cpu"] for one in found)
    return {"rate": found[0]["rate"], "cpu": cpu / served["sent"] / clients * 1e6}


def run_ringcast(
    load: Load, worker: Callable[[Channel, str], None], workers: int = 1
) -> dict[str, float]:
    """Run the manager and so many workers. Returns the rate of the first worker, and the CPU time
    of all per message and worker in us. Raises as `run_client`."""
    with temporary_ring_name() as name, load.serve(1) as (children, server, address):
        manager = children.start(on_last_core, run_manager, address, name)
        manager.receive()
        attached = [children.start(on_last_core, worker, name) for _ in range(workers)]
        for channel in attached:
            channel.receive()
        manager.send()
        found, served = collect(server, attached)
        cpu = manager.receive()["cpu"] + sum(one["cpu"] for one in found)
    return {"rate": found[0]["rate"], "cpu": cpu / served["sent"] / workers * 1e6}


def run_manager_alone(load: Load, capacity: int) -> dict[str, float]:
    """Run the manager without workers. Returns frames per second from the beginning of the
    connection to the last message. Raises as `run_client`."""
    with temporary_ring_name() as name, load.serve(1) as (children, server, address):
        manager = children.start(on_last_core, run_manager, address, name, capacity)
        manager.receive()
        checker = children.start(on_last_core, check_remainder, name)
        checker.receive()
        manager.send()
        began_ns = manager.receive()["connected_ns"]
        checker.send()
        (found,), served = collect(server, [checker])
    return {"rate": served["sent"] / (found["ended_ns"] - began_ns) * 1e9}


def _runs(seconds: float, certificate: Certificate) -> list[Callable[[], dict[str, float]]]:
    plain = Load(seconds)
    large = Load(
        seconds, round_in_writes(LARGE_RECORD_FRAMES), certificate=certificate, encrypted_ahead=4e6
    )
    small = Load(seconds, round_in_writes(1), certificate=certificate, encrypted_ahead=1e6)
    paced = Load(seconds, per_tick=TICK_MESSAGES)

    def only(what: str, name: str, measured: Callable[[], dict[str, float]]) -> Any:
        return lambda: {name: measured()[what]}

    runs = [
        only("rate", "ringcast", lambda: run_ringcast(plain, check_batches_rarely)),
        only("rate", ALONE, lambda: run_manager_alone(plain, CAPACITY_BYTES)),
        only("rate", ALONE_DEFAULT, lambda: run_manager_alone(plain, DEFAULT_CAPACITY_BYTES)),
        only("rate", "bare", lambda: run_client(plain, count_bytes)),
        only("rate", "websocket-client", lambda: run_client(plain, check_websocket_client)),
        only("rate", "large: ringcast", lambda: run_ringcast(large, check_batches_rarely)),
        only("rate", "small: ringcast", lambda: run_ringcast(small, check_batches_rarely)),
        only("cpu", "paced: ringcast", lambda: run_ringcast(paced, check_messages, WORKERS)),
        only("cpu", "flood: ringcast", lambda: run_ringcast(plain, check_messages, WORKERS)),
        only("cpu", "batches: ringcast", lambda: run_ringcast(plain, check_batches, WORKERS)),
    ]
    if is_installed("picows"):
        runs += [
            only("rate", "picows", lambda: run_client(plain, check_picows)),
            only("rate", "large: picows", lambda: run_client(large, check_picows)),
            only("rate", "small: picows", lambda: run_client(small, check_picows)),
            only("cpu", "paced: picows", lambda: run_client(paced, check_picows, WORKERS)),
            only("cpu", "flood: picows", lambda: run_client(plain, check_picows, WORKERS)),
        ]
    if is_installed("websockets"):
        runs.append(only("rate", "websockets", lambda: run_client(plain, check_websockets)))
    if is_installed("aiohttp"):
        runs.append(only("rate", "aiohttp", lambda: run_client(plain, check_aiohttp)))
    return runs


# ---- the scenario --------------------------------------------------------------------------


def _rates(found: Samples, *names: str) -> list[Figure]:
    """Messages per second of those that were measured."""
    return [
        Figure(name.rpartition(": ")[2], "M/s", tuple(value / 1e6 for value in found[name]))
        for name in names
        if name in found
    ]


def _ratio(
    found: Samples,
    ours: str,
    theirs: str,
    floor: float | None = None,
    better: Literal["larger", "smaller"] = "larger",
) -> list[Figure]:
    """A ratio; none if the peer is missing, which the parameters report."""
    if theirs not in found:
        return []
    name = f"{ours.rpartition(': ')[2]} / {theirs.rpartition(': ')[2]}"
    return [ratio(name, found[ours], found[theirs], floor, better)]


def _cpu_times(found: Samples, load: str) -> list[Figure]:
    """CPU time of ringcast and of picows, and the ratio."""
    processes = {"ringcast": f"manager, {WORKERS} workers", "picows": f"{WORKERS} connections"}
    times = [
        Figure(f"{name}: {text}", "us", tuple(found[f"{load}: {name}"]))
        for name, text in processes.items()
        if f"{load}: {name}" in found
    ]
    return [*times, *_ratio(found, f"{load}: ringcast", f"{load}: picows", CPU_MOST, "smaller")]


def _groups(found: Samples) -> dict[str, Sequence[Figure]]:
    batches = Figure(
        f"ringcast: manager, {WORKERS} workers", "us", tuple(found["batches: ringcast"])
    )
    return {
        "frames received per second, without TLS": [
            *_rates(found, "ringcast", ALONE, ALONE_DEFAULT, "bare", *PEERS),
            *_ratio(found, "ringcast", "websocket-client", 50),
            *_ratio(found, "ringcast", "picows", 4),
            *_ratio(found, "ringcast", "websockets"),
            *_ratio(found, "ringcast", "aiohttp"),
            *_ratio(found, "ringcast", "bare"),
            *_ratio(found, ALONE, "bare", 0.8),
            *_ratio(found, ALONE_DEFAULT, "bare"),
        ],
        "frames received per second, TLS, 64 frames per record": [
            *_rates(found, "large: ringcast", "large: picows"),
            *_ratio(found, "large: ringcast", "large: picows", 1.5),
        ],
        "frames received per second, TLS, one frame per record": [
            *_rates(found, "small: ringcast", "small: picows"),
            *_ratio(found, "small: ringcast", "small: picows", 1.0),
        ],
        "CPU time per message and worker, fixed rate": _cpu_times(found, "paced"),
        "CPU time per message and worker, flood": _cpu_times(found, "flood"),
        "CPU time per message and worker, flood, in batches": [
            batches,
            *_ratio(found, "batches: ringcast", "flood: picows", CPU_MOST, "smaller"),
        ],
    }


def measure(plan: Plan) -> Report:
    """Run the scenario: every measurement in turn, round by round.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, a process failed, or no
            certificate could be made.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        certificate = Certificate.make(Path(folder))
        found = interleave(_runs(plan.seconds, certificate), plan.repeat)
    parameters = {"message_bytes": MESSAGE_BYTES, **plan.as_json(), **versions(*PEERS)}
    return Report("ingest", parameters, machine, _groups(found))
