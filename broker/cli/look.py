"""Commands that look at rings, and the one that removes what nobody writes.

They read the rings' own memory: nobody has to answer, so they work on a stuck process as well.
What comes from a ring (payloads, labels, URLs) is somebody else's: its control characters are made
visible before a terminal sees them.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ringcast import shm
from ringcast.shm import mpsc
from ringcast.shm.broadcast import Message, Reader

from ..worker import state

__all__ = [
    "Look",
    "Name",
    "Owner",
    "clean",
    "inspect",
    "ls",
    "new_console",
    "tail",
    "view",
    "visible",
]

_BAR_WIDTH: Final = 10
_DUMP_BYTES: Final = 64
_DUMP_LINE: Final = 16
_WIDE: Final = 120
"""Columns of a terminal that has space for every column of readers."""
_PLAIN_WIDTH: Final = 10_000
"""Columns of what is no terminal: enough to cut nothing off."""


def _complete_name(incomplete: str) -> list[tuple[str, str]]:
    rings = shm.list_rings()
    return [(ring.name, ring.state) for ring in rings if ring.name.startswith(incomplete)]


Name = Annotated[
    str, typer.Argument(help="The ring's name.", metavar="NAME", autocompletion=_complete_name)
]
Owner = Annotated[
    int | None,
    typer.Option(
        "--owner", metavar="UID", min=0, help="User id the ring belongs to, if not you or root."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# ---- ls ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Listed:
    """A line of `ls`; None where the ring can't be looked into."""

    name: str
    state: str
    size_bytes: int
    sequence: int | None
    readers: int | None
    occupancy: float | None
    phase: str | None
    detail: str


def ls(as_json: _Json = False) -> None:
    """List the rings of this machine, stale ones included."""
    listed = [_list_one(entry) for entry in shm.list_rings()]
    if as_json:
        _print_json([dataclasses.asdict(ring) for ring in listed])
        return
    if not listed:
        _say("there is no ring: `ringcast demo` or `ringcast serve` makes one")
        return
    new_console().print(_listing(listed))
    if any(ring.state != "open" for ring in listed):
        _say("`ringcast clean` removes what nobody writes")


def _list_one(entry: shm.RingEntry) -> _Listed:
    none = _Listed(entry.name, entry.state, entry.size_bytes, None, None, None, None, entry.detail)
    if not _can_be_looked_into(entry):
        return none
    try:
        status = shm.status(entry.name)
    except shm.RingError as error:  # it went since it was listed
        return dataclasses.replace(none, detail=str(error))
    connection = state.connection(status)
    return dataclasses.replace(
        none,
        state=status.state,
        sequence=status.sequence,
        readers=len(status.readers),
        occupancy=status.occupancy,
        phase=None if connection is None else str(connection.phase),
    )


def _can_be_looked_into(entry: shm.RingEntry) -> bool:
    return entry.state not in ("incomplete", "invalid")


def _listing(listed: list[_Listed]) -> Table:
    table = _table("name", "state", ">size", ">sequence", ">readers", "occupancy", "~connection")
    for ring in listed:
        table.add_row(
            ring.name,
            _state_text(ring.state),
            _size(ring.size_bytes),
            "" if ring.sequence is None else f"{ring.sequence:,}",
            "" if ring.readers is None else str(ring.readers),
            "" if ring.occupancy is None else _bar(ring.occupancy),
            visible(ring.detail or ring.phase or ""),
        )
    return table


# ---- inspect -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """A ring and its uplink at one moment; `at` is seconds of the monotonic clock."""

    status: shm.RingStatus
    uplink: mpsc.UplinkStatus | None
    at: float

    @classmethod
    def now(cls, status: shm.RingStatus, owner: int | None = None) -> Look:
        """A look that was taken just now, and the uplink of that name, if there is one."""
        try:
            uplink = mpsc.status(status.name, owner=owner)
        except shm.RingError:  # a ring without one, or one that is just being removed
            uplink = None
        return cls(status, uplink, time.monotonic())


def inspect(
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0.01, help="Seconds between looks; rates are of them.")
    ] = 0.5,
    as_json: _Json = False,
    owner: Owner = None,
) -> None:
    """Show one ring: how full it is, its connection, its readers."""
    if not watch:
        first = _look(name, owner)
        if as_json:
            _print_json(_as_json(first))
            return
        time.sleep(interval)
        console = new_console()
        console.print(view(console, _look(name, owner), first))
        return
    if as_json:
        for look in _looks(name, owner, interval):
            _print_json(_as_json(look))
    else:
        _watch(name, owner, interval)
    _say(f"ring {name!r} is gone")


