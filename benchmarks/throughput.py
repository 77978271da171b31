"""How many messages a second get through, from one sender to one receiver and to many.

Each transport in turn carries the same messages (`payloads`), one by one or 64 at a time, over and
over (`flows`); every receiver checks them, and that is part of what is measured. Both sides wait as
they do by default, asleep; those that can't, spin. From one to one, those that can are measured
spinning, too. Processes run where the scheduler puts them.

A batched transport is compared with ringcast's batched use, any other with ringcast's one by one.
Who copies and who allocates differs by transport: `Transport.copies` says so. Where a sender
has to send to each of many receivers, it does so one after the other, message by message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from . import flows
from .method import (
    Figure,
    Plan,
    Report,
    Samples,
    cell_of,
    describe_machine,
    grid,
    interleave,
    picked,
    ratio,
)
from .transports import Transport, Wait, available
from .transports.rings import BatchedRing, Ring, SleepingRing, Uplink

SIZES: Final = (32, 128, 512, 4096, 65536, 1 << 20)
BRIEF_SIZES: Final = (128, 4096)
UNUSED: Final = (Uplink, SleepingRing)
"""What has many senders; what differs from another only where it waits."""
READERS: Final = (1, 2, 4, 8, 16)
BRIEF_READERS: Final = (4,)
FAN_OUT_SIZE: Final = 128
AHEAD_TO: Final = 4096
"""Bytes to which ringcast is to be ahead of every peer."""

Run = Callable[[], dict[str, float]]


def bytes_text(size: int) -> str:
    """A size for people."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def fits(transport: type[Transport], size: int) -> bool:
    """Can it carry messages of this size?"""
    largest = transport.largest()
    return largest is None or size <= largest


def _run(transport: type[Transport], size: int, readers: int, column: str, seconds: float) -> Run:
    """A flow whose sides wait as they do by default."""
    wait: Wait = "block" if "block" in transport.waits else "spin"

    def run() -> dict[str, float]:
        found = flows.broadcast(transport, size, readers, seconds, wait)
        return {f"{what}: {transport.name} | {column}": value for what, value in found.items()}

    return run


def _spinning(transport: type[Transport], size: int, seconds: float) -> Run:
    """A flow to one receiver whose sides spin."""

    def run() -> dict[str, float]:
        found = flows.broadcast(transport, size, 1, seconds, "spin")
        name = f"{transport.name} | {bytes_text(size)}"
        return {f"spinning {what}: {name}": found[what] for what in ("rate", "lost")}

    return run


def reference(transport: type[Transport]) -> type[Transport]:
    """What of ringcast a transport is compared with."""
    return Ring if transport.group == 1 else BatchedRing


def ahead(
    found: Samples,
    transports: Iterable[type[Transport]],
    better: str,
    floors: Callable[[str], float | None],
) -> list[Figure]:
    """Ringcast against each peer, as quotients above 1 where ringcast is better.

    Args:
        found: samples named "TRANSPORT | COLUMN".
        transports: those that may be among them.
        better: "larger" or "smaller", which samples are better.
        floors: by column, what the quotient has to be at least.
    """
    peers = {t.name: reference(t).name for t in transports if not t.name.startswith("ringcast")}
    figures = []
    for name, theirs in found.items():
        row, column = cell_of(name)
        ours = found.get(f"{peers.get(row)} | {column}")
        if ours is not None:
            pair = (ours, theirs) if better == "larger" else (theirs, ours)
            figures.append(ratio(name, *pair, floors(column)))
    return figures


def _groups(
    found: Samples, used: Sequence[type[Transport]], floors: Callable[[str], float | None]
) -> dict[str, Sequence[Figure]]:
    rates, spinning = picked(found, "rate"), picked(found, "spinning rate")
    return {
        "ringcast / transport, messages a second": ahead(rates, used, "larger", floors),
        "the same, both spinning": ahead(spinning, used, "larger", floors),
        "messages a second, by receiver": grid(rates, "M/s", 1e-6),
        "the same, both spinning, messages a second": grid(spinning, "M/s", 1e-6),
        "CPU time of all processes by message received": grid(picked(found, "cpu"), "us"),
        "context switches of all processes by 1000 messages received": grid(
            picked(found, "switches"), "", 1000
        ),
        "lost": grid(_some(picked(found, "lost")), "%", 100),
        "lost, both spinning": grid(_some(picked(found, "spinning lost")), "%", 100),
        "memory of all processes, what they share counted once": grid(
            picked(found, "memory"), "MiB", 2**-20
        ),
    }


def _some(samples: Samples) -> Samples:
    """Those that are not 0 throughout."""
    return {name: values for name, values in samples.items() if any(values)}


def _report(
    name: str,
    plan: Plan,
    used: Sequence[type[Transport]],
    runs: Sequence[Run],
    floors: Callable[[str], float | None],
    parameters: Mapping[str, Any],
) -> Report:
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    parameters = {**plan.as_json(), **parameters}
    return Report(name, parameters, machine, _groups(found, used, floors))


def measure(plan: Plan) -> Report:
    """From one sender to one receiver, by size.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, or a process failed.
    """
    present, missing = available()
    used = [transport for transport in present if transport not in UNUSED]
    sizes = BRIEF_SIZES if plan.brief else SIZES
    runs = [
        _run(transport, size, 1, bytes_text(size), plan.seconds)
        for size in sizes
        for transport in used
        if fits(transport, size)
    ]
    if not plan.brief:
        runs += [
            _spinning(transport, size, plan.seconds)
            for size in sizes
            for transport in used
            if "spin" in transport.waits and fits(transport, size)
        ]
    demanded = {bytes_text(size) for size in sizes if size <= AHEAD_TO}
    return _report(
        "throughput",
        plan,
        used,
        runs,
        lambda column: 1.0 if column in demanded else None,
        missing,
    )


def measure_fan_out(plan: Plan) -> Report:
    """From one sender to many receivers, by how many. Raises as `measure`."""
    present, missing = available()
    used = [transport for transport in present if transport not in UNUSED]
    runs = [
        _run(transport, FAN_OUT_SIZE, readers, f"1 to {readers}", plan.seconds)
        for readers in (BRIEF_READERS if plan.brief else READERS)
        for transport in used
    ]
    return _report(
        "fan-out", plan, used, runs, lambda _: None, {"message_bytes": FAN_OUT_SIZE, **missing}
    )
