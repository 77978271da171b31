"""``ringcast replay``: a capture as a WebSocket server, to try and to test clients with."""

from __future__ import annotations

import asyncio
import math
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..exchange.captures import CaptureError, Record, read
from ..exchange.server import Item, Server, Source, Tally, repeated, timed
from .output import fail

__all__ = ["replay"]


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Capture to replay: .tsv or .tsv.gz.")
    ],
    speed: Annotated[
        float, typer.Option(help="Pace: 1 is the capture's own, 10 ten times as fast.")
    ] = 1.0,
    flood: Annotated[bool, typer.Option("--flood", help="As fast as each client reads.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")
    ] = 9001,
    loop: Annotated[
        bool, typer.Option("--loop", help="Begin again at the end, without end.")
    ] = False,
    cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) for wss; with its key, or see --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM) of --cert.")] = None,
) -> None:
    """Serve a capture over WebSocket: each client gets all of it from the beginning, then a close.

    The file is read into memory first. The command prints the URL, and for each client that leaves
    what was sent to it. It ends with Ctrl-C or SIGTERM."""
    if not speed > 0:
        raise typer.BadParameter("must be above 0", param_hint="--speed")
    if flood and speed != 1.0:
        raise typer.BadParameter("--speed and --flood exclude each other", param_hint="--flood")
    if key is not None and cert is None:
        raise typer.BadParameter("needs --cert too", param_hint="--key")
    pace = math.inf if flood else speed
    try:
        source = _source(_load(file), pace, loop)
        server = Server(source, host, port, ssl=_tls(cert, key), on_leave=_print_client)
        asyncio.run(_serve(server))
    except (CaptureError, OSError) as error:
        fail("replay", error)


def _load(file: Path) -> list[Record]:
    records = [record for record in read(file) if record.kind != "sent"]
    if not records:
        raise CaptureError(f"{file}: holds no received message")
    return records


def _source(records: list[Record], speed: float, loop: bool) -> Source:
    def once() -> Iterator[Item]:
        return timed(records, speed)

    def endless() -> Iterator[Item]:
        return repeated(once)

    return endless if loop else once


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:  # its own text does not name the files
        raise OSError(f"--cert {cert}, --key {key}: cannot be used ({error})") from error
    return context


def _print_client(address: str, sent: Tally) -> None:
    typer.echo(
        f"{address}: {sent.messages} messages, {sent.payload_bytes} bytes, digest {sent.digest:08x}"
    )


async def _serve(server: Server) -> None:
    """Serve until SIGINT or SIGTERM."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with server:
        typer.echo(server.url)
        await ending.wait()
