"""Receiving a WebSocket flood: ringcast's manager against other clients, plain and over TLS.

One server for all, who does what with a frame, and what is checked: see `websocket.py`. It sends a
round over and over, each time 255 KiB in one write.

Over TLS, what one SSL_write got is one record; 64 frames each make large records, one frame each
makes small ones, as a server does that sends each message when it has it. Encrypting those takes a
server as long as decrypting takes a client, so all is encrypted before the first is sent: as many
blocks as a fast client takes in the run's seconds, or in half a second if that is less, which
bounds the memory.

ringcast is the whole manager, in a process of its own, which receives into a ring, and a worker
that checks all of it meanwhile, on the manager's core, so the checking counts: it looks in when
about a quarter of the ring is new to it, 20 ms apart at most, and reads batches as arrays. The ring
has 16 MiB, as large as 65,536 such messages need.

"Into the ring" is the manager alone: nobody reads meanwhile, and at the end what the ring still has
is checked, and the number of all. It is compared with nothing but bare, which sees no frames
either: its bytes are counted and divided. The default ring is one of 64 MiB, which no cache holds.

A rate is taken from the first receive to the last. On two cores or more the server has the first
one to itself and the receivers share the last one; with fewer, all share one.

The price of four: CPU time, user and system, of the manager and four workers together, which take
each message and its memoryview in a `for` loop, against that of four processes with a picows
connection each; from the first message to the last, by message and worker. Once at a rate
with which both keep up, 128 messages each millisecond, once as fast as the slowest receives; and
that again with workers that take batches, as numpy arrays, which picows has nothing like.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from .method import (
    Channel,
    Figure,
    Plan,
    Report,
    Samples,
    describe_machine,
    interleave,
    ratio,
)
from .transports.rings import ring_names
from .websocket import (
    CAPACITY,
    SIZE,
    Certificate,
    Load,
    Receiver,
    aiohttp,
    bare,
    check_all,
    check_last,
    collect,
    is_installed,
    manage,
    on_last_core,
    picows,
    pieces,
    versions,
    websocket_client,
    websockets,
    work,
    work_in_batches,
)

WORKERS: Final = 4
RECORD: Final = 64
"""Frames in a large TLS record, of which 16 KiB is the most."""
TICK: Final = 128
DEFAULT_CAPACITY: Final = 64 << 20
ALONE: Final = "ringcast, into the ring"
ALONE_DEFAULT: Final = "ringcast, into the default ring"
PEERS: Final = ("websocket-client", "picows", "websockets", "aiohttp")
CPU_MOST: Final = 0.25
"""What CPU time by message and worker is to be of picows', at most."""


def _client(load: Load, receive: Receiver, clients: int = 1) -> dict[str, float]:
    """So many clients of one sort; the first one's rate, and the CPU time of all, us by message."""
    with load.begin(clients) as (group, server, place):
        receivers = [group.start(on_last_core, receive, place) for _ in range(clients)]
        told, served = collect(server, receivers)
    cpu = sum(one["cpu"] for one in told)
    return {"rate": told[0]["rate"], "cpu": cpu / served["sent"] / clients * 1e6}


def _ringcast(
    load: Load, worker: Callable[[Channel, str], None], workers: int = 1
) -> dict[str, float]:
    """The manager and so many workers; the rate, and the CPU time of all, us by message."""
    with ring_names(1) as (name,), load.begin(1) as (group, server, place):
        manager = group.start(on_last_core, manage, place, name)
        manager.hear()
        attached = [group.start(on_last_core, worker, name) for _ in range(workers)]
        for channel in attached:
            channel.hear()
        manager.tell()
        told, served = collect(server, attached)
        cpu = manager.hear()["cpu"] + sum(one["cpu"] for one in told)
    return {"rate": told[0]["rate"], "cpu": cpu / served["sent"] / workers * 1e6}


def _published(load: Load, capacity: int) -> dict[str, float]:
    """The manager alone: frames a second from the connection's beginning to the last message."""
    with ring_names(1) as (name,), load.begin(1) as (group, server, place):
        manager = group.start(on_last_core, manage, place, name, capacity)
        manager.hear()
        checker = group.start(on_last_core, check_last, name)
        checker.hear()
        manager.tell()
        began_ns = manager.hear()["connected_ns"]
        checker.tell()
        (told,), served = collect(server, [checker])
    return {"rate": served["sent"] / (told["ended_ns"] - began_ns) * 1e9}


