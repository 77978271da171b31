"""What an operator wants to know of a ring, read from its own memory without disturbing it.

Only the segments are read, mapped without write permission; the ring's processes take no part and
notice nothing. The figures are of one moment each, not all of the same one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import _endpoint, _group, mpsc
from ._topics import read_wishes
from .blocks import OpenedRing, open_ring
from .counters import GroupStatus
from .errors import RingError, RingNotFound
from .mpsc import UplinkStatus
from .names import (
    SHM,
    queue_label,
    ring_names,
    ring_segments,
    uplink_name,
    uplink_names,
)

_POLICIES: Final = {_endpoint.LOSSY: "lossy", _endpoint.MEMBER: "group"}
_STATES: Final = ("free", "joining", "active", "demoting", "demoted", "evicted", "dead")


@dataclass(frozen=True, slots=True)
class ReaderStatus:
    """One reader slot in use.

    Attributes:
        slot: number of the slot.
        pid: process id.
        label: what the reader calls itself.
        policy: "block" or "lossy"; "group" for a member of a work group, whose floor holds the
            ring.
        state: "joining", "active", "demoting", "demoted", "evicted", or "dead" for one whose
            process has died and whose slot nobody has needed yet.
        cursor: next sequence it needs, as it last stored it; behind by up to an eighth of the ring.
        lag: messages published above the cursor.
        lag_bytes: arena bytes from the cursor to the newest message's end.
        received, skipped, lost: messages handed out, passed over since they were not wanted, and
            missed.
        topics: the names and patterns that it wants; None if it gets every message.
        others: whether it wants messages without a topic, if it chooses.
        waiting: it sleeps on its semaphore.
        gating: the writer does not overwrite what it has not read.
        joined_ns: when it attached, Unix time.
        group: of a member, its group's name; None for a reader for itself.
    """

    slot: int
    pid: int
    label: str
    policy: str
    state: str
    cursor: int
    lag: int
    lag_bytes: int
    received: int
    skipped: int
    lost: int
    topics: tuple[str, ...] | None
    others: bool
    waiting: bool
    gating: bool
    joined_ns: int
    group: str | None


@dataclass(frozen=True, slots=True)
class RingStatus:
    """A ring.

    Attributes:
        name: its name.
        state: "open"; "orphaned": the writer died and can be resumed; "closed": it has ended.
        epoch: 1 for the first writer, one more for each that resumed.
        slots, capacity_bytes, max_message: sizes: messages, bytes, bytes.
        max_readers: reader slots.
        used_slots, used_bytes: what the slowest gating reader or work group still needs.
        occupancy: 0..1, the larger of the two as a share of the ring.
        sequence: next sequence to be published.
        oldest: oldest sequence that is certainly still there.
        writer_pid: the writer's process, dead or alive.
        created_ns, writer_since_ns: Unix time.
        note: what the writer says of itself; see `Writer.note`.
        readers: the slots in use.
        groups: the work groups.
    """

    name: str
    state: str
    epoch: int
    slots: int
    capacity_bytes: int
    max_message: int
    max_readers: int
    used_slots: int
    used_bytes: int
    occupancy: float
    sequence: int
    oldest: int
    writer_pid: int
    created_ns: int
    writer_since_ns: int
    note: bytes
    readers: tuple[ReaderStatus, ...]
    groups: tuple[GroupStatus, ...]


@dataclass(frozen=True, slots=True)
class RingEntry:
    """One name of `list_rings`.

    Attributes:
        name: the ring's.
        state: as in `RingStatus`, or "incomplete": its creator died or is at work; "invalid":
            `shm.status` refuses it.
        size_bytes: what its segments take of /dev/shm.
        detail: for "incomplete" and "invalid", why.
        queues: labels of its message queues.
    """

    name: str
    state: str
    size_bytes: int
    detail: str
    queues: tuple[str, ...] = ()


def status(name: str, *, owner: int | None = None) -> RingStatus:
    """Look at a ring without disturbing it.

    Args:
        name: the ring's.
        owner: user id it must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: as attaching does.
    """
    opened = open_ring(name, owner=owner)
    with contextlib.closing(opened.endpoint):
        return _look(opened)


def _look(opened: OpenedRing) -> RingStatus:
    ring = opened.segments
    counters = ring.counters()
    published = counters.published
    alive = opened.endpoint.is_held(_endpoint.LOCK_WRITER)
    _, last, length = ring.position(published - 1) if published else (0, 0, 0)
    end = last + length
    groups = _group.read_groups(ring)
    names = {slot: group.name for group in groups for slot in group.members}
    readers = []
    for slot in range(ring.max_readers):
        reader = _look_at_reader(opened, slot, published, end, names.get(slot))
        if reader is not None:
            readers.append(reader)
    floors = [group.floor for group in groups if group.state == "active"]
    gating = [(reader.lag, reader.lag_bytes) for reader in readers if reader.gating]
    gating += [_lag(ring, floor, published, end) for floor in floors]
    used_slots = max((lag for lag, _ in gating), default=0)
    used_bytes = max((lag_bytes for _, lag_bytes in gating), default=0)
    return RingStatus(
        name=ring.name,
        state="closed" if counters.closed else "open" if alive else "orphaned",
        epoch=counters.epoch,
        slots=ring.slots,
        capacity_bytes=ring.capacity,
        max_message=ring.max_message,
        max_readers=ring.max_readers,
        used_slots=used_slots,
        used_bytes=used_bytes,
        occupancy=min(1.0, max(used_slots / ring.slots, used_bytes / ring.capacity)),
        sequence=published,
        oldest=counters.gate,
        writer_pid=counters.writer_pid,
        created_ns=ring.created_ns,
        writer_since_ns=counters.writer_since_ns,
        note=ring.note(),
        readers=tuple(readers),
        groups=tuple(groups),
    )


def _lag(ring: _endpoint.Segments, cursor: int, published: int, end: int) -> tuple[int, int]:
    """Messages and arena bytes from a cursor to the newest message's end."""
    lag = min(max(published - cursor, 0), ring.slots)
    if not lag:
        return 0, 0
    seq1, position, _ = ring.position(cursor)
    whole = seq1 == cursor + 1  # else it was overwritten: it is lossy and overrun
    return lag, min(max(end - position, 0), ring.capacity) if whole else ring.capacity


