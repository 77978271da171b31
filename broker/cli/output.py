"""What the commands share: printing for people and for programs, and arguments that name a ring.

What comes from a ring or a server (payloads, labels, URLs) is somebody else's text: `visible`
escapes its control characters before a terminal sees them.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringcast import shm

__all__ = [
    "AsJson",
    "Name",
    "Owner",
    "age_text",
    "bar",
    "checked_name",
    "complete_name",
    "fail",
    "new_console",
    "new_table",
    "print_json",
    "print_notice",
    "rate_text",
    "size_text",
    "state_text",
    "time_text",
    "used_text",
    "visible",
]

_BAR_WIDTH: Final = 10
_PLAIN_WIDTH: Final = 10_000
"""Columns of what is not a terminal: enough to cut nothing off."""
_HALF_FULL: Final = 0.5
_NEARLY_FULL: Final = 0.9
_MINUTE: Final = 60
_HOUR: Final = 3600
"""In seconds."""

_STYLES: Final = {
    "open": "green",
    "active": "green",
    "joining": "green",
    "demoting": "yellow",
    "demoted": "yellow",
    "orphaned": "yellow",
    "closed": "dim",
    "subscribed": "green",
    "wanted": "yellow",
    "pending": "yellow",
}


# ---- arguments and options -------------------------------------------------------------------


def complete_name(incomplete: str) -> list[tuple[str, str]]:
    """The rings whose names begin so, with their states, for the shell."""
    rings = shm.list_rings()
    return [(ring.name, ring.state) for ring in rings if ring.name.startswith(incomplete)]


def checked_name(name: str, what: str = "ring", hint: str = "NAME") -> str:
    """A name that a ring can have, or what else goes by the same rule.

    Raises:
        typer.BadParameter: it can't; `hint` is where it was given.
    """
    try:
        return shm.names.check_name(name, what)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error


def _ring_name(name: str) -> str:
    return checked_name(name)


Name = Annotated[
    str,
    typer.Argument(
        help="The ring's name.",
        metavar="NAME",
        autocompletion=complete_name,
        callback=_ring_name,
    ),
]
Owner = Annotated[
    int | None,
    typer.Option(
        "--owner", metavar="UID", min=0, help="User id the ring belongs to, if not you or root."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# ---- printing --------------------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` with every character that a terminal doesn't print, or that steers it, escaped as in
    Python."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def print_notice(text: str) -> None:
    """Print a line for the person, not for the program that reads the output."""
    typer.echo(f"ringcast: {visible(text)}", err=True)


def print_json(value: Any) -> None:
    """Print one line of JSON."""
    typer.echo(json.dumps(value))


def fail(command: str, why: object) -> NoReturn:
    """End a command with exit code 1 and one line that says why."""
    typer.echo(f"ringcast {command}: {visible(str(why))}", err=True)
    raise typer.Exit(1)


def new_console() -> Console:
    """Where to print for a person, or plainly for a program."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def new_table(*heads: str) -> Table:
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


# ---- values as text --------------------------------------------------------------------------


def state_text(state: str) -> Text:
    """The state of a ring, reader, sender or topic, in its colour."""
    return Text(state, _STYLES.get(state, "red"))


def bar(share: float) -> Text:
    """How full something is, 0..1, as a bar and in percent."""
    full = min(_BAR_WIDTH, math.ceil(share * _BAR_WIDTH))
    style = "green" if share < _HALF_FULL else "yellow" if share < _NEARLY_FULL else "red"
    return Text(f"{'█' * full}{'░' * (_BAR_WIDTH - full)} {share:4.0%}", style)


def used_text(used: int, whole: int, whole_text: str) -> Text:
    """How much of something is used, as a bar and in numbers."""
    return bar(used / whole).append(f"  {used:,} of {whole_text}")


def rate_text(per_second: float | None) -> str:
    """A rate; nothing if it is not known."""
    return "" if per_second is None else f"{per_second:,.0f}/s"


def size_text(size_bytes: int) -> str:
    """A size in the largest unit that leaves a number of 1 or more."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:,.0f} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def age_text(age_ns: int) -> str:
    """How long ago something was, in the largest unit that leaves a number of 1 or more."""
    age = max(0, age_ns) / 1e9
    if age < _MINUTE:
        return f"{age:,.1f} s"
    if age < _HOUR:
        return f"{age // _MINUTE:.0f} min"
    return f"{age // _HOUR:,.0f} h"


def time_text(time_ns: int) -> str:
    """Unix time as ISO 8601, UTC, microseconds."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9 // 1000:06d}Z"