def _watch(name: str, owner: int | None, interval: float) -> None:
    console = new_console()
    before: Look | None = None
    if not console.is_terminal:
        for look in _looks(name, owner, interval):
            console.print(view(console, look, before))
            before = look
        return
    with Live(console=console, auto_refresh=False) as live:
        for look in _looks(name, owner, interval):
            live.update(view(console, look, before), refresh=True)
            before = look


def _look(name: str, owner: int | None) -> Look:
    try:
        status = shm.status(name, owner=owner)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    return Look.now(status, owner)


def _looks(name: str, owner: int | None, interval: float) -> Iterator[Look]:
    """Look every `interval` seconds until the ring is gone; it must be there at first."""
    yield _look(name, owner)
    while True:
        time.sleep(interval)
        try:
            look = _look(name, owner)
        except shm.RingNotFound:
            return
        yield look


def _as_json(look: Look) -> dict[str, Any]:
    status = look.status
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
        "uplink": _uplink_as_json(look.uplink),
        "connection": _connection_as_json(state.connection(status)),
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
        "waiting": reader.waiting,
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
    }


def view(console: Console, look: Look, before: Look | None) -> RenderableType:
    """A ring for people; the rates are of the time since the look before."""
    status = look.status
    ring = Table.grid(padding=(0, 2))
    ring.add_row(Text("ring", "bold"), Text(status.name, "bold"))
    ring.add_row("state", _state_text(status.state))
    ring.add_row("epoch", str(status.epoch))
    ring.add_row("writer", f"pid {status.writer_pid}, since {_time(status.writer_since_ns)}")
    ring.add_row("sequence", f"{status.sequence:,}  {_rate(_ring_rate(look, before))}")
    ring.add_row("slots", _used(status.used_slots, status.slots, f"{status.slots:,}"))
    capacity = _size(status.capacity_bytes)
    ring.add_row("bytes", _used(status.used_bytes, status.capacity_bytes, capacity))
    connection = state.connection(status)
    if connection is not None:
        _add_connection(ring, connection)
    parts: list[RenderableType] = [ring, Text()]
    if status.readers:
        parts.append(_readers(look, before, wide=console.width >= _WIDE))
    else:
        parts.append("no readers")
    if look.uplink is not None and look.uplink.senders:
        parts += [Text(), _senders(look.uplink)]
    return Group(*parts)


def _add_connection(ring: Table, connection: state.ConnectionState) -> None:
    age = timedelta(seconds=max(0, time.time_ns() - connection.since_ns) // 10**9)
    rtt = "not measured" if connection.rtt_ns is None else f"{connection.rtt_ns / 1e6:,.2f} ms"
    ring.add_row("connection", f"{connection.phase} for {age}, since {_time(connection.since_ns)}")
    ring.add_row("url", Text(visible(connection.url), overflow="fold"))
    ring.add_row("round trip", rtt)
    ring.add_row("received", f"{connection.received:,}")
    ring.add_row("sent", f"{connection.sent:,}")
    ring.add_row("reconnects", f"{connection.reconnects:,}")
    last_error = "none" if connection.last_error is None else visible(connection.last_error)
    ring.add_row("last error", Text(last_error, overflow="fold"))


def _readers(look: Look, before: Look | None, *, wide: bool) -> Table:
    """The table of readers; what can be told from other columns goes where there is no space."""
    bars = ("of the ring", ">lag bytes") if wide else ()
    heads = (">slot", ">pid", "~label", "policy", "state", ">cursor", ">lag", *bars)
    table = _table(*heads, ">rate", ">lost", "waiting")
    for reader in look.status.readers:
        bar = (_bar(reader.lag / look.status.slots), _size(reader.lag_bytes)) if wide else ()
        table.add_row(
            str(reader.slot),
            str(reader.pid),
            visible(reader.label),
            reader.policy,
            _state_text(reader.state),
            f"{reader.cursor:,}",
            f"{reader.lag:,}",
            *bar,
            _rate(_reader_rate(reader, look, before)),
            Text(f"{reader.lost:,}", "red" if reader.lost else ""),
            "yes" if reader.waiting else "no",
        )
    return table


def _senders(uplink: mpsc.UplinkStatus) -> Table:
    table = _table(
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
            _state_text(sender.state),
            f"{sender.sent:,}",
            f"{sender.pending:,}",
            _size(sender.pending_bytes),
            Text(f"{sender.rejected:,}", "red" if sender.rejected else ""),
            Text(f"{sender.unconfirmed:,}", "red" if sender.unconfirmed else ""),
        )
    return table


def _ring_rate(look: Look, before: Look | None) -> float | None:
    """Messages a second; None without an earlier look at this very ring."""
    if before is None or before.status.created_ns != look.status.created_ns:
        return None
    return (look.status.sequence - before.status.sequence) / (look.at - before.at)


def _reader_rate(reader: shm.ReaderStatus, look: Look, before: Look | None) -> float | None:
    """Messages a second; None without an earlier look at this very reader."""
    if before is None or before.status.created_ns != look.status.created_ns:
        return None
    for earlier in before.status.readers:
        if (earlier.slot, earlier.pid, earlier.joined_ns) == (
            reader.slot,
            reader.pid,
            reader.joined_ns,
        ):
            return (reader.received - earlier.received) / (look.at - before.at)
    return None


# ---- tail ----------------------------------------------------------------------------------


def tail(
    name: Name,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=0,
            help="Begin with the last N messages of the ring, and stop after them.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    topics: Annotated[
        list[int] | None,
        typer.Option("--topic", metavar="T", min=0, help="Print only this topic; repeatable."),
    ] = None,
    follow: Annotated[
        bool | None,
        typer.Option("--follow/--no-follow", help="Go on with what comes; so without -n."),
    ] = None,
    owner: Owner = None,
) -> None:
    """Print messages as they come, until the ring ends or Ctrl-C.

    A lossy reader: it never holds the writer up, and says on stderr what it missed."""
    if follow is False and count is None:
        raise typer.BadParameter("say with -n how many messages", param_hint="--no-follow")
    status = _look(name, owner).status
    start = status.sequence if count is None else max(status.oldest, status.sequence - count)
    end = status.sequence if count is not None and not follow else None
    with Reader.attach(
        name,
        policy="lossy",
        start=start,
        wait=shm.Blocking(spin_us=0),
        label="ringcast tail",
        owner=owner,
    ) as reader:
        for message in _until(reader, start, end):
            if not topics or message.topic in topics:
                sys.stdout.write((_json_line if as_json else _lines)(message) + "\n")


