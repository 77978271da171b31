"""What exchanges really sent: from capture files through a server to a manager and one worker.

Of each capture, the first 20,000 messages that the client received are used. Without a folder of
captures, `exchange.market` makes one up, with 20,000 messages per second. The server is on the
first core, everything else where the scheduler likes. Every message that comes is compared with the
file, whole and in order, and at the end the count with what the server sent. For that the worker
copies the payload, as every receiver of memoryviews does here.

At the recorded timing, the server of `ringcast replay`, `exchange.server`, sends the first seconds
of each capture, as many as a run has. A capture with fewer than 100 messages in that time is sped
up until it has them, or until it has all its messages. A latency counts

* from the due time, at which the capture's timing asks for a message, until the worker holds its
  payload. It includes how late the server's event loop is, whose timers have steps of a
  millisecond, and the writes and reads of what is due at once;
* from receipt by the manager until then: what ringcast adds.

The manager's CPU time, user and system, is per second of the connection.

As fast as possible, the frames of a capture are made beforehand and written over and over, 256 KiB
at a time, by the server of the package `websocket`. A server that makes frames as it goes would be
slower than any receiver but websocket-client. Compared are

* ringcast: the manager and one worker, which reads message by message in a `for` loop and takes the
  memoryview of each;
* websocket-client: recv_data() in a loop, blocking; it makes a bytes object per message;
* picows: a callback that takes the memoryview of the payload.

All call the same function with each payload, which compares it. A rate counts from the first
message to the last. Captures are measured in the order of their names. Those for which there was no
time are named in the parameters.
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
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np

import ringcast
from ringcast import shm
from ringcast.broker.exchange import captures, market
from ringcast.broker.exchange.server import Item, Server, timed

from .errors import RunFailedError
from .figures import Figure, Samples, interleave, percentiles, prefixed, ratio
from .processes import Channel, child_processes, pin_to_core
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .websocket.checking import StreamChecker, collect
from .websocket.clients import (
    HandlingClient,
    handle_picows,
    handle_websocket_client,
    is_installed,
    versions,
)
from .websocket.frames import frame
from .websocket.ringcast_side import handle_messages, run_manager
from .websocket.server import Address, Load

MESSAGES_MOST: Final = 20_000
"""Number of messages of a capture that are used."""
MESSAGES_LEAST: Final = 100
"""Number of messages at the recorded timing, if the capture has so many."""
LEAD_NS: Final = 20_000_000
"""Time from the connection until the first message is due."""
MADE_UP_INTERVAL_NS: Final = 50_000
"""Time between messages that are made up."""
CAPACITY_BYTES: Final = 64 << 20
WRITE_BYTES: Final = 256 << 10
"""Size of a write of the server that sends as fast as possible."""
PERCENTILES: Final = (50.0, 99.0)
"""Reported where ten messages or more lie beyond."""

_BUDGET_S: Final = 5.0
_BUDGET_SHARE: Final = 75.0
"""No capture is started after _BUDGET_S and so many times the seconds of a measurement in all
rounds."""
_MADE_UP: Final = "made up"
"""Name of the capture that is used without a folder."""


# ---- captures ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Capture:
    """Messages that a client received, at least one."""

    name: str
    records: Sequence[captures.Record]

    @cached_property
    def payloads(self) -> Sequence[bytes]:
        """The payloads of all messages."""
        return [record.payload for record in self.records]

    @property
    def mean_bytes(self) -> float:
        """The mean size of a payload."""
        return sum(map(len, self.payloads)) / len(self.payloads)

    def speed(self, seconds: float) -> float:
        """How many times as fast as recorded it has to be sent, so that enough messages come in so
        many seconds; at least 1."""
        enough = self.records[: MESSAGES_LEAST + 1][-1]
        return max(1.0, (enough.time_ns - self.records[0].time_ns) / (seconds * 1e9))

    def timed(self, seconds: float) -> list[Item]:
        """What the server sends in so many seconds."""
        most_ns = seconds * 1e9
        items = itertools.takewhile(
            lambda item: item[0] <= most_ns, timed(self.records, self.speed(seconds))
        )
        return [(LEAD_NS + due_ns, is_text, payload) for due_ns, is_text, payload in items]

    def flood(self, seconds: float) -> Load:
        """The load that sends all of it over and over."""
        frames = b"".join(frame(r.payload, is_text=r.kind == "text") for r in self.records)
        times = max(1, WRITE_BYTES // len(frames))
        block = frames * times
        writes = [block[i : i + WRITE_BYTES] for i in range(0, len(block), WRITE_BYTES)]
        return Load(seconds, writes, times * len(self.records))


def _load(path: Path) -> _Capture:
    """Read the beginning of a file."""
    name = path.name.removesuffix(".gz").removesuffix(".tsv")
    try:
        received = (record for record in captures.read(path) if record.kind != "sent")
        records = list(itertools.islice(received, MESSAGES_MOST))
    except (captures.CaptureError, OSError) as error:
        raise RunFailedError(f"{path} cannot be read: {error}") from error
    if not records:
        raise RunFailedError(f"{path} holds no received message")
    return _Capture(name, records)


def _made_up() -> _Capture:
    messages = itertools.islice(market.messages(), MESSAGES_MOST)
    records = [captures.Record(i * MADE_UP_INTERVAL_NS, "text", m) for i, m in enumerate(messages)]
    return _Capture(_MADE_UP, records)


def _loaders(folder: Path | None) -> dict[str, Callable[[], _Capture]]:
    """Functions that load each capture, by file name and in that order."""
    if folder is None:
        return {_MADE_UP: _made_up}
    paths = sorted(path for path in folder.glob("*.tsv*") if path.suffix in {".tsv", ".gz"})
    if not paths:
        raise RunFailedError(f"there are no captures, *.tsv or *.tsv.gz, in {folder}")
    return {path.name: partial(_load, path) for path in paths}


# ---- at the recorded timing ----------------------------------------------------------------


def _serve(channel: Channel, items: Sequence[Item]) -> None:
    """Be the server of one client. Sends the port; and when the client has gone, reports how many
    messages it was sent and when the stream began (CLOCK_MONOTONIC)."""
    pin_to_core("first")
    began: list[int] = []

    def source() -> Iterator[Item]:
        began.append(time.monotonic_ns())
        return iter(items)

    async def main() -> None:
        left = asyncio.Event()
        async with Server(source, on_leave=lambda *_: left.set()) as server:
            channel.send(urlsplit(server.url).port)
            await left.wait()
        channel.send({"sent": server.sent[0].messages, "began_ns": began[0]})

    asyncio.run(main())


def _follow(channel: Channel, name: str, items: Sequence[Item]) -> None:
    """Be the worker that compares messages and notes times. Reports how many came; then receives
    when the stream began, and reports latencies in us."""
    times_ns, ages_ns = (array("q", bytes(8 * len(items))) for _ in range(2))
    count = 0
    with ringcast.attach(name) as feed:
        channel.send()
        for message, (_, is_text, expected) in zip(feed, items, strict=False):
            payload = message.payload
            times_ns[count] = time.monotonic_ns()
            ages_ns[count] = time.time_ns() - message.time_ns
            if bytes(payload) != expected or (message.kind == shm.Kind.TEXT) != is_text:
                raise RunFailedError(
                    f"message {count} is not that of the capture: {bytes(payload)!r}"
                )
            count += 1
    channel.send({"count": count})
    due_ns = channel.receive() + np.array([item[0] for item in items[:count]])
    late_ns, age_ns = np.array(times_ns[:count]) - due_ns, np.array(ages_ns[:count])
    since_due = percentiles(PERCENTILES, count, partial(np.percentile, late_ns))
    since_received = percentiles(PERCENTILES, count, partial(np.percentile, age_ns))
    channel.send(
        {
            **prefixed("due ", since_due),
            **prefixed("received ", since_received),
            "due max": float(late_ns.max()) / 1e3,
        }
    )


def _recorded_timing(capture: _Capture, seconds: float) -> dict[str, float]:
    items = capture.timed(seconds)
    with temporary_ring_name() as name, child_processes(seconds) as children:
        server = children.start(_serve, items)
        manager = children.start(run_manager, Address(server.receive()), name, CAPACITY_BYTES)
        manager.receive()
        worker = children.start(_follow, name, items)
        worker.receive()
        manager.send()
        _, served = collect(server, [worker])
        if served["sent"] != len(items):
            raise RunFailedError(f"the server sent {served['sent']} of {len(items)} messages")
        worker.send(served["began_ns"])
        found: dict[str, float] = worker.receive()
        managed = manager.receive()
    connected_s = (managed["disconnected_ns"] - managed["connected_ns"]) / 1e9
    return found | {"cpu": managed["cpu"] / connected_s}


# ---- as fast as possible -------------------------------------------------------------------


class _CaptureChecker(StreamChecker):
    """Compares each payload with that of the capture."""

    def __init__(self, expected: Sequence[bytes]) -> None:
        super().__init__()
        self._expected = expected

    def check(self, payload: bytes | memoryview) -> bool:
        """Compare a payload. Returns whether more are to come."""
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
        checker = _CaptureChecker(capture.payloads)
        handle_messages(channel, name, checker.check)
        checker.report(channel)

    with (
        temporary_ring_name() as name,
        capture.flood(seconds).serve(1) as (children, server, address),
    ):
        manager = children.start(run_manager, address, name, CAPACITY_BYTES)
        manager.receive()
        worker = children.start(compare, name)
        worker.receive()
        manager.send()
        (found,), _ = collect(server, [worker])
        manager.receive()
    return found["rate"]


def _client(handle: HandlingClient, capture: _Capture, seconds: float) -> float:
    def compare(channel: Channel, address: Address) -> None:
        checker = _CaptureChecker(capture.payloads)
        handle(address, checker.check)
        checker.report(channel)

    with capture.flood(seconds).serve(1) as (children, server, address):
        (found,), _ = collect(server, [children.start(compare, address)])
    return found["rate"]


# ---- the scenario --------------------------------------------------------------------------


def _peers() -> list[str]:
    return ["websocket-client", *(["picows"] if is_installed("picows") else [])]


def _measure(capture: _Capture, seconds: float, repeat: int) -> Samples:
    clients = {"websocket-client": handle_websocket_client, "picows": handle_picows}
    rates = {"ringcast": _ringcast} | {peer: partial(_client, clients[peer]) for peer in _peers()}

    def rate(name: str) -> dict[str, float]:
        return {name: rates[name](capture, seconds)}

    runs = [partial(_recorded_timing, capture, seconds), *(partial(rate, name) for name in rates)]
    return interleave(runs, repeat)


class _Measured(NamedTuple):
    """A capture's name, the mean size of its messages, and samples."""

    name: str
    mean_bytes: float
    samples: Samples


