"""Measurements in one process: steps that take turns, such as publishing and reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Concatenate

from .processes import Channel, Params, child_processes
from .ring_names import temporary_ring_name


def in_child(
    target: Callable[Concatenate[Channel, str, float, Params], None],
    seconds: float,
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> dict[str, float]:
    """Run ``target(channel, ring_name, seconds, *args)`` in a child. Returns what it sends.

    Raises:
        RunFailedError: it failed.
    """
    with temporary_ring_name() as name, child_processes(seconds) as children:
        channel = children.start(target, name, seconds, *args, **kwargs)
        found: dict[str, float] = channel.receive()
        return found


def in_turns(steps: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Do each step in turn, over and over. Returns how long each took on average in ns, without the
    first round."""
    clock = time.perf_counter_ns
    spent = dict.fromkeys(steps, 0)
    rounds = -1
    end = clock() + int(seconds * 1e9)
    while rounds < 1 or clock() < end:
        for name, step in steps.items():
            before = clock()
            step()
            spent[name] += clock() - before if rounds >= 0 else 0
        rounds += 1
    return {name: total / rounds for name, total in spent.items()}
