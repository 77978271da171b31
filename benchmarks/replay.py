"""What exchanges really sent, from capture files through a server to a manager and one worker.

Of each capture the first 20,000 messages that the client received. Without a folder of captures:
one made up by `exchange.market`, 20,000 messages a second. The server is on the first core,
everything else where the scheduler likes. Every message that comes is compared with the file's,
whole and in order, and the count at the end with what the server said; for that the worker copies
the payload, as whoever gets memoryviews does here.

At its own timing: the server of `ringcast replay`, `exchange.server`, says the first seconds
of each capture, as many as a run has; one that has fewer than 100 messages in that time is sped up
until it has them, or all of itself. Latency is

* from the due time: when the capture's timing asks for a message until the worker holds its
  payload. It includes how late the server's event loop is, whose timers have steps of a
  millisecond, and the writes and reads of what is due at once;
* from the manager's receiving it until then: what ringcast adds.

The manager's CPU time, user and system, is by second of the connection.

As fast as possible: the frames of a capture are made beforehand and written over and over, 256 KiB
at a time, by the server of `websocket.py`, for one that frames as it goes would be slower than any
receiver but websocket-client. Compared are

* ringcast: manager and one worker, which takes each message and its memoryview in a `for` loop;
* websocket-client: recv_data() in a loop, blocking; a bytes object each;
* picows: a callback that takes the payload's memoryview.

All hand each payload to the same function, which compares it. A rate is taken from the first
message to the last. Captures are taken in order of their names; those for which there was no time
are named in the parameters.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np

import ringcast
from ringcast import shm
from ringcast.broker.exchange import captures, market
from ringcast.broker.exchange.server import Item, Server, timed

from .method import (
    Channel,
    Figure,
    Plan,
    Report,
    RunFailedError,
    Samples,
    crew,
    describe_machine,
    interleave,
    percentiles,
    prefixed,
    ratio,
)
from .transports.rings import ring_names
from .websocket import (
    BUFFER,
    Load,
    Place,
    Take,
    Tally,
    collect,
    feed_each,
    frame,
    is_installed,
    manage,
    picows_each,
    pin,
    versions,
    websocket_client_each,
)

MESSAGES_MOST: Final = 20_000
"""Of a capture."""
FEWEST: Final = 100
"""Messages at a capture's own timing, if it has so many."""
LEAD_NS: Final = 20_000_000
"""From the connection until the first message is due."""
MADE_UP_NS: Final = 50_000
"""Between messages that are made up."""
CAPACITY: Final = 64 << 20
QUANTILES: Final = (50.0, 99.0)
"""Told where ten messages or more lie beyond."""

_BUDGET_S: Final = 5.0
_BUDGET_SHARE: Final = 75.0
"""No capture is begun after the former and so many times a measurement's seconds in all rounds."""
_MADE_UP: Final = "made up"
"""Name of the capture that there is without a folder."""


