"""Messages per second from one sender to one receiver, and to many.

Each transport in turn carries the same messages (`payloads`), one by one or 64 at a time, over and
over (`flows`). Every receiver checks them, and that is part of what is measured. Both sides wait as
they do by default, asleep; those that cannot sleep spin. With one receiver, all transports that can
spin are measured spinning, too. Processes run where the scheduler puts them.

A batched transport is compared with ringcast used in batches, any other with ringcast one by one.
Transports differ in who copies and who allocates: see `Transport.copies`. A sender that has to send
to each of many receivers does so one after the other, message by message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from . import flows
from .comparison import AHEAD_TO_BYTES, fits, ratios_to_ringcast
from .figures import Figure, Samples, bytes_text, figures_of, interleave, samples_of
from .report import Plan, Report, describe_machine
from .transports import Transport, Wait, available
from .transports.rings import SleepingRing, Uplink

SIZES: Final = (32, 128, 512, 4096, 65536, 1 << 20)
BRIEF_SIZES: Final = (128, 4096)
UNUSED: Final = (Uplink, SleepingRing)
"""One is for many senders; the other differs from a ring only in how it waits."""
READERS: Final = (1, 2, 4, 8, 16)
BRIEF_READERS: Final = (4,)
FAN_OUT_SIZE: Final = 128

Run = Callable[[], dict[str, float]]


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


def _groups(
    found: Samples, used: Sequence[type[Transport]], floor_of: Callable[[str], float | None]
) -> dict[str, Sequence[Figure]]:
    rates, spinning = samples_of(found, "rate"), samples_of(found, "spinning rate")
    return {
        "ringcast / transport, messages per second": ratios_to_ringcast(
            rates, used, "larger", floor_of
        ),
        "ringcast / transport, messages per second, both sides spinning": ratios_to_ringcast(
            spinning, used, "larger", floor_of
        ),
        "messages per second to each receiver": figures_of(rates, "M/s", 1e-6),
        "messages per second to each receiver, both sides spinning": figures_of(
            spinning, "M/s", 1e-6
        ),
        "CPU time of all processes per message received": figures_of(
            samples_of(found, "cpu"), "us"
        ),
        "context switches of all processes per 1000 messages received": figures_of(
            samples_of(found, "switches"), "", 1000
        ),
        "messages lost": figures_of(_without_zeros(samples_of(found, "lost")), "%", 100),
        "messages lost, both sides spinning": figures_of(
            _without_zeros(samples_of(found, "spinning lost")), "%", 100
        ),
        "memory of all processes, shared memory counted once": figures_of(
            samples_of(found, "memory"), "MiB", 2**-20
        ),
    }


def _without_zeros(samples: Samples) -> Samples:
    """Those samples that are not 0 in every round."""
    return {name: values for name, values in samples.items() if any(values)}


def _report(
    name: str,
    plan: Plan,
    used: Sequence[type[Transport]],
    runs: Sequence[Run],
    floor_of: Callable[[str], float | None],
    parameters: Mapping[str, Any],
) -> Report:
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    parameters = {**plan.as_json(), **parameters}
    return Report(name, parameters, machine, _groups(found, used, floor_of))


def measure(plan: Plan) -> Report:
    """Measure one sender and one receiver, by size of the message.

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
    demanded = {bytes_text(size) for size in sizes if size <= AHEAD_TO_BYTES}
    return _report(
        "throughput",
        plan,
        used,
        runs,
        lambda column: 1.0 if column in demanded else None,
        missing,
    )


def measure_fan_out(plan: Plan) -> Report:
    """Measure one sender and many receivers, by their number. Raises as `measure`."""
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
