"""``ringcast bench``: how fast it is here, next to what else there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["bench"]


def bench(
    seconds: Annotated[
        float, typer.Option(min=0.05, max=600, help="Of each run: the longer, the steadier.")
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    r"""Measure throughput and latency here, beside sockets, pipes, queues and other libraries.

    Takes about half a minute. Every message's content is checked. Libraries that are not installed
    are named: pip install 'ringcast\[bench]' brings them. `python -m ringcast.benchmarks` has many
    more scenarios."""
    from ringcast.benchmarks import __main__ as benchmarks
    from ringcast.benchmarks.errors import RunFailedError
    from ringcast.benchmarks.report import Plan

    show = (lambda text: typer.echo(text, err=True)) if as_json else typer.echo
    try:
        plan = Plan(seconds, repeat=1, brief=True)
        reports = benchmarks.run(("throughput", "latency", "limits"), plan, show)
    except RunFailedError as failure:
        typer.echo(f"ringcast bench: {failure}", err=True)
        raise typer.Exit(1) from failure
    if as_json:
        typer.echo(json.dumps(benchmarks.as_json(reports)))