def _groups(found: Sequence[_Measured]) -> dict[str, Sequence[Figure]]:
    """The figures of captures."""
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

    names = [f"p{q:g}" for q in PERCENTILES]
    return {
        "ringcast / client, messages per second, as fast as possible": [
            ratio(f"{name} | ringcast / {peer}", samples["ringcast"], samples[peer])
            for name, _, samples in found
            for peer in peers
        ],
        "messages received per second, as fast as possible": rates("M/s"),
        "payload bytes received per second, as fast as possible": rates("MB/s"),
        "latency from the due time, recorded timing": latencies("due", [*names, "max"]),
        "latency from receipt by the manager, recorded timing": latencies("received", names),
        "manager's CPU time per second, recorded timing": [
            Figure(name, "s/s", tuple(samples["cpu"])) for name, _, samples in found
        ],
    }


def measure(plan: Plan) -> Report:
    """Run the scenario: the measurements of a capture in turn, round by round, then those of the
    next.

    Raises:
        RunFailedError: the worker or a client did not get exactly what was sent, a process failed,
            or no capture can be read.
    """
    machine = describe_machine()
    end = time.monotonic() + _BUDGET_S + _BUDGET_SHARE * plan.seconds * plan.repeat
    found: list[_Measured] = []
    sped_up: dict[str, str] = {}
    left_out: list[str] = []
    for name, load in _loaders(plan.captures).items():
        if found and time.monotonic() > end:
            left_out.append(name)
            continue
        capture = load()
        samples = _measure(capture, plan.seconds, plan.repeat)
        found.append(_Measured(capture.name, capture.mean_bytes, samples))
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
