"""The command `ringcast`: one module per command, registered here in the order of the help.

A command parses its options, calls what does the work and prints the result. What commands share
is in `output`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated, Final

import typer

from ringcast import shm

from ..config import ConfigError
from ..manager import ManagerError
from . import (
    bench,
    clean,
    demo,
    gateway,
    group,
    inspect,
    ls,
    replay,
    send,
    serve,
    tail,
    topics,
    venues,
)
from .output import visible

__all__ = ["app", "main"]

_HELP: Final = """\
One process holds the WebSocket connection, any number of workers read it. Each message is \
written once, into shared memory; workers attach to it by name.

[bold]demo[/] shows it at work on this machine; [bold]serve[/] is the real thing; \
[bold]gateway[/] serves WebSocket clients from it. \
[bold]venues[/] lists the exchanges whose topics it knows. \
[bold]ls[/], [bold]inspect[/], [bold]topics[/], [bold]group[/] and [bold]tail[/] show what there \
is without holding anybody up; \
[bold]send[/] sends a message to the server; \
[bold]clean[/] removes what killed processes left; \
[bold]replay[/] is a server to try clients with; \
[bold]bench[/] measures it beside other ways to carry messages.

Exit code 0: fine, 1: failed, 2: bad usage."""

app = typer.Typer(
    name="ringcast",
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ringcast {importlib.metadata.version('ringcast')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command()(demo.demo)
app.command()(serve.serve)
app.command()(gateway.gateway)
app.command()(venues.venues)
app.command()(ls.ls)
app.command()(inspect.inspect)
app.command()(topics.topics)
app.command()(group.group)
app.command()(tail.tail)
app.command()(send.send)
app.command()(replay.replay)
app.command()(clean.clean)
app.command()(bench.bench)


def main() -> None:
    """Run the command line: the entry of the console script. It always ends the process: with 0 if
    all is fine, 1 if it failed, with one line on stderr, 2 for bad usage, 130 after Ctrl-C."""
    try:
        try:
            app(prog_name="ringcast")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone
        # What is still buffered is written at exit, to where that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (shm.RingError, ConfigError, ManagerError) as error:
        typer.echo(f"ringcast: {visible(' '.join(str(error).split()))}", err=True)
        sys.exit(1)