def _until(reader: Reader, start: int, end: int | None) -> Iterator[Message]:
    """The messages from `start` up to `end` (None: as they come, until the ring ends). Says on
    stderr what was missed."""
    expected = start
    while end is None or expected < end:
        try:
            message = reader.read(timeout=0)
            if message is None:
                sys.stdout.flush()
                message = reader.read() if end is None else None
        except shm.RingClosed as closed:
            message = None
            _say(str(closed))
        reached = reader.cursor if message is None else message.sequence
        if end is not None:
            reached = min(reached, end)
        if reached > expected:
            _say(
                f"missed {reached - expected:,} messages from {expected} on: they were overwritten"
            )
        if message is None or reached == end:
            return
        yield message
        expected = message.sequence + 1


def _lines(message: Message) -> str:
    head = f"{message.sequence} {_time(message.time_ns)} topic {message.topic} "
    if message.kind == shm.Kind.TEXT:
        return head + _visible_text(message)
    if message.kind == shm.Kind.EVENT:
        return f"{head}EVENT {_visible_text(message)}"
    kind = "binary" if message.kind == shm.Kind.BINARY else f"kind {int(message.kind)}"
    return f"{head}{kind}, {len(message)} bytes{_dump(bytes(message))}"


def _visible_text(message: Message) -> str:
    return visible(bytes(message).decode("utf-8", "backslashreplace"))


def _dump(payload: bytes) -> str:
    """Lines of offset, hexadecimal and ASCII; each starts with a line break."""
    text = ""
    for offset in range(0, min(len(payload), _DUMP_BYTES), _DUMP_LINE):
        line = payload[offset : offset + _DUMP_LINE]
        ascii_ = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        text += f"\n    {offset:04x}  {line.hex(' '):<{3 * _DUMP_LINE - 1}}  {ascii_}"
    if len(payload) > _DUMP_BYTES:
        text += f"\n    … {len(payload) - _DUMP_BYTES} bytes more: --json has them"
    return text


def _json_line(message: Message) -> str:
    known = isinstance(message.kind, shm.Kind)
    record: dict[str, Any] = {
        "sequence": message.sequence,
        "time_ns": message.time_ns,
        "kind": shm.Kind(message.kind).name.lower() if known else message.kind,
        "topic": message.topic,
        "epoch": message.epoch,
        "gap": message.gap,
    }
    payload = bytes(message)
    text = None
    if message.kind in (shm.Kind.TEXT, shm.Kind.EVENT):
        text = _utf8(payload)
    if text is None:
        record["base64"] = base64.b64encode(payload).decode("ascii")
    else:
        record["text"] = text
    return json.dumps(record)


def _utf8(payload: bytes) -> str | None:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return None


# ---- clean ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What `clean` did with one ring, and if it was left, why."""

    name: str
    state: str
    outcome: Literal["removed", "removable", "left"]
    reason: str | None


