"""Receiving a WebSocket flood: ringcast's manager against other clients, plain and over TLS.

One server for all, who does what with a frame, and what is checked: see `websocket.py`. It sends a
round over and over, each time 255 KiB in one write.

Over TLS, what one SSL_write got is one record; 64 frames each make large records, one frame each
makes small ones, as a server does that sends each message when it has it. Encrypting those takes a
server as long as decrypting takes a client, so all is encrypted before the first is sent: as many
blocks as a fast client takes in the run's seconds, or in half a second if that is less, which
bounds the memory.

ringcast is the whole manager, in a process of its own, which receives into a ring of 16 MiB, as
large as 65,536 such messages need; once more into one of 64 MiB, the default, which no cache holds.
What the ring still has at the end is checked then, and the number of all. "Checked" is the same
with a worker that checks all of it meanwhile, on the manager's core, so the checking counts: it
looks in when about a quarter of the ring is new to it, 20 ms apart at most, and reads batches as
arrays. Of the others only bare sees no frames: its bytes are counted and divided.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from .method import Channel, Figure, Plan, Report, describe_machine, interleave, ratio
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
PEERS: Final = ("websocket-client", "picows", "websockets", "aiohttp")


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
        part("rate", "ringcast", lambda: _published(plain, CAPACITY)),
        part("rate", "default-ring", lambda: _published(plain, DEFAULT_CAPACITY)),
        part("rate", "checked", lambda: _ringcast(plain, check_all)),
        part("rate", "bare", lambda: _client(plain, bare)),
        part("rate", "websocket-client", lambda: _client(plain, websocket_client)),
        part("rate", "large ringcast", lambda: _ringcast(large, check_all)),
        part("rate", "small ringcast", lambda: _ringcast(small, check_all)),
        part("cpu", "paced ringcast", lambda: _ringcast(paced, work, WORKERS)),
        part("cpu", "flood ringcast", lambda: _ringcast(plain, work, WORKERS)),
        part("cpu", "batches ringcast", lambda: _ringcast(plain, work_in_batches, WORKERS)),
    ]
    if is_installed("picows"):
        runs += [
            part("rate", "picows", lambda: _client(plain, picows)),
            part("rate", "large picows", lambda: _client(large, picows)),
            part("rate", "small picows", lambda: _client(small, picows)),
            part("cpu", "paced picows", lambda: _client(paced, picows, WORKERS)),
            part("cpu", "flood picows", lambda: _client(plain, picows, WORKERS)),
        ]
    if is_installed("websockets"):
        runs.append(part("rate", "websockets", lambda: _client(plain, websockets)))
    if is_installed("aiohttp"):
        runs.append(part("rate", "aiohttp", lambda: _client(plain, aiohttp)))
    return runs


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

    def rates(*names: str) -> list[Figure]:
        return [
            Figure(name.split()[-1], "M/s", tuple(value / 1e6 for value in found[name]))
            for name in names
            if name in found
        ]

    def price(which: str) -> list[Figure]:
        return [
            Figure(f"{text}, {which}", "us", tuple(found[f"{which} {name}"]))
            for text, name in (
                (f"ringcast: manager, {WORKERS} workers", "ringcast"),
                (f"picows: {WORKERS} connections", "picows"),
            )
            if f"{which} {name}" in found
        ]

    def over(
        what: str,
        peer: str,
        floor: float | None = None,
        better: Literal["larger", "smaller"] = "larger",
    ) -> list[Figure]:
        """A ratio; none if the peer is missing, as the parameters say."""
        if peer not in found:
            return []
        above = found[peer.rpartition(" ")[0] + " ringcast" if " " in peer else "ringcast"]
        return [ratio(what, above, found[peer], floor, better)]

    def batches() -> list[Figure]:
        ours = found["batches ringcast"]
        figures = [Figure("ringcast: batches, flood", "us", tuple(ours))]
        if "flood picows" in found:
            name = "ringcast batches / picows, flood"
            figures.append(ratio(name, ours, found["flood picows"], 0.25, "smaller"))
        return figures

    groups = {
        "frames received, plain": [
            *rates("ringcast", "default-ring", "checked", "bare", *PEERS),
            *over("ringcast / websocket-client", "websocket-client", 50),
            *over("ringcast / picows", "picows", 4),
            *over("ringcast / websockets", "websockets"),
            *over("ringcast / aiohttp", "aiohttp"),
            *over("ringcast / bare", "bare", 0.8),
            ratio("ringcast, default ring / bare", found["default-ring"], found["bare"]),
            ratio("ringcast, checked / bare", found["checked"], found["bare"]),
        ],
        "over TLS, 64 frames a record": [
            *rates("large ringcast", "large picows"),
            *over("ringcast / picows", "large picows", 1.5),
        ],
        "over TLS, one frame a record": [
            *rates("small ringcast", "small picows"),
            *over("ringcast / picows", "small picows", 1.0),
        ],
        "CPU time by message and worker": [
            *price("paced"),
            *over("ringcast / picows, paced", "paced picows", 0.25, "smaller"),
            *price("flood"),
            *over("ringcast / picows, flood", "flood picows", 0.25, "smaller"),
            *batches(),
        ],
    }
    parameters = {
        "message_bytes": SIZE,
        **plan.as_json(),
        **versions(*PEERS),
    }
    return Report("ingest", parameters, machine, groups)
