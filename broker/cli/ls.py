"""``ringcast ls``: the rings of this machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rich.table import Table

from ringcast import shm

from ..gateway.roster import list_gateways
from ..worker import state
from .output import (
    AsJson,
    bar,
    new_console,
    new_table,
    print_json,
    print_notice,
    size_text,
    state_text,
    visible,
)

__all__ = ["ListedRing", "list_ring", "ls", "ring_table"]


@dataclass(frozen=True, slots=True)
class ListedRing:
    """A line of `ls`; None where the ring can't be read, and for clients where there is no
    gateway."""

    name: str
    state: str
    size_bytes: int
    sequence: int | None
    readers: int | None
    occupancy: float | None
    phase: str | None
    detail: str
    queues: tuple[str, ...]
    clients: int | None


def ls(as_json: AsJson = False) -> None:
    """List the rings of this machine, stale ones included."""
    listed = [list_ring(entry) for entry in shm.list_rings()]
    if as_json:
        print_json([dataclasses.asdict(ring) for ring in listed])
        return
    if not listed:
        print_notice("there is no ring: `ringcast demo` or `ringcast serve` makes one")
        return
    new_console().print(ring_table(listed))
    if any(ring.state != "open" for ring in listed):
        print_notice(
            "`ringcast clean` removes rings without a writer; a manager of its name resumes an"
            " orphaned one"
        )


def list_ring(entry: shm.RingEntry) -> ListedRing:
    """What `ls` shows of a ring."""
    unread = ListedRing(
        name=entry.name,
        state=entry.state,
        size_bytes=entry.size_bytes,
        sequence=None,
        readers=None,
        occupancy=None,
        phase=None,
        detail=entry.detail,
        queues=entry.queues,
        clients=None,
    )
    if not _is_readable(entry):
        return unread
    try:
        status = shm.status(entry.name)
    except shm.RingError as error:  # it was removed since it was listed
        return dataclasses.replace(unread, detail=str(error))
    connection = state.connection(status)
    gateways = list_gateways(entry.name)
    return dataclasses.replace(
        unread,
        state=status.state,
        sequence=status.sequence,
        readers=len(status.readers),
        occupancy=status.occupancy,
        phase=None if connection is None else str(connection.phase),
        clients=sum(each.client_count for each in gateways) if gateways else None,
    )


def _is_readable(entry: shm.RingEntry) -> bool:
    return entry.state not in ("incomplete", "invalid")


def ring_table(listed: list[ListedRing]) -> Table:
    """A table of rings for people; the columns of clients and of message queues only if there are
    any."""
    heads = ["name", "state", ">size", ">sequence", ">readers", "occupancy", "~connection"]
    has_gateways = any(ring.clients is not None for ring in listed)
    has_queues = any(ring.queues for ring in listed)
    table = new_table(*heads, *[">clients"] * has_gateways, *["~queues"] * has_queues)
    for ring in listed:
        table.add_row(
            ring.name,
            state_text(ring.state),
            size_text(ring.size_bytes),
            "" if ring.sequence is None else f"{ring.sequence:,}",
            "" if ring.readers is None else str(ring.readers),
            "" if ring.occupancy is None else bar(ring.occupancy),
            visible(ring.detail or ring.phase or ""),
            *["" if ring.clients is None else f"{ring.clients:,}"] * has_gateways,
            *[visible(" ".join(ring.queues))] * has_queues,
        )
    return table