def clean(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Rings; all by default.", metavar="[NAME]...", autocompletion=_complete_name
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Don't ask, even where readers are attached.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Remove the rings that nobody writes: ended, or left by the killed.

    A ring with a living writer is left. Asks before it removes one that can be resumed and that
    living readers are attached to."""
    rings = {entry.name: entry for entry in shm.list_rings()}
    chosen = [rings.get(name) or _missing(name) for name in names or rings]
    if not names and not as_json:
        _list_stale(chosen)
    ask = not yes and not as_json and sys.stdin.isatty()
    outcomes = []
    for entry in chosen:
        outcome = _clean_one(entry, dry_run=dry_run, yes=yes, ask=ask)
        outcomes.append(outcome)
        if not as_json:
            _print_outcome(outcome)
    if as_json:
        _print_json([dataclasses.asdict(outcome) for outcome in outcomes])
    if any(o.outcome == "left" and (names or o.state != "open") for o in outcomes):
        raise typer.Exit(1)


def _missing(name: str) -> shm.RingEntry:
    return shm.RingEntry(name, "missing", 0, f"there is no ring {name!r}: see `ringcast ls`")


def _list_stale(entries: list[shm.RingEntry]) -> None:
    stale = [_list_one(entry) for entry in entries if entry.state != "open"]
    if stale:
        new_console().print(_listing(stale))
    else:
        _say("there is nothing to remove")


def _clean_one(entry: shm.RingEntry, *, dry_run: bool, yes: bool, ask: bool) -> _Outcome:
    def outcome(
        what: Literal["removed", "removable", "left"], reason: str | None = None
    ) -> _Outcome:
        return _Outcome(entry.name, entry.state, what, reason)

    if entry.state == "missing":
        return outcome("left", entry.detail)
    if entry.state == "open":
        return outcome("left", "it has a living writer: stop that process first")
    try:
        readers = _living_readers(entry.name) if entry.state == "orphaned" else 0
        attached = f"living readers are attached to it ({readers}) and its writer can be resumed"
        if dry_run:
            return outcome("removable", attached if readers else None)
        if readers and not yes:
            if not ask:
                return outcome("left", f"{attached}: --yes removes it all the same")
            if not _confirm(f"{entry.name}: {attached}. Remove it?"):
                return outcome("left", attached)
        shm.unlink(entry.name)
    except shm.RingNotFound:  # somebody else was faster
        return outcome("removed")
    except shm.RingError as error:
        return outcome("left", str(error))
    return outcome("removed")


def _confirm(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:  # Ctrl-C or Ctrl-D instead of an answer
        raise typer.Exit(130) from None


def _living_readers(name: str) -> int:
    return sum(reader.state != "dead" for reader in shm.status(name).readers)


def _print_outcome(outcome: _Outcome) -> None:
    verb = {"removed": "removed", "removable": "would remove", "left": "left"}[outcome.outcome]
    reason = f": {visible(outcome.reason)}" if outcome.reason else ""
    typer.echo(f"{verb} {visible(outcome.name)} ({outcome.state}){reason}")


# ---- what they share -----------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` with every character that a terminal doesn't print, or that steers it, escaped as in
    Python."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _say(text: str) -> None:
    """Tell the person, not the program that reads our output."""
    typer.echo(f"ringcast: {visible(text)}", err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value))


def new_console() -> Console:
    """Where to print for a person, or plainly for a program."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def _table(*heads: str) -> Table:
    """A table with these heads: ">..." is aligned to the right, "~..." takes several lines where
    the terminal is too narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(
            head.lstrip(">~"),
            justify="right" if head.startswith(">") else "left",
            overflow="fold" if head.startswith("~") else "ellipsis",
            no_wrap=not head.startswith("~"),
        )
    return table


_STYLES: Final = {
    "open": "green",
    "active": "green",
    "joining": "green",
    "demoting": "yellow",
    "demoted": "yellow",
    "orphaned": "yellow",
    "closed": "dim",
}


def _state_text(name: str) -> Text:
    return Text(name, _STYLES.get(name, "red"))


def _bar(share: float) -> Text:
    full = min(_BAR_WIDTH, math.ceil(share * _BAR_WIDTH))
    style = "green" if share < 0.5 else "yellow" if share < 0.9 else "red"
    return Text(f"{'█' * full}{'░' * (_BAR_WIDTH - full)} {share:4.0%}", style)


def _used(used: int, whole: int, whole_text: str) -> Text:
    return _bar(used / whole).append(f"  {used:,} of {whole_text}")


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}/s"


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:,.0f} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def _time(time_ns: int) -> str:
    """Unix time as ISO 8601, UTC, microseconds."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9 // 1000:06d}Z"
