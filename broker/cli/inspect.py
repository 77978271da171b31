"""``ringcast inspect``: one ring, its connection, its readers and senders, and whom gateways serve.

It reads the ring's own memory. Nobody has to answer, so it works on a stuck process, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ringcast import shm
from ringcast.shm import mpsc
from ringcast.shm.queues import QueueStatus, list_queues

from ..gateway.roster import GatewayStatus, list_gateways
from ..worker import state
from .group import group_as_json, groups_table
from .output import (
    AsJson,
    Name,
    Owner,
    bar,
    new_table,
    print_json,
    rate_text,
    size_text,
    state_text,
    time_text,
    used_text,
    visible,
)
from .served import gateway_as_json, queue_as_json, served_tables
from .watching import Interval, Watch, show, watch_ring

__all__ = ["Snapshot", "inspect", "ring_view"]

_WIDE: Final = 120
"""Columns of a terminal that has space for every column of readers."""
_NOT_BEHIND: Final = "-"
"""The lag of a reader that reads nothing."""
_TOPICS_SHOWN: Final = 20
"""Names and patterns of one reader that are shown to people; JSON has all."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A ring, its uplink and its gateways at one moment; `at` is seconds of the monotonic clock."""

    status: shm.RingStatus
    uplink: mpsc.UplinkStatus | None
    gateways: list[GatewayStatus]
    queues: list[QueueStatus]
    at: float

    @classmethod
    def of(cls, status: shm.RingStatus, owner: int | None = None) -> Snapshot:
        """The status of a ring that was just read, and what else there is of that name."""
        try:
            uplink = mpsc.status(status.name, owner=owner)
        except shm.RingError:  # a ring without one, or one that is just being removed
            uplink = None
        gateways = list_gateways(status.name, owner=owner)
        return cls(status, uplink, gateways, list_queues(status.name), time.monotonic())


def inspect(
    name: Name,
    watch: Watch = False,
    interval: Interval = 0.5,
    as_json: AsJson = False,
    owner: Owner = None,
) -> None:
    """Show one ring: how full it is, its connection, its readers and senders, and the clients and
    message queues of its gateways."""

    def look() -> Snapshot:
        return Snapshot.of(shm.status(name, owner=owner), owner)

    if watch:
        watch_ring(name, look, interval, ring_view, _as_json if as_json else None)
        return
    first = look()
    if as_json:
        print_json(_as_json(first))
    else:
        time.sleep(interval)
        show(ring_view, look(), first)


# ---- for programs ----------------------------------------------------------------------------


def _as_json(now: Snapshot, _before: Snapshot | None = None) -> dict[str, Any]:
    status = now.status
    return {
        "name": status.name,
        "epoch": status.epoch,
        "state": status.state,
        "slots": status.slots,
        "capacity_bytes": status.capacity_bytes,
        "used_bytes": status.used_bytes,
        "occupancy": status.occupancy,
        "sequence": status.sequence,
        "readers": [_reader_as_json(reader) for reader in status.readers],
        "uplink": _uplink_as_json(now.uplink),
        "groups": [group_as_json(group) for group in status.groups],
        "connection": _connection_as_json(state.connection(status)),
        "gateways": [gateway_as_json(gateway) for gateway in now.gateways],
        "queues": [queue_as_json(queue, status.sequence) for queue in now.queues],
    }


def _uplink_as_json(uplink: mpsc.UplinkStatus | None) -> dict[str, Any] | None:
    if uplink is None:
        return None
    return {
        "tickets": uplink.tickets,
        "pending": uplink.pending,
        "senders": [
            {
                "lane": sender.lane,
                "pid": sender.pid,
                "label": sender.label,
                "state": sender.state,
                "sent": sender.sent,
                "pending": sender.pending,
                "pending_bytes": sender.pending_bytes,
                "rejected": sender.rejected,
                "unconfirmed": sender.unconfirmed,
            }
            for sender in uplink.senders
        ],
    }


def _reader_as_json(reader: shm.ReaderStatus) -> dict[str, Any]:
    return {
        "slot": reader.slot,
        "pid": reader.pid,
        "label": reader.label,
        "policy": reader.policy,
        "state": reader.state,
        "cursor": reader.cursor,
        "lag": reader.lag,
        "lag_bytes": reader.lag_bytes,
        "lost": reader.lost,
        "skipped": reader.skipped,
        "waiting": reader.waiting,
        "topics": reader.topics,
        "group": reader.group,
    }


def _connection_as_json(connection: state.ConnectionState | None) -> dict[str, Any] | None:
    if connection is None:
        return None
    return {
        "phase": str(connection.phase),
        "url": connection.url,
        "since_ns": connection.since_ns,
        "rtt_ns": connection.rtt_ns,
        "received": connection.received,
        "sent": connection.sent,
        "reconnects": connection.reconnects,
        "last_error": connection.last_error,
        "answers_dropped": connection.answers_dropped,
    }


# ---- for people ------------------------------------------------------------------------------


