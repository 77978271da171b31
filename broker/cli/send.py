"""``ringcast send``: one message to the server, through the manager."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import typer

from ringcast import shm
from ringcast.shm import mpsc

from .output import Name, Owner, fail

__all__ = ["send"]


def send(
    name: Name,
    text: Annotated[str, typer.Argument(help="What to send.", metavar="TEXT")],
    as_base64: Annotated[
        bool, typer.Option("--base64", help="TEXT is base64 of a binary message.")
    ] = False,
    flush: Annotated[
        bool, typer.Option(help="Wait until the message was handed to the socket, or rejected.")
    ] = True,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds to wait at most.")
    ] = 10.0,
    owner: Owner = None,
) -> None:
    """Send a message to the server, through the manager, and print its ticket: its place in the
    order of all workers' messages."""
    payload, kind = text.encode(), shm.Kind.TEXT
    if as_base64:
        try:
            payload, kind = base64.b64decode(text, validate=True), shm.Kind.BINARY
        except binascii.Error as error:
            raise typer.BadParameter(f"is not base64: {error}", param_hint="TEXT") from error
    try:
        with mpsc.Sender.attach(name, label="ringcast send", owner=owner) as sender:
            ticket = sender.send(payload, kind=kind, timeout=timeout)
            if flush:
                sender.flush(ticket, timeout)
    except TimeoutError as error:
        fail("send", error)
    typer.echo(ticket)
