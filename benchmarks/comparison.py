"""Comparing ringcast with other transports: whom with whom, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

from .figures import Figure, Samples, cell_of, ratio
from .transports import Transport
from .transports.rings import BatchedRing, Ring

AHEAD_TO_BYTES: Final = 4096
"""Largest message with which ringcast has to be ahead of every other transport."""


def fits(transport: type[Transport], size: int) -> bool:
    """Whether a transport can carry messages of this size."""
    largest = transport.largest()
    return largest is None or size <= largest


def compared_with(transport: type[Transport]) -> type[Transport]:
    """The use of ringcast that a transport is compared with."""
    return Ring if transport.item_messages == 1 else BatchedRing


def ratios_to_ringcast(
    found: Samples,
    transports: Iterable[type[Transport]],
    better: Literal["larger", "smaller"],
    floor_of: Callable[[str], float | None],
) -> list[Figure]:
    """Ratios between ringcast and each other transport, above 1 where ringcast is better.

    Args:
        found: samples named "TRANSPORT | COLUMN".
        transports: those that may be among them.
        better: which samples are better.
        floor_of: returns the floor of the ratios in a column.
    """
    ours_by_name = {
        t.name: compared_with(t).name for t in transports if not t.name.startswith("ringcast")
    }
    ratios = []
    for name, theirs in found.items():
        row, column = cell_of(name)
        ours = found.get(f"{ours_by_name.get(row)} | {column}")
        if ours is not None:
            pair = (ours, theirs) if better == "larger" else (theirs, ours)
            ratios.append(ratio(name, *pair, floor_of(column)))
    return ratios