def ring_view(console: Console, now: Snapshot, before: Snapshot | None) -> RenderableType:
    """A ring for people; rates are over the time since `before`, and left out without it."""
    status = now.status
    ring = Table.grid(padding=(0, 2))
    ring.add_row(Text("ring", "bold"), Text(status.name, "bold"))
    ring.add_row("state", state_text(status.state))
    ring.add_row("epoch", str(status.epoch))
    ring.add_row("writer", f"pid {status.writer_pid}, since {time_text(status.writer_since_ns)}")
    ring.add_row("sequence", f"{status.sequence:,}  {rate_text(_ring_rate(now, before))}")
    ring.add_row("slots", used_text(status.used_slots, status.slots, f"{status.slots:,}"))
    capacity = size_text(status.capacity_bytes)
    ring.add_row("bytes", used_text(status.used_bytes, status.capacity_bytes, capacity))
    connection = state.connection(status)
    if connection is not None:
        _add_connection(ring, connection)
    parts: list[RenderableType] = [ring, Text()]
    if status.readers:
        parts.append(_readers_table(now, before, wide=console.width >= _WIDE))
    else:
        parts.append("no readers")
    choosers = [reader for reader in status.readers if reader.topics is not None]
    if choosers:
        parts += [Text(), _choosers_table(choosers)]
    if status.groups:
        parts += [Text(), groups_table(list(status.groups), {})]
    if now.uplink is not None and now.uplink.senders:
        parts += [Text(), _senders_table(now.uplink)]
    wide = console.width >= _WIDE
    for table in served_tables(now.gateways, now.queues, status.sequence, wide=wide):
        parts += [Text(), table]
    return Group(*parts)


def _add_connection(ring: Table, connection: state.ConnectionState) -> None:
    age = timedelta(seconds=max(0, time.time_ns() - connection.since_ns) // 10**9)
    rtt = "not measured" if connection.rtt_ns is None else f"{connection.rtt_ns / 1e6:,.2f} ms"
    ring.add_row(
        "connection", f"{connection.phase} for {age}, since {time_text(connection.since_ns)}"
    )
    ring.add_row("url", Text(visible(connection.url), overflow="fold"))
    ring.add_row("round trip", rtt)
    ring.add_row("received", f"{connection.received:,}")
    ring.add_row("sent", f"{connection.sent:,}")
    ring.add_row("reconnects", f"{connection.reconnects:,}")
    if connection.request_id is not None:
        ring.add_row("answers dropped", f"{connection.answers_dropped:,}")
    last_error = "none" if connection.last_error is None else visible(connection.last_error)
    ring.add_row("last error", Text(last_error, overflow="fold"))


def _readers_table(now: Snapshot, before: Snapshot | None, *, wide: bool) -> Table:
    """The readers; a narrow table leaves out what follows from other columns."""
    wide_heads = ("of the ring", ">lag bytes") if wide else ()
    heads = (">slot", ">pid", "~label", "policy", "state", ">cursor", ">lag", *wide_heads)
    table = new_table(*heads, ">rate", ">lost", "waiting")
    for reader in now.status.readers:
        share = bar(reader.lag / now.status.slots)
        lags: list[str | Text] = [f"{reader.lag:,}"]
        lags += [share, size_text(reader.lag_bytes)] if wide else []
        if _reads_nothing(reader, now.gateways):
            lags = [_NOT_BEHIND] * len(lags)
        table.add_row(
            str(reader.slot),
            str(reader.pid),
            visible(reader.label),
            reader.policy,
            state_text(reader.state),
            f"{reader.cursor:,}",
            *lags,
            rate_text(_reader_rate(reader, now, before)),
            Text(f"{reader.lost:,}", "red" if reader.lost else ""),
            "yes" if reader.waiting else "no",
        )
    return table


def _reads_nothing(reader: shm.ReaderStatus, gateways: Sequence[GatewayStatus]) -> bool:
    """Does it only say which topics are wanted, and hold nothing? Then it is not behind, wherever
    its cursor is. A gateway has such a reader for its clients; all others of it are lossless."""
    if reader.policy != "lossy":
        return False
    wants_nothing = reader.topics == () and not reader.others
    return wants_nothing or reader.pid in [gateway.pid for gateway in gateways]


def _choosers_table(readers: list[shm.ReaderStatus]) -> Table:
    """What the readers want that do not want everything."""
    table = new_table(">slot", "~label", ">received", ">skipped", "others", "~topics")
    for reader in readers:
        topics = reader.topics or ()
        shown = [*map(visible, topics[:_TOPICS_SHOWN])]
        if len(topics) > len(shown):
            shown.append(f"and {len(topics) - len(shown):,} more")
        table.add_row(
            str(reader.slot),
            visible(reader.label),
            f"{reader.received:,}",
            f"{reader.skipped:,}",
            "yes" if reader.others else "no",
            ", ".join(shown) or "none",
        )
    return table


def _senders_table(uplink: mpsc.UplinkStatus) -> Table:
    table = new_table(
        ">lane",
        ">pid",
        "~label",
        "state",
        ">sent",
        ">pending",
        ">bytes",
        ">rejected",
        ">unconfirmed",
    )
    for sender in uplink.senders:
        table.add_row(
            str(sender.lane),
            str(sender.pid),
            visible(sender.label),
            state_text(sender.state),
            f"{sender.sent:,}",
            f"{sender.pending:,}",
            size_text(sender.pending_bytes),
            Text(f"{sender.rejected:,}", "red" if sender.rejected else ""),
            Text(f"{sender.unconfirmed:,}", "red" if sender.unconfirmed else ""),
        )
    return table


def _ring_rate(now: Snapshot, before: Snapshot | None) -> float | None:
    """Messages per second; None without an earlier snapshot of this very ring."""
    if before is None or before.status.created_ns != now.status.created_ns:
        return None
    return (now.status.sequence - before.status.sequence) / (now.at - before.at)


def _reader_rate(reader: shm.ReaderStatus, now: Snapshot, before: Snapshot | None) -> float | None:
    """Messages per second; None without an earlier snapshot of this very reader."""
    if before is None or before.status.created_ns != now.status.created_ns:
        return None
    for earlier in before.status.readers:
        if (earlier.slot, earlier.joined_ns) == (reader.slot, reader.joined_ns):
            return (reader.received - earlier.received) / (now.at - before.at)
    return None
