"""``ringcast bench``: how fast it is on this machine, beside other ways to carry messages."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, fail, print_json

__all__ = ["bench"]


def bench(
    seconds: Annotated[
        float, typer.Option(min=0.05, max=600, help="Length of each run: the longer, the steadier.")
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    r"""Measure throughput and latency here, beside sockets, pipes, queues and other libraries.

    It takes about half a minute. Every message's content is checked. Libraries that are not
    installed are named: pip install 'ringcast\[bench]' installs them. `python -m
    ringcast.benchmarks` has many more scenarios."""
    try:
        from ringcast.benchmarks import __main__ as benchmarks
        from ringcast.benchmarks.errors import RunFailedError
        from ringcast.benchmarks.report import Plan
    except ModuleNotFoundError as error:
        fail("bench", f"{error.name} is not installed: pip install 'ringcast[bench]'")
    try:
        plan = Plan(seconds, repeat=1, brief=True)
        reports = benchmarks.run(
            ("throughput", "latency", "limits"), plan, lambda text: typer.echo(text, err=as_json)
        )
    except RunFailedError as failure:
        fail("bench", failure)
    if as_json:
        print_json(benchmarks.as_json(reports))