def _look_at_reader(
    opened: OpenedRing, slot: int, published: int, end: int, group: str | None
) -> ReaderStatus | None:
    ring = opened.segments
    found = ring.reader_counters(slot)
    if found.state == _endpoint.FREE:
        return None
    alive = opened.endpoint.is_held(_endpoint.LOCK_READER + slot)
    lag, lag_bytes = _lag(ring, found.cursor, published, end)
    wishes = read_wishes(ring, slot) if found.chooses else None
    return ReaderStatus(
        slot=slot,
        pid=found.pid,
        label=found.label,
        policy=_POLICIES.get(found.policy, "block"),
        state=_STATES[found.state] if alive and found.state < len(_STATES) else "dead",
        cursor=found.cursor,
        lag=lag,
        lag_bytes=lag_bytes,
        received=found.received,
        skipped=found.skipped,
        lost=found.lost,
        topics=(wishes.topics if wishes is not None else ()) if found.chooses else None,
        others=wishes is not None and wishes.others,
        waiting=found.waiting,
        gating=found.gating and found.state != _endpoint.EVICTED,
        joined_ns=found.joined_ns,
        group=group,
    )


def list_rings() -> list[RingEntry]:
    """Every ring that has left anything in /dev/shm, by name; stale ones, and uplinks without a
    ring, included, and message queues whose ring is gone. What is not "open" can be removed with
    `shm.unlink`."""
    rings = ring_names()
    entries = [_entry(name, status, "") for name in rings]
    for name in uplink_names():
        if name not in rings:
            entries.append(_entry(name, mpsc.status, "an uplink without a ring"))
    return sorted(entries, key=lambda entry: entry.name)


def _entry(name: str, look: Callable[[str], RingStatus | UplinkStatus], detail: str) -> RingEntry:
    size = 0
    segments = ring_segments(name)
    for path in (*segments, uplink_name(name)):
        with contextlib.suppress(FileNotFoundError):
            size += (SHM / path.removeprefix("/")).stat().st_size
    try:
        state = look(name).state
    except RingNotFound as error:
        state, detail = "incomplete", str(error)
    except RingError as error:
        state, detail = "invalid", str(error)
    labels = [queue_label(segment) for segment in segments]
    return RingEntry(name, state, size, detail, tuple(filter(None, labels)))
