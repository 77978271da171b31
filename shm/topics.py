"""A ring's topics: what the table says of each, and what readers wish for.

The table is the writer's; anybody who may attach can read it, and disturbs nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from ._topics import hash_key, topic_rows
from .blocks import open_ring
from .counters import TopicRow

__all__ = ["TopicStatus", "hash_key", "list_topics", "status_of"]


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """One topic.

    Attributes:
        topic: its id, from 1; it means this topic as long as the ring exists.
        name: its name.
        state: what the ring's owner makes of it; 0 if it says nothing. A manager says 1: wanted, 2:
            pending, 3: subscribed, 4: refused (docs/topics.md).
        reason: a sentence that belongs to the state, or "".
        wanted_by: readers that want it by name or pattern; those that get everything do not count.
        messages, bytes: published under it.
        last_sequence: of the newest message; None if there is none yet.
        last_time_ns: when the newest message was received, Unix time; 0 if there is none yet.
        key: hash of the name, see `hash_key`.
    """

    topic: int
    name: str
    state: int
    reason: str
    wanted_by: int
    messages: int
    bytes: int
    last_sequence: int | None
    last_time_ns: int
    key: int


def status_of(row: TopicRow) -> TopicStatus:
    """The same as a record of the public interface."""
    return TopicStatus(**row._asdict())


def list_topics(name: str, *, owner: int | None = None) -> list[TopicStatus]:
    """The topics of a ring, in the order of their ids, read without disturbing it.

    Args:
        name: the ring's.
        owner: user id it must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: as attaching does.
    """
    opened = open_ring(name, owner=owner)
    try:
        return [status_of(row) for row in topic_rows(opened.segments)]
    finally:
        opened.endpoint.close()
