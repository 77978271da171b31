"""What the native core counts, read once from shared memory, as records with names."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "LaneCounters",
    "ReaderCounters",
    "RingCounters",
    "SlotWishes",
    "TopicRow",
    "UplinkCounters",
    "Wishes",
    "WishesAnswer",
]


class RingCounters(NamedTuple):
    """A ring's header."""

    closed: bool
    epoch: int
    writer_pid: int
    writer_since_ns: int
    published: int
    gate: int


class ReaderCounters(NamedTuple):
    """A reader slot; `state` as in layout.h."""

    state: int
    policy: int
    pid: int
    started: int
    joined_ns: int
    label: str
    cursor: int
    received: int
    lost: int
    skipped: int
    chooses: bool
    gating: bool
    waiting: bool


class TopicRow(NamedTuple):
    """A row of the topic table; see `shm.topics.TopicStatus`."""

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


class Wishes(NamedTuple):
    """What one reader wants, and of which topics it asks for a snapshot; `version` says which of
    its lists this is."""

    version: int
    topics: tuple[str, ...]
    snapshots: tuple[str, ...]
    others: bool


class SlotWishes(NamedTuple):
    """A reader that lives and is not evicted, and which list of wishes stands in its slot."""

    slot: int
    joined_ns: int
    version: int


class WishesAnswer(NamedTuple):
    """What the ring's owner says of a reader's wishes.

    Attributes:
        expected: does anybody answer at all?
        version: of the list of wishes that was last looked at.
        text: what of it can't be had and has no row in the topic table; the owner's own form.
    """

    expected: bool
    version: int
    text: str


class UplinkCounters(NamedTuple):
    """An uplink's header."""

    closed: bool
    epoch: int
    receiver_pid: int
    head: int
    flushed: int
    tail: int


class LaneCounters(NamedTuple):
    """A lane; `state` as in layout.h."""

    state: int
    pid: int
    joined_ns: int
    label: str
    sent: int
    taken: int
    done: int
    rejected: int
    unconfirmed: int
    pending_bytes: int
