"""What the native core counts, read once from shared memory, as records with names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "GroupStatus",
    "LaneCounters",
    "ReaderCounters",
    "RingCounters",
    "SetAside",
    "SlotWishes",
    "TopicStatus",
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


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """One topic.

    Attributes:
        topic: its id, from 1; it means this topic as long as the ring exists.
        name: its name.
        state: what the ring's owner makes of it; 0 if it says nothing. A manager says 1: wanted, 2:
            pending, 3: subscribed, 4: refused (docs/topics.md).
        reason: a sentence that belongs to the state, or "".
        wanted_by: readers that want it by name or pattern, and work groups.
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


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message that a work group delivered too often.

    Attributes:
        sequence, topic, time_ns: the message's.
        set_aside_ns: when it was set aside, Unix time.
        deliveries: how often it was handed to a program.
        pids: the processes of the members that had it, the newest first, as far as they are known.
    """

    sequence: int
    topic: int
    time_ns: int
    set_aside_ns: int
    deliveries: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A work group of a ring.

    Attributes:
        name: its name.
        balance: "any", "key" or "round-robin".
        state: "active"; "demoted": it held the ring full for too long, and goes on at the oldest
            message still there when a member comes.
        members: reader slots of its members.
        floor: the oldest sequence that is not done.
        lag: messages published from the floor on.
        in_flight: messages in the hands of members.
        returned: messages that wait to be delivered again.
        redelivered: deliveries beyond the first, in all.
        set_aside: messages that were delivered too often, in all.
        newest_set_aside: records of the last 64 of these, oldest first.
        lost: messages that went while the group was demoted, in all.
        voided: impossible words that members have found and thrown away.
        holder: the slot of the member that the floor waits for; None if it is nobody's.
        topics: the names and patterns that it wants; None if it wants every message.
        others: whether it wants messages without a topic, if it chooses.
        max_deliveries: after how many deliveries a message is set aside.
        created_ns: when it was made, Unix time.
        detail: why its segment can't be read, or "".
    """

    name: str
    balance: str
    state: str
    members: tuple[int, ...]
    floor: int
    lag: int
    in_flight: int
    returned: int
    redelivered: int
    set_aside: int
    newest_set_aside: tuple[SetAside, ...]
    lost: int
    voided: int
    holder: int | None
    topics: tuple[str, ...] | None
    others: bool
    max_deliveries: int
    created_ns: int
    detail: str


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
