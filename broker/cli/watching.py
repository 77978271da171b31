"""Looking again and again: what the commands with --watch share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from ringcast import shm

from .output import new_console

__all__ = ["Interval", "Watch", "look_again", "show_each"]

T = TypeVar("T")

Watch = Annotated[bool, typer.Option("--watch", help="Look again until Ctrl-C.")]
Interval = Annotated[
    float,
    typer.Option(metavar="S", min=0.01, help="Seconds between looks, which rates are over."),
]


def look_again(look: Callable[[], T], interval: float) -> Iterator[T]:
    """One look every `interval` seconds until the ring is gone; it must be there at first."""
    yield look()
    while True:
        time.sleep(interval)
        try:
            found = look()
        except shm.RingNotFound:
            return
        yield found


def show_each(looks: Iterable[T], view: Callable[[Console, T, T | None], RenderableType]) -> None:
    """Show each look: in one place on a terminal, one after the other elsewhere. `view` gets the
    look and the one before."""
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
