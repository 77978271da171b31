"""Readers and work groups that keep the ring full: when to demote them, and when to evict them."""

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

    Of a work group it is the member that the group's floor waits for: it is asked to let go, and
    evicted if it does not, and its work goes to others. A group whose messages nobody takes is
    demoted.

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
            status = shm.status(self._writer.name)
        except shm.RingError:  # somebody has removed the names; attached readers read on
            return
        holders = {reader.slot for reader in status.readers if reader.gating}
        alive = {reader.slot for reader in status.readers if reader.state != "dead"}
        for group in status.groups:
            if group.state != "active" or group.floor >= self._goal:
                continue
            # Nobody's; or of a member that was killed with all the others.
            if group.holder is None or group.holder not in alive:
                self._demote_group(group)
            else:
                holders.add(group.holder)
        for reader in status.readers:
            if reader.slot not in holders:
                continue
            if reader.gating and reader.cursor >= self._goal:
                continue
            if reader.state == "active":
                self._demote(reader)
            elif self._config.evict_after is not None:
                self._evict_later(reader, seconds)

    def _evict_later(self, reader: shm.ReaderStatus, seconds: float) -> None:
        """It was asked; evict it once it has not answered for long enough."""
        assert self._config.evict_after is not None
        member = _Member(reader.slot, reader.joined_ns)
        self._unanswered[member] = self._unanswered.get(member, 0.0) + seconds
        if self._unanswered[member] >= self._config.evict_after:
            self._evict(reader)

    def _demote_group(self, group: shm.GroupStatus) -> None:
        if self._writer.demote_group(group.name):
            log_event(
                logging.WARNING,
                "group demoted",
                ring=self._writer.name,
                group=group.name,
                members=len(group.members),
                lag=group.lag,
                after_s=self._config.demote_after,
            )

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