def _runs(seconds: float, certificate: Certificate) -> list[Callable[[], dict[str, float]]]:
    plain = Load(seconds)
    large = Load(seconds, pieces(RECORD), certificate=certificate, ahead=4e6)
    small = Load(seconds, pieces(1), certificate=certificate, ahead=1e6)
    paced = Load(seconds, per_tick=TICK)

    def part(what: str, name: str, measured: Callable[[], dict[str, float]]) -> Any:
        return lambda: {name: measured()[what]}

    runs = [
        part("rate", "ringcast", lambda: _ringcast(plain, check_all)),
        part("rate", ALONE, lambda: _published(plain, CAPACITY)),
        part("rate", ALONE_DEFAULT, lambda: _published(plain, DEFAULT_CAPACITY)),
        part("rate", "bare", lambda: _client(plain, bare)),
        part("rate", "websocket-client", lambda: _client(plain, websocket_client)),
        part("rate", "large: ringcast", lambda: _ringcast(large, check_all)),
        part("rate", "small: ringcast", lambda: _ringcast(small, check_all)),
        part("cpu", "paced: ringcast", lambda: _ringcast(paced, work, WORKERS)),
        part("cpu", "flood: ringcast", lambda: _ringcast(plain, work, WORKERS)),
        part("cpu", "batches: ringcast", lambda: _ringcast(plain, work_in_batches, WORKERS)),
    ]
    if is_installed("picows"):
        runs += [
            part("rate", "picows", lambda: _client(plain, picows)),
            part("rate", "large: picows", lambda: _client(large, picows)),
            part("rate", "small: picows", lambda: _client(small, picows)),
            part("cpu", "paced: picows", lambda: _client(paced, picows, WORKERS)),
            part("cpu", "flood: picows", lambda: _client(plain, picows, WORKERS)),
        ]
    if is_installed("websockets"):
        runs.append(part("rate", "websockets", lambda: _client(plain, websockets)))
    if is_installed("aiohttp"):
        runs.append(part("rate", "aiohttp", lambda: _client(plain, aiohttp)))
    return runs


# ---- the scenario --------------------------------------------------------------------------


def _rates(found: Samples, *names: str) -> list[Figure]:
    """Messages a second of those that were measured."""
    return [
        Figure(name.rpartition(": ")[2], "M/s", tuple(value / 1e6 for value in found[name]))
        for name in names
        if name in found
    ]


def _over(
    found: Samples,
    ours: str,
    theirs: str,
    floor: float | None = None,
    better: Literal["larger", "smaller"] = "larger",
) -> list[Figure]:
    """A ratio; none if the peer is missing, as the parameters say."""
    if theirs not in found:
        return []
    name = f"{ours.rpartition(': ')[2]} / {theirs.rpartition(': ')[2]}"
    return [ratio(name, found[ours], found[theirs], floor, better)]


def _price(found: Samples, load: str) -> list[Figure]:
    """CPU time, ours and theirs, and the ratio."""
    who = {"ringcast": f"manager, {WORKERS} workers", "picows": f"{WORKERS} connections"}
    times = [
        Figure(f"{name}: {text}", "us", tuple(found[f"{load}: {name}"]))
        for name, text in who.items()
        if f"{load}: {name}" in found
    ]
    return [*times, *_over(found, f"{load}: ringcast", f"{load}: picows", CPU_MOST, "smaller")]


def _groups(found: Samples) -> dict[str, Sequence[Figure]]:
    batches = Figure(
        f"ringcast: manager, {WORKERS} workers", "us", tuple(found["batches: ringcast"])
    )
    return {
        "frames received, plain": [
            *_rates(found, "ringcast", ALONE, ALONE_DEFAULT, "bare", *PEERS),
            *_over(found, "ringcast", "websocket-client", 50),
            *_over(found, "ringcast", "picows", 4),
            *_over(found, "ringcast", "websockets"),
            *_over(found, "ringcast", "aiohttp"),
            *_over(found, "ringcast", "bare"),
            *_over(found, ALONE, "bare", 0.8),
            *_over(found, ALONE_DEFAULT, "bare"),
        ],
        "over TLS, 64 frames a record": [
            *_rates(found, "large: ringcast", "large: picows"),
            *_over(found, "large: ringcast", "large: picows", 1.5),
        ],
        "over TLS, one frame a record": [
            *_rates(found, "small: ringcast", "small: picows"),
            *_over(found, "small: ringcast", "small: picows", 1.0),
        ],
        "CPU time by message and worker, fixed rate": _price(found, "paced"),
        "CPU time by message and worker, flood": _price(found, "flood"),
        "CPU time by message and worker, flood, in batches": [
            batches,
            *_over(found, "batches: ringcast", "flood: picows", CPU_MOST, "smaller"),
        ],
    }


def measure(plan: Plan) -> Report:
    """Run the scenario: each measurement for so many seconds, all of them in turn, round by round.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, a process failed, or there is
            no certificate.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        certificate = Certificate.make(Path(folder))
        found = interleave(_runs(plan.seconds, certificate), plan.repeat)
    parameters = {"message_bytes": SIZE, **plan.as_json(), **versions(*PEERS)}
    return Report("ingest", parameters, machine, _groups(found))
