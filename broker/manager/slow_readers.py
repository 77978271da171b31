"""Readers that keep the ring full: when to demote them, and when to evict them."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from ringcast import shm
from ringcast.shm import broadcast

from ..config import Config
from ..logs import log_event

__all__ = ["SlowReaders"]

_WAIT_MAX: Final = 0.1
"""Seconds that one wait for room counts at most: five times what it lasts. A manager that was
itself stopped has waited long, and its readers may not have."""
_PROGRESS_SHARE: Final = 16
"""A reader that frees this fraction of what the ring held is slow and not stuck."""


class _Member(NamedTuple):
    """One reader, and not the next one in its slot."""

    slot: int
    joined_ns: int


class SlowReaders:
    """Asks readers that keep the ring full to become lossy, and evicts those that do not answer.

    The clock counts only waits for room, and starts anew when a sixteenth of what the ring held was
    freed.
    """

    def __init__(self, writer: broadcast.Writer, config: Config) -> None:
        self._writer = writer
        self._config = config
        self._blocked = 0.0  # seconds without progress
        self._goal = 0  # the sequence up to which readers must come for that to be progress
        self._unanswered: dict[_Member, float] = {}  # seconds since each was asked
        self._demoted = 0
        self._evicted = 0

    def blocked_for(self, seconds: float) -> None:
        """The ring was full for so long, and still is."""
        if self._writer.oldest >= self._goal:
            self._blocked = 0.0
            self._unanswered.clear()
            held = self._writer.sequence - self._writer.oldest
            self._goal = self._writer.oldest + max(1, held // _PROGRESS_SHARE)
        seconds = min(seconds, _WAIT_MAX)
        self._blocked += seconds
        if self._config.demote_after is not None and self._blocked >= self._config.demote_after:
            self._demote_or_evict(seconds)

    def _demote_or_evict(self, seconds: float) -> None:
        try:
            readers = shm.status(self._writer.name).readers
        except shm.RingError:  # somebody has removed the names; attached readers read on
            return
        for reader in readers:
            if not reader.gating or reader.cursor >= self._goal:
                continue
            if reader.state == "active":
                self._demote(reader)
            elif self._config.evict_after is not None:
                member = _Member(reader.slot, reader.joined_ns)
                self._unanswered[member] = self._unanswered.get(member, 0.0) + seconds
                if self._unanswered[member] >= self._config.evict_after:
                    self._evict(reader)

    def _demote(self, reader: shm.ReaderStatus) -> None:
        if self._writer.demote(reader.slot):
            self._demoted += 1
            self._log("demoted", reader, self._config.demote_after, self._demoted)

    def _evict(self, reader: shm.ReaderStatus) -> None:
        if self._writer.evict(reader.slot):
            self._evicted += 1
            self._log("evicted", reader, self._config.evict_after, self._evicted)

    def _log(self, event: str, reader: shm.ReaderStatus, after: float | None, count: int) -> None:
        log_event(
            logging.WARNING,
            event,
            ring=self._writer.name,
            slot=reader.slot,
            pid=reader.pid,
            label=reader.label,
            lag=reader.lag,
            after_s=after,
            count=count,
        )
