"""``ringcast gateway``: serve a ring's messages to WebSocket clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from ringcast import shm

from ..config import ConfigError
from ..gateway.access import AccessRules, Limits, check_listen, read_tokens
from ..gateway.addresses import MODE_DEFAULT, ListenAddress, Listener, bind
from ..gateway.server import Gateway, GatewayOptions, OnLoss
from .output import Name, Owner
from .serve import LogFormat, log_to_stderr

__all__ = ["gateway"]

_OPTIONS: Final = GatewayOptions()
_LIMITS: Final = Limits()

_log = logging.getLogger(__name__)


def gateway(
    name: Name,
    listen: Annotated[
        list[str],
        typer.Option(metavar="ADDRESS", help="unix:/PATH or HOST:PORT. Repeatable."),
    ],
    mode: Annotated[
        str, typer.Option(metavar="OCTAL", help="Of Unix sockets.")
    ] = f"{MODE_DEFAULT:04o}",
    token_file: Annotated[
        Path | None,
        typer.Option(help="TCP clients have to know one of the tokens in it, one per line."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file: TCP clients are encrypted.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(help="PEM file, if it is not in the certificate's.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without encryption.")
    ] = False,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which TCP clients may call it. Repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web page's origin whose scripts may come in, or null. Repeatable.",
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Clients may choose topics, and send nothing.")
    ] = False,
    on_loss: Annotated[
        OnLoss,
        typer.Option(
            help="Of plain clients when the connection to the server is lost, or messages are."
        ),
    ] = OnLoss.CLOSE,
    hold: Annotated[
        float,
        typer.Option(
            metavar="S", help="Seconds for which clients that block may hold a full ring.", min=0
        ),
    ] = _OPTIONS.hold,
    clients: Annotated[
        int, typer.Option(metavar="N", help="At most so many at a time.", min=1)
    ] = _LIMITS.clients,
    message_bytes: Annotated[
        int, typer.Option(metavar="N", help="The longest message that a client may send.", min=1)
    ] = _LIMITS.message_bytes,
    owner: Owner = None,
    log: Annotated[LogFormat, typer.Option(help="Form of the log, on stderr.")] = LogFormat.TEXT,
) -> None:
    """Serve the messages of a ring to WebSocket clients, for programs that can't map it.

    A client gets what the server sent, message by message; what it sends goes to the server. In its
    URL it may ask for ?topics=a,b*, ?start=oldest, latest or a sequence, ?policy=block or lossy. A
    ring that has ended, or is not there yet, is waited for. Ctrl-C or SIGTERM ends it in order."""
    addresses = [ListenAddress.parse(text) for text in listen]
    rules = AccessRules(
        tokens=read_tokens(token_file) if token_file else (),
        hosts=tuple(host or ()),
        origins=tuple(allow_origin or ()),
        read_only=read_only,
        limits=Limits(clients=clients, message_bytes=message_bytes),
    )
    tls = _server_side(certificate, private_key)
    check_listen(rules, addresses, tls=tls is not None, insecure=insecure)
    shm.names.check_name(name)
    options = GatewayOptions(on_loss=on_loss, hold=hold, owner=owner)
    log_to_stderr(log)
    _raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(bind(address, _mode(mode))) for address in addresses]
        asyncio.run(_run(name, listeners, rules, options, tls))


async def _run(
    name: str,
    listeners: Sequence[Listener],
    rules: AccessRules,
    options: GatewayOptions,
    tls: ssl.SSLContext | None,
) -> None:
    gateway = Gateway(name, listeners, rules, options, tls=tls)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, gateway.stop)
    for listener in listeners:
        _log.info("serves ring %s at %s", name, listener.address.url(tls=tls is not None))
    await gateway.run()


def _raise_descriptor_limit() -> None:
    """Each client takes one or more; by default a process gets as many as there may be clients."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ConfigError(f"--mode is three or four octal digits such as 0660, not {text!r}")
    return mode


def _server_side(certificate: Path | None, private_key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if private_key is not None:
            raise ConfigError("--private-key goes with --certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--certificate {certificate}: {error}") from error
    return context
