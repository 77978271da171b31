"""Histograms of durations, by the package hdrhistogram: three digits, from 1 ns to an hour."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from .errors import RunFailedError
from .figures import percentiles

NOT_INSTALLED: Final = "not installed: pip install 'ringcast[bench]'"
_SHORTEST_NS: Final = 1
_LONGEST_NS: Final = 3_600_000_000_000
_DIGITS: Final = 3


def is_installed() -> bool:
    """Whether the package hdrhistogram can be imported."""
    return importlib.util.find_spec("hdrh") is not None


class Histogram:
    """Durations in ns.

    Attributes:
        count: how many it holds.
    """

    def __init__(self) -> None:
        module = importlib.import_module("hdrh.histogram")
        self._histogram: Any = module.HdrHistogram(_SHORTEST_NS, _LONGEST_NS, _DIGITS)

    @property
    def count(self) -> int:
        """How many durations it holds."""
        count: int = self._histogram.get_total_count()
        return count

    def record(self, durations_ns: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Add durations.

        Raises:
            RunFailedError: one is negative or longer than an hour.
        """
        for value, count in zip(*np.unique(durations_ns, return_counts=True), strict=True):
            if not self._histogram.record_value(int(value), int(count)):
                raise RunFailedError(f"a latency of {value} ns is out of range")

    def as_text(self) -> str:
        """This histogram as text, for `add_text` in another process."""
        text: bytes = self._histogram.encode()
        return text.decode()

    def add_text(self, text: str) -> None:
        """Add the durations of a histogram that `as_text` returned."""
        self._histogram.decode_and_add(text.encode())

    def percentiles(self, wanted: Sequence[float]) -> dict[str, float]:
        """Percentiles in us, with names such as "p99" (see `figures.percentiles`)."""
        return percentiles(wanted, self.count, self._histogram.get_value_at_percentile)
