"""``ringcast demo``: the whole system on this machine, with a report at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from ringcast import shm

from ..exchange.captures import CaptureError
from ..exchange.demo import DemoError, Report, Scenario, default_name, run
from ..manager import ManagerError
from .inspect import Snapshot, ring_view
from .output import AsJson, fail, new_console, new_table, print_json

__all__ = ["demo"]


def demo(
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="How long to send, in seconds.")
    ] = 10.0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers.")] = 3,
    capture: Annotated[
        Path | None, typer.Option(help="Play this capture instead of made-up market data.")
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Made-up messages per second.")] = 20_000.0,
    speed: Annotated[float, typer.Option(min=0.001, help="Pace of the capture.")] = 1.0,
    flood: Annotated[bool, typer.Option("--flood", help="Send as fast as possible.")] = False,
    name: Annotated[
        str | None, typer.Option(help="The ring's name, to inspect it meanwhile.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show it at work: a WebSocket server, a manager, some workers, each in a process of its own.

    Every message is checked in every worker, and the time from when the manager received it until
    the worker had it is measured. Exit code 1 if anything was lost, changed or out of order."""
    scenario = Scenario(seconds, capture, rate, speed, flood)
    console = new_console()
    try:
        with _live_view(console, shown=console.is_terminal and not as_json) as watch:
            report = run(name or default_name(), scenario, workers, watch)
    except (DemoError, ManagerError, CaptureError, OSError, ValueError) as error:
        fail("demo", error)
    if as_json:
        print_json({**dataclasses.asdict(report), "ok": report.ok})
    else:
        _print_report(console, report)
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _live_view(console: Console, *, shown: bool) -> Iterator[Callable[[shm.RingStatus], None]]:
    """Shows the status that the returned function is called with, again and again in one place."""
    if not shown:
        yield lambda _status: None
        return
    before: Snapshot | None = None
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(status: shm.RingStatus) -> None:
            nonlocal before
            now = Snapshot.of(status)
            live.update(ring_view(console, now, before), refresh=True)
            before = now

        yield show


def _print_report(console: Console, report: Report) -> None:
    table = new_table(
        "~worker",
        ">received",
        ">delivered",
        ">lost",
        "order and checksums",
        ">p50 µs",
        ">p99 µs",
        ">p99.9 µs",
    )
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
    rate = report.sent / report.seconds
    console.print(
        f"{report.sent:,} messages, {report.payload_bytes / 1e6:,.1f} MB in {report.seconds:.1f} s"
        f" ({rate:,.0f}/s), one connection, written once, {len(report.workers)} workers"
    )
    console.print(f"the ring was at most {report.occupancy:.1%} full")
    console.print(table)
    console.print(
        "every message arrived at every worker, whole and in order"
        if report.ok
        else "NOT every message arrived whole and in order"
    )
