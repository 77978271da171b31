"""``ringcast venues``: the exchanges whose topics a manager can ask for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..topics.venue import Venue
from ..topics.venue_file import VenueError, list_venues, load_venue
from .output import AsJson, fail, new_console, new_table, print_json, visible

__all__ = ["venues"]


def _complete(incomplete: str) -> list[str]:
    return [name for name in list_venues() if name.startswith(incomplete)]


def venues(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One venue, or the path of a venue file; all by default.",
            metavar="NAME",
            autocompletion=_complete,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the venues that come with ringcast, or show what one does.

    A venue says how an exchange's topics are named, found in messages and asked for. A file of your
    own is checked, too."""
    try:
        found = [load_venue(each) for each in ([name] if name is not None else list_venues())]
    except VenueError as error:
        fail("venues", error)
    if as_json:
        described = [*map(_described, found)]
        print_json(described if name is None else described[0])
    elif name is None:
        _list(found)
    else:
        _show(found[0])


def _list(found: list[Venue]) -> None:
    table = new_table("venue", "~topics, such as", "~url", "~snapshots")
    for venue in found:
        table.add_row(
            venue.name,
            ", ".join(naming.example for naming in venue.by_use),
            venue.url or "",
            ", ".join(_snapshots(venue)),
        )
    new_console().print(table)


def _show(venue: Venue) -> None:
    table = new_table("", "~")
    for key, value in _described(venue).items():
        for text in value if isinstance(value, list) else [value]:
            table.add_row(key, visible(_text(text)))
            key = ""  # noqa: PLW2901 - once per key
    new_console().print(table)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {part}" for key, part in value.items())
    return str(value)


def _snapshots(venue: Venue) -> list[str]:
    return [glob for r in venue.snapshots if r.snapshot.kind != "none" for glob in r.globs]


def _described(venue: Venue) -> dict[str, Any]:
    """A venue's essentials, as JSON has them."""
    return {
        "name": venue.name,
        "about": venue.about,
        "documentation": venue.documentation,
        "url": venue.url,
        "names": [{"form": n.form.text, "example": n.example} for n in venue.by_use],
        "topic": [*venue.topic],
        "key": [*venue.key],
        "control": [*venue.control],
        "confirmation": str(venue.confirmation),
        "topics_per_request": venue.topics_per_request,
        "topics_per_connection": venue.topics_per_connection,
        "messages_per_second": venue.messages_per_second,
        "burst": venue.burst,
        "answer_timeout": venue.answer_timeout,
        "heartbeat": None
        if venue.heartbeat is None
        else {"send": venue.heartbeat.send, "every": venue.heartbeat.every},
        "snapshots": [
            {"names": [*r.globs], "kind": r.snapshot.kind, "every": r.snapshot.every}
            for r in venue.snapshots
        ],
        "request_id": venue.request_id,
        "answers_clients": venue.clients.subscribed is not None,
    }