# ---- captures ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Capture:
    """Messages that a client received, at least one."""

    name: str
    records: Sequence[captures.Record]

    @cached_property
    def payloads(self) -> Sequence[bytes]:
        """Of all messages."""
        return [record.payload for record in self.records]

    @property
    def mean_bytes(self) -> float:
        """Of a payload."""
        return sum(map(len, self.payloads)) / len(self.payloads)

    def speed(self, seconds: float) -> float:
        """Pace at which enough messages come in so many seconds; at least 1."""
        enough = self.records[: FEWEST + 1][-1]
        return max(1.0, (enough.time_ns - self.records[0].time_ns) / (seconds * 1e9))

    def timed(self, seconds: float) -> list[Item]:
        """What the server says in so many seconds."""
        most_ns = seconds * 1e9
        items = itertools.takewhile(
            lambda item: item[0] <= most_ns, timed(self.records, self.speed(seconds))
        )
        return [(LEAD_NS + due_ns, is_text, payload) for due_ns, is_text, payload in items]

    def flood(self, seconds: float) -> Load:
        """All of it over and over."""
        frames = b"".join(frame(r.payload, is_text=r.kind == "text") for r in self.records)
        times = max(1, BUFFER // len(frames))
        block = frames * times
        pieces = [block[i : i + BUFFER] for i in range(0, len(block), BUFFER)]
        return Load(seconds, pieces, times * len(self.records))


def _load(path: Path) -> _Capture:
    """The beginning of a file."""
    name = path.name.removesuffix(".gz").removesuffix(".tsv")
    try:
        received = (record for record in captures.read(path) if record.kind != "sent")
        records = list(itertools.islice(received, MESSAGES_MOST))
    except (captures.CaptureError, OSError) as error:
        raise RunFailedError(f"{path} can't be read: {error}") from error
    if not records:
        raise RunFailedError(f"{path} holds no received message")
    return _Capture(name, records)


def _made_up() -> _Capture:
    messages = itertools.islice(market.messages(), MESSAGES_MOST)
    records = [captures.Record(i * MADE_UP_NS, "text", m) for i, m in enumerate(messages)]
    return _Capture(_MADE_UP, records)


def _loaders(folder: Path | None) -> dict[str, Callable[[], _Capture]]:
    """By file name, in that order, how to load each."""
    if folder is None:
        return {_MADE_UP: _made_up}
    paths = sorted(path for path in folder.glob("*.tsv*") if path.suffix in {".tsv", ".gz"})
    if not paths:
        raise RunFailedError(f"there are no captures, *.tsv or *.tsv.gz, in {folder}")
    return {path.name: partial(_load, path) for path in paths}


# ---- at its own timing ---------------------------------------------------------------------


def _say(channel: Channel, items: Sequence[Item]) -> None:
    """Be the server for one client; tell the port, and when that has gone how many messages it was
    told and when the stream began (CLOCK_MONOTONIC)."""
    pin("first")
    began: list[int] = []

    def source() -> Iterator[Item]:
        began.append(time.monotonic_ns())
        return iter(items)

    async def main() -> None:
        left = asyncio.Event()
        async with Server(source, on_leave=lambda *_: left.set()) as server:
            channel.tell(urlsplit(server.url).port)
            await left.wait()
        channel.tell({"sent": server.sent[0].messages, "began_ns": began[0]})

    asyncio.run(main())


def _follow(channel: Channel, name: str, items: Sequence[Item]) -> None:
    """Be the worker that compares, and notes times; tell how many came, and, told when the stream
    began, the latencies, us."""
    stamps, ages = (array("q", bytes(8 * len(items))) for _ in range(2))
    count = 0
    with ringcast.attach(name) as feed:
        channel.tell()
        for message, (_, is_text, expected) in zip(feed, items, strict=False):
            payload = message.payload
            stamps[count] = time.monotonic_ns()
            ages[count] = time.time_ns() - message.time_ns
            if bytes(payload) != expected or (message.kind == shm.Kind.TEXT) != is_text:
                raise RunFailedError(f"message {count} is not the capture's: {bytes(payload)!r}")
            count += 1
    channel.tell({"count": count})
    due_ns = channel.hear() + np.array([item[0] for item in items[:count]])
    late, age = np.array(stamps[:count]) - due_ns, np.array(ages[:count])
    channel.tell(
        {
            **prefixed("due ", percentiles(QUANTILES, count, partial(np.percentile, late))),
            **prefixed("received ", percentiles(QUANTILES, count, partial(np.percentile, age))),
            "due max": float(late.max()) / 1e3,
        }
    )


def _own_timing(capture: _Capture, seconds: float) -> dict[str, float]:
    items = capture.timed(seconds)
    with ring_names(1) as (name,), crew(seconds) as group:
        server = group.start(_say, items)
        manager = group.start(manage, Place(server.hear()), name, CAPACITY)
        manager.hear()
        worker = group.start(_follow, name, items)
        worker.hear()
        manager.tell()
        _, served = collect(server, [worker])
        if served["sent"] != len(items):
            raise RunFailedError(f"the server said {served['sent']} of {len(items)} messages")
        worker.tell(served["began_ns"])
        found: dict[str, float] = worker.hear()
        managed = manager.hear()
    connected_s = (managed["disconnected_ns"] - managed["connected_ns"]) / 1e9
    return found | {"cpu": managed["cpu"] / connected_s}


# ---- as fast as possible -------------------------------------------------------------------


class _Compared(Tally):
    """Compares each payload with the capture's."""

    def __init__(self, expected: Sequence[bytes]) -> None:
        super().__init__()
        self._expected = expected

    def take(self, payload: bytes | memoryview) -> bool:
        """Compare a payload; are there more to come?"""
        count = self.count
        if bytes(payload) != self._expected[count % len(self._expected)]:
            self.end(payload, count)
            return False
        if not count:
            self.begin()
        self.count = count + 1
        return True


def _ringcast(capture: _Capture, seconds: float) -> float:
    def compare(channel: Channel, name: str) -> None:
        tally = _Compared(capture.payloads)
        feed_each(channel, name, tally.take)
        tally.tell(channel)

    with (
        ring_names(1) as (name,),
        capture.flood(seconds).begin(1) as (group, server, place),
    ):
        manager = group.start(manage, place, name, CAPACITY)
        manager.hear()
        worker = group.start(compare, name)
        worker.hear()
        manager.tell()
        (told,), _ = collect(server, [worker])
        manager.hear()
    return told["rate"]


def _client(each: Callable[[Place, Take], None], capture: _Capture, seconds: float) -> float:
    def compare(channel: Channel, place: Place) -> None:
        tally = _Compared(capture.payloads)
        each(place, tally.take)
        tally.tell(channel)

    with capture.flood(seconds).begin(1) as (group, server, place):
        (told,), _ = collect(server, [group.start(compare, place)])
    return told["rate"]


# ---- the scenario --------------------------------------------------------------------------


def _peers() -> list[str]:
    return ["websocket-client", *(["picows"] if is_installed("picows") else [])]


def _measured(capture: _Capture, seconds: float, repeat: int) -> Samples:
    each = {"websocket-client": websocket_client_each, "picows": picows_each}
    rates = {"ringcast": _ringcast} | {peer: partial(_client, each[peer]) for peer in _peers()}

    def rate(name: str) -> dict[str, float]:
        return {name: rates[name](capture, seconds)}

    runs = [partial(_own_timing, capture, seconds), *(partial(rate, name) for name in rates)]
    return interleave(runs, repeat)


def _groups(found: Sequence[tuple[str, float, Samples]]) -> dict[str, Sequence[Figure]]:
    """Figures of captures, of which each has its name, the mean size of a message, and samples."""
    peers = _peers()

    def rates(unit: str) -> list[Figure]:
        return [
            Figure(
                f"{name} | {peer}",
                unit,
                tuple(rate * (size if unit == "MB/s" else 1) / 1e6 for rate in samples[peer]),
            )
            for name, size, samples in found
            for peer in ("ringcast", *peers)
        ]

    def latencies(since: str, parts: Sequence[str]) -> list[Figure]:
        return [
            Figure(f"{name} | {part}", "us", tuple(samples[f"{since} {part}"]))
            for name, _, samples in found
            for part in parts
            if f"{since} {part}" in samples
        ]

    quantiles = [f"p{q:g}" for q in QUANTILES]
    return {
        "as fast as possible, messages a second": [
            ratio(f"{name} | ringcast / {peer}", samples["ringcast"], samples[peer])
            for name, _, samples in found
            for peer in peers
        ],
        "messages received, as fast as possible": rates("M/s"),
        "payload received, as fast as possible": rates("MB/s"),
        "latency from the due time, own timing": latencies("due", [*quantiles, "max"]),
        "latency from the manager's receiving, own timing": latencies("received", quantiles),
        "manager's CPU time by second, own timing": [
            Figure(name, "s/s", tuple(samples["cpu"])) for name, _, samples in found
        ],
    }


def measure(plan: Plan) -> Report:
    """Run the scenario: each measurement for so many seconds, those of a capture in turn, round by
    round, then those of the next.

    Raises:
        RunFailedError: the worker or a client did not get exactly what was sent, a process failed,
            or there is no capture that can be read.
    """
    machine = describe_machine()
    end = time.monotonic() + _BUDGET_S + _BUDGET_SHARE * plan.seconds * plan.repeat
    found: list[tuple[str, float, Samples]] = []
    sped_up: dict[str, str] = {}
    left_out: list[str] = []
    for name, load in _loaders(plan.captures).items():
        if found and time.monotonic() > end:
            left_out.append(name)
            continue
        capture = load()
        found.append(
            (capture.name, capture.mean_bytes, _measured(capture, plan.seconds, plan.repeat))
        )
        if (speed := capture.speed(plan.seconds)) > 1:
            sped_up[capture.name] = f"{speed:.3g} x"
    parameters = {
        "captures": _MADE_UP if plan.captures is None else len(found),
        "left_out": left_out or "none",
        "messages_most": MESSAGES_MOST,
        **plan.as_json(),
        "sped_up": sped_up or "none",
        "placement": "server on the first core, all else where the scheduler likes",
        **versions("websocket-client", "picows"),
    }
    return Report("replay", parameters, machine, _groups(found))
