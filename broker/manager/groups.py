"""What the manager says of work groups: messages that were delivered too often are announced."""

from __future__ import annotations

import logging

from ringcast import shm
from ringcast.shm import broadcast, group

from .reporting import Reporter

__all__ = ["Groups"]

_Key = tuple[str, int, int]
"""A record's group, when that was made, and its sequence."""


class Groups:
    """Announces messages that groups have set aside, each once, as EVENT records and in the log.

    Args:
        writer: of the ring.
        reporter: brings it among the messages.
    """

    def __init__(self, writer: broadcast.Writer, reporter: Reporter) -> None:
        self._writer = writer
        self._reporter = reporter
        self._count = writer.set_aside
        # What was set aside under a dead manager, that one has announced.
        self._seen = {key for key, _, _ in self._records()} if self._count else set()

    def look(self) -> None:
        """Announce what is new; cheap if nothing is."""
        count = self._writer.set_aside
        if count == self._count:
            return
        self._count = count
        found = self._records()
        for key, status, record in found:
            if key in self._seen:
                continue
            self._reporter.announce(
                "set aside",
                logging.WARNING,
                group=status.name,
                sequence=record.sequence,
                topic=record.topic,
                deliveries=record.deliveries,
                pids=list(record.pids),
                in_all=status.set_aside,
            )
        self._seen = {key for key, _, _ in found}

    def _records(self) -> list[tuple[_Key, group.GroupStatus, group.SetAside]]:
        try:
            groups = group.list_groups(self._writer.name)
        except shm.RingError:  # somebody has removed the names
            return []
        return [
            ((status.name, status.created_ns, record.sequence), status, record)
            for status in groups
            for record in status.newest_set_aside
        ]
