"""What idle receivers cost: attached and asleep, while no messages come.

For each transport that can sleep there are one sender and four receivers of messages of 4 KiB. They
carry a flow and then wait for a while. The figures are CPU time and context switches per second, of
all receivers together and a server between; and the memory that all hold: private memory beyond
what they had before the flow, and shared memory, counted once. Kernel buffers are not counted.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from . import flows
from .figures import figures_of, interleave, samples_of
from .report import Plan, Report, describe_machine
from .transports import Transport, available
from .transports.rings import Uplink

SIZE: Final = 4096
READERS: Final = 4
FIGURES: Final = {
    "idle cpu": ("CPU time per second while no messages come", "ms", 1000.0),
    "idle switches": ("context switches per second while no messages come", "", 1.0),
    "memory": ("memory", "MiB", 2.0**-20),
}
"""For figures of `flows.broadcast`: heading, unit, factor."""
IDLE_S_LEAST: Final = 1.0
"""Idle seconds, however short the runs are: the events that are counted are rare."""


def _measure(transport: type[Transport], seconds: float) -> dict[str, float]:
    idle_s = max(IDLE_S_LEAST, seconds)
    found = flows.broadcast(transport, SIZE, READERS, seconds, idle_s=idle_s)
    return {f"{what}: {transport.name} | {READERS} receivers": found[what] for what in FIGURES}


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, or a process failed.
    """
    present, missing = available()
    used = [t for t in present if "block" in t.waits and t.item_messages == 1 and t is not Uplink]
    machine = describe_machine()
    found = interleave([partial(_measure, t, plan.seconds) for t in used], plan.repeat)
    groups = {
        heading: figures_of(samples_of(found, what), unit, scale)
        for what, (heading, unit, scale) in FIGURES.items()
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, **missing}
    return Report("idle", parameters, machine, groups)
