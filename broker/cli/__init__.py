"""The command `ringcast`. Each group of commands has a module beside this one and is registered
here; the order of registration is the order of the help."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated, Final

import typer

from ringcast import shm

from ..config import ConfigError
from ..manager import ManagerError
from . import look
from .bench import bench
from .demo import demo
from .replay import replay
from .send import send
from .serve import serve

__all__ = ["app", "main"]

_HELP: Final = """\
One process holds the WebSocket connection, any number of workers read it. Each message is \
written once, into shared memory; workers attach to it by name.

[bold]demo[/] shows it at work on this machine; [bold]serve[/] is the real thing. \
[bold]ls[/], [bold]inspect[/] and [bold]tail[/] show what there is without holding anybody up; \
[bold]send[/] says something to the server; \
[bold]clean[/] removes what the killed have left; [bold]replay[/] is a server to try it all with; \
[bold]bench[/] measures it beside what else there is.

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
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


# See it work, run it.
app.command()(demo)
app.command()(serve)

# Look at it.
app.command()(look.ls)
app.command()(look.inspect)
app.command()(look.tail)

# Talk to the server.
app.command()(send)

# Play a capture.
app.command()(replay)

# Tidy up.
app.command()(look.clean)

# Measure it.
app.command()(bench)


def main() -> None:
    """Run the command line; the entry of the console script. Always ends the process: 0 fine, 1
    failed with one line on stderr, 2 bad usage, 130 Ctrl-C."""
    try:
        try:
            app(prog_name="ringcast")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who read our output has seen enough
        # What is still buffered is written at exit, to where nobody complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (shm.RingError, ConfigError, ManagerError) as error:
        typer.echo(f"ringcast: {look.visible(' '.join(str(error).split()))}", err=True)
        sys.exit(1)
