"""What it costs to be ready: attached and asleep, and nothing comes.

For each transport that can sleep: one sender and four receivers of messages of 4 KiB, which have
carried a flow and then wait for a while. CPU time and context switches by second, of the receivers
together and of a server in between; and the memory that all hold: their own beyond what they had
before the flow, and what they share, counted once. Kernel buffers are not counted.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from . import flows
from .method import Plan, Report, describe_machine, grid, interleave, picked
from .transports import Transport, available
from .transports.rings import Uplink

SIZE: Final = 4096
READERS: Final = 4
FIGURES: Final = {
    "idle cpu": ("CPU time by second while nothing comes", "ms", 1000.0),
    "idle switches": ("context switches by second while nothing comes", "", 1.0),
    "memory": ("memory", "MiB", 2.0**-20),
}
"""Figures of `flows.broadcast`: heading, unit, factor."""
SECONDS_LEAST: Final = 1.0
"""Of idleness, however short the runs: it is rare events that are counted."""


def _measure(transport: type[Transport], seconds: float) -> dict[str, float]:
    idle_s = max(SECONDS_LEAST, seconds)
    found = flows.broadcast(transport, SIZE, READERS, seconds, idle_s=idle_s)
    return {f"{what}: {transport.name} | {READERS} receivers": found[what] for what in FIGURES}


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, or a process failed.
    """
    present, missing = available()
    used = [t for t in present if "block" in t.waits and t.group == 1 and t is not Uplink]
    machine = describe_machine()
    found = interleave([partial(_measure, t, plan.seconds) for t in used], plan.repeat)
    groups = {
        heading: grid(picked(found, what), unit, scale)
        for what, (heading, unit, scale) in FIGURES.items()
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, **missing}
    return Report("idle", parameters, machine, groups)
