"""The command `ringcast`: one module per command, named here in the order of the help.

A command parses its options, calls what does the work and prints the result. What commands share
is in `output`. Only the command that is called is loaded: with all of them and what they need,
loading would take longer than most commands do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer

from ringcast import shm

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

_COMMANDS: Final = (
    "demo",
    "serve",
    "gateway",
    "venues",
    "ls",
    "inspect",
    "topics",
    "group",
    "tail",
    "send",
    "replay",
    "clean",
    "bench",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ringcast {importlib.metadata.version('ringcast')}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def _app_of(commands: Iterable[str]) -> typer.Typer:
    app = typer.Typer(
        name="ringcast",
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in commands:
        module = importlib.import_module(f"{__name__}.{name}")
        app.command()(getattr(module, name))
    return app


def __getattr__(name: str) -> Any:
    if name == "app":  # all commands: for the help, completion and programs
        return _app_of(_COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _called() -> list[str]:
    """The commands that this call may be about."""
    first = sys.argv[1:2]
    return first if first and first[0] in _COMMANDS else list(_COMMANDS)


def main() -> None:
    """Run the command line: the entry of the console script. It always ends the process: with 0 if
    all is fine, 1 if it failed, with one line on stderr, 2 for bad usage, 130 after Ctrl-C."""
    try:
        try:
            _app_of(_called())(prog_name="ringcast")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone
        # What is still buffered is written at exit, to where that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        typer.echo(f"ringcast: {visible(' '.join(str(error).split()))}", err=True)
        sys.exit(1)


def _expected() -> tuple[type[Exception], ...]:
    """Errors that say what is wrong and what to do."""
    from ..config import ConfigError
    from ..manager import ManagerError

    return shm.RingError, ConfigError, ManagerError
