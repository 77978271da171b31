"""``ringcast group``: a ring's work groups, their members, and what was set aside.

It reads the ring's own memory. Nobody has to answer, so it works without a manager, and on a stuck
member, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from ringcast import shm
from ringcast.shm import group as groups

from .output import (
    AsJson,
    Name,
    Owner,
    new_table,
    print_json,
    print_notice,
    rate_text,
    state_text,
    time_text,
    visible,
)
from .watching import Interval, Watch, show, watch_ring

__all__ = ["group", "group_as_json", "groups_table"]


@dataclass(frozen=True, slots=True)
class _Look:
    """A ring's groups at one moment; `at` is seconds of the monotonic clock.

    Attributes:
        status: the ring's.
        shown: those of its groups that are shown.
        topics: names of topics by id, for what was set aside.
        at: seconds of the monotonic clock.
    """

    status: shm.RingStatus
    shown: list[shm.GroupStatus]
    topics: dict[int, str]
    at: float


def group(
    name: Name,
    which: Annotated[
        str | None, typer.Argument(metavar="GROUP", help="One group; all by default.")
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Remove the group: what it has not done is nobody's any more."
        ),
    ] = False,
    watch: Watch = False,
    interval: Interval = 0.5,
    as_json: AsJson = False,
    owner: Owner = None,
) -> None:
    """List a ring's work groups: members, floor, lag, in flight, redelivered, set aside.

    The floor is the oldest message that is not done: the group holds the ring there. What was
    delivered too often is set aside; the newest of it is listed with the processes that had it."""
    if remove:
        _remove(name, which, owner)
        return

    def look() -> _Look:
        return _look(name, which, owner)

    if watch:
        watch_ring(name, look, interval, _view, _as_json if as_json else None)
        return
    first = look()
    if as_json:
        print_json(_as_json(first))
    elif not first.shown:
        print_notice(f"ring {name!r} has no work groups: workers make them with attach(group=)")
    else:
        time.sleep(interval)
        show(_view, look(), first)


def _remove(name: str, which: str | None, owner: int | None) -> None:
    if which is None:
        raise typer.BadParameter("name the group that is to go", param_hint="GROUP")
    groups.remove(name, which, owner=owner)
    print_notice(f"removed group {which!r} of ring {name!r}")


def _look(name: str, which: str | None, owner: int | None) -> _Look:
    status = shm.status(name, owner=owner)
    shown = [found for found in status.groups if which in (None, found.name)]
    if which is not None and not shown:
        raise shm.RingNotFound(f"ring {name!r} has no group {which!r}")
    topics = {}
    if any(found.newest_set_aside for found in shown):
        topics = {topic.topic: topic.name for topic in shm.list_topics(name, owner=owner)}
    return _Look(status, shown, topics, time.monotonic())


# ---- for programs ----------------------------------------------------------------------------


def _as_json(now: _Look, _before: _Look | None = None) -> list[dict[str, Any]]:
    return [group_as_json(found) for found in now.shown]


def group_as_json(found: shm.GroupStatus) -> dict[str, Any]:
    """One group as `ringcast group --json` and `inspect --json` have it."""
    return {
        "name": found.name,
        "balance": found.balance,
        "state": found.state,
        "members": found.members,
        "floor": found.floor,
        "lag": found.lag,
        "in_flight": found.in_flight,
        "returned": found.returned,
        "redelivered": found.redelivered,
        "set_aside": found.set_aside,
        "newest_set_aside": [
            {
                "sequence": record.sequence,
                "topic": record.topic,
                "time_ns": record.time_ns,
                "set_aside_ns": record.set_aside_ns,
                "deliveries": record.deliveries,
                "pids": record.pids,
            }
            for record in found.newest_set_aside
        ],
        "lost": found.lost,
        "voided": found.voided,
        "holder": found.holder,
        "topics": found.topics,
        "max_deliveries": found.max_deliveries,
    }


# ---- for people ------------------------------------------------------------------------------


def groups_table(shown: list[shm.GroupStatus], rates: dict[str, float | None]) -> RenderableType:
    """The groups of a ring; `rates`: messages done per second, by name."""
    table = new_table(
        "~group",
        "balance",
        "state",
        ">members",
        ">floor",
        ">lag",
        ">in flight",
        ">done",
        ">redelivered",
        ">set aside",
        ">lost",
        "waits for",
    )
    for found in shown:
        table.add_row(
            visible(found.name),
            found.balance,
            state_text(found.state),
            str(len(found.members)),
            f"{found.floor:,}",
            f"{found.lag:,}",
            f"{found.in_flight:,}",
            rate_text(rates.get(found.name)),
            f"{found.redelivered:,}",
            Text(f"{found.set_aside:,}", "red" if found.set_aside else ""),
            Text(f"{found.lost:,}", "red" if found.lost else ""),
            "" if found.holder is None or not found.lag else f"slot {found.holder}",
        )
    return table


def _view(_console: Console, now: _Look, before: _Look | None) -> RenderableType:
    parts: list[RenderableType] = [groups_table(now.shown, _rates(now, before))]
    members = _members_table(now)
    if members is not None:
        parts += [Text(), members]
    aside = _aside_table(now)
    if aside is not None:
        parts += [Text(), aside]
    return Group(*parts)


def _rates(now: _Look, before: _Look | None) -> dict[str, float | None]:
    """Messages done per second since the look before, by group."""
    if before is None:
        return {}
    earlier = {(found.name, found.created_ns): found.floor for found in before.shown}
    return {
        found.name: (found.floor - floor) / (now.at - before.at)
        for found in now.shown
        if (floor := earlier.get((found.name, found.created_ns))) is not None
    }


def _members_table(now: _Look) -> RenderableType | None:
    names = {found.name for found in now.shown}
    members = [reader for reader in now.status.readers if reader.group in names]
    if not members:
        return None
    table = new_table("~group", ">slot", ">pid", "~label", "state", ">handled", "waiting")
    for reader in members:
        table.add_row(
            visible(reader.group or ""),
            str(reader.slot),
            str(reader.pid),
            visible(reader.label),
            state_text(reader.state),
            f"{reader.received:,}",
            "yes" if reader.waiting else "no",
        )
    return table


def _aside_table(now: _Look) -> RenderableType | None:
    rows = [(found, record) for found in now.shown for record in found.newest_set_aside]
    if not rows:
        return None
    table = new_table("~set aside by", ">sequence", "~topic", "when", ">deliveries", "~processes")
    for found, record in rows:
        topic = now.topics.get(record.topic, str(record.topic) if record.topic else "")
        table.add_row(
            visible(found.name),
            f"{record.sequence:,}",
            visible(topic),
            time_text(record.set_aside_ns),
            str(record.deliveries),
            ", ".join(map(str, record.pids)) or "not known",
        )
    return table
