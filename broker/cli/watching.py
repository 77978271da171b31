"""Looking again and again: what the commands with --watch share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from ringcast import shm

from .output import new_console, print_json, print_notice

__all__ = ["Interval", "View", "Watch", "show", "watch_ring"]

T = TypeVar("T")

View = Callable[[Console, T, T | None], RenderableType]
"""How a look is shown to people: it gets the look and the one before."""

Watch = Annotated[bool, typer.Option("--watch", help="Look again until Ctrl-C.")]
Interval = Annotated[
    float,
    typer.Option(metavar="S", min=0.01, help="Seconds between looks, which rates are over."),
]


def _look_again(look: Callable[[], T], interval: float) -> Iterator[T]:
    """One look every `interval` seconds until the ring is gone; it must be there at first."""
    yield look()
    while True:
        time.sleep(interval)
        try:
            found = look()
        except shm.RingNotFound:
            return
        yield found


def show(view: View[T], now: T, before: T | None) -> None:
    """Show one look to people."""
    console = new_console()
    console.print(view(console, now, before))


def watch_ring(
    name: str,
    look: Callable[[], T],
    interval: float,
    view: View[T],
    as_json: Callable[[T, T | None], Any] | None,
) -> None:
    """Look at a ring every `interval` seconds until it is gone. `as_json` makes of a look, and the
    one before, what programs get; None: it is for people."""
    looks = _look_again(look, interval)
    if as_json is None:
        _show_each(looks, view)
    else:
        before: T | None = None
        for now in looks:
            print_json(as_json(now, before))
            before = now
    print_notice(f"ring {name!r} is gone")


def _show_each(looks: Iterable[T], view: View[T]) -> None:
    """Show each look: in one place on a terminal, one after the other elsewhere."""
    console = new_console()
    before: T | None = None
    if not console.is_terminal:
        for found in looks:
            console.print(view(console, found, before))
            before = found
        return
    with Live(console=console, auto_refresh=False) as live:
        for found in looks:
            live.update(view(console, found, before), refresh=True)
            before = found
