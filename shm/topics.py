"""A ring's topics: what the table says of each, and what readers wish for.

The table is the writer's; anybody who may attach can read it, and disturbs nobody.
"""

from __future__ import annotations

import contextlib

from ._topics import ANSWER_MAX, NAME_MAX, hash_key, topic_rows
from .blocks import open_ring
from .counters import TopicStatus

__all__ = ["ANSWER_MAX", "NAME_MAX", "TopicStatus", "hash_key", "list_topics"]


def list_topics(name: str, *, owner: int | None = None) -> list[TopicStatus]:
    """The topics of a ring, in the order of their ids, read without disturbing it.

    Args:
        name: the ring's.
        owner: user id it must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: as attaching does.
    """
    opened = open_ring(name, owner=owner)
    with contextlib.closing(opened.endpoint):
        return topic_rows(opened.segments)
