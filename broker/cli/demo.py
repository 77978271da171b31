"""``ringcast demo``: the whole of it on this machine, with a report at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ringcast import shm

from ..exchange.captures import CaptureError
from ..exchange.demo import DemoError, Report, Script, default_name, run
from ..manager import ManagerError
from . import look

__all__ = ["demo"]


def demo(
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long.")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers.")] = 3,
    capture: Annotated[
        Path | None, typer.Option(help="Play this capture instead of made-up market data.")
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Made-up messages a second.")] = 20_000.0,
    speed: Annotated[float, typer.Option(min=0.001, help="Pace of the capture.")] = 1.0,
    flood: Annotated[bool, typer.Option("--flood", help="As fast as it goes.")] = False,
    name: Annotated[str | None, typer.Option(help="The ring's name, to look at meanwhile.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show it at work: a WebSocket server, a manager, some workers, each a process of its own.

    Every message is checked in every worker, and its time from the manager's receiving it to the
    worker's having it is measured. Exit code 1 if anything was lost, changed or out of order."""
    script = Script(seconds, capture, rate, speed, flood)
    console = look.new_console()
    try:
        with _picture(console, shown=console.is_terminal and not as_json) as watch:
            report = run(name or default_name(), script, workers, watch)
    except (DemoError, ManagerError, CaptureError, OSError, ValueError) as error:
        typer.echo(f"ringcast demo: {look.visible(str(error))}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(report), "ok": report.ok}))
    else:
        _print(console, report)
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _picture(console: Console, *, shown: bool) -> Iterator[Callable[[shm.RingStatus], None]]:
    """Where the ring's status goes each time it is looked at."""
    if not shown:
        yield lambda _status: None
        return
    before: look.Look | None = None
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(status: shm.RingStatus) -> None:
            nonlocal before
            now = look.Look.now(status)
            live.update(look.view(console, now, before), refresh=True)
            before = now

        yield show


def _print(console: Console, report: Report) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("worker", "received", "delivered", "lost", "order and checksums"):
        table.add_column(head, justify="left" if head[0] in "wo" else "right")
    for head in ("p50 µs", "p99 µs", "p99.9 µs"):
        table.add_column(head, justify="right")
    for worker in report.workers:
        latency = worker.latency_us
        times = (latency.p50, latency.p99, latency.p999) if latency is not None else ()
        table.add_row(
            worker.label,
            f"{worker.received:,}",
            f"{worker.delivered:,}",
            f"{worker.lost:,}",
            "verified" if worker.whole else "WRONG",
            *(f"{microseconds:,.1f}" for microseconds in times),
        )
    rate = report.said / report.seconds
    console.print(
        f"{report.said:,} messages, {report.payload_bytes / 1e6:,.1f} MB in {report.seconds:.1f} s"
        f" ({rate:,.0f}/s), one connection, written once, {len(report.workers)} workers"
    )
    console.print(f"the ring was at most {report.occupancy:.1%} full")
    console.print(table)
    console.print(
        "every message came to every worker, whole and in order"
        if report.ok
        else "NOT every message came whole and in order"
    )
