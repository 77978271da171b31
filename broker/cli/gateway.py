"""``ringcast gateway``: serve a ring's messages to WebSocket clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import ssl
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from ringcast import shm

from ..config import ConfigError
from ..gateway.access import AccessRules, Limits, check_listen, read_tokens
from ..gateway.addresses import MODE_DEFAULT, ListenAddress, Listener, bind
from ..gateway.queue_service import QueuePlan
from ..gateway.queues import MESSAGE_SIZE_MIN, QueueOptions
from ..gateway.server import Gateway, GatewayOptions, OnLoss
from ..logs import LogFormat, log_to_stderr
from .output import Name, Owner, checked_name

__all__ = ["gateway"]


class QueuePolicy(StrEnum):
    """What a full queue does."""

    LOSSY = "lossy"
    BLOCK = "block"


_OPTIONS: Final = GatewayOptions()
_QUEUES: Final = QueueOptions()
_LIMITS: Final = Limits()

_log = logging.getLogger(__name__)


def gateway(
    name: Name,
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="unix:/PATH or HOST:PORT. Repeatable."),
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL", help="Fill a POSIX message queue: attach('mq:NAME/LABEL'). Repeatable."
        ),
    ] = None,
    queue_policy: Annotated[
        QueuePolicy, typer.Option(help="What a full queue does: lose messages, or hold the ring.")
    ] = QueuePolicy.LOSSY,
    queue_depth: Annotated[
        int, typer.Option(metavar="N", help="Queue messages that each queue holds.", min=1)
    ] = _QUEUES.depth,
    queue_message_size: Annotated[
        int, typer.Option(metavar="BYTES", help="Of a queue message.", min=MESSAGE_SIZE_MIN)
    ] = _QUEUES.message_size,
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
        bool, typer.Option("--read-only", help="Clients choose among topics that the server sends.")
    ] = False,
    forward_login: Annotated[
        bool,
        typer.Option(
            "--forward-login",
            help="Clients' logins go to the server, though the manager has logged in.",
        ),
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
    log_level: Annotated[int, typer.Option(hidden=True)] = logging.INFO,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the messages of a ring to WebSocket clients, for programs that can't map it.

    A client gets what the server sent, message by message; what it sends goes to the server. In its
    URL it may ask for ?topics=a,b*, ?start=oldest, latest or a sequence, ?policy=block or lossy. A
    ring that has ended, or is not there yet, is waited for. Ctrl-C or SIGTERM ends it in order."""
    if not (listen or queue):
        raise typer.BadParameter("is needed, or --queue", param_hint="--listen")
    addresses = [ListenAddress.parse(text) for text in listen or ()]
    rules = AccessRules(
        tokens=read_tokens(token_file) if token_file else (),
        hosts=tuple(host or ()),
        origins=tuple(allow_origin or ()),
        read_only=read_only,
        limits=Limits(clients=clients, message_bytes=message_bytes),
    )
    tls = _server_side(certificate, private_key)
    check_listen(rules, addresses, tls=tls is not None, insecure=insecure)
    options = GatewayOptions(on_loss=on_loss, forward_login=forward_login, hold=hold, owner=owner)
    plan = QueuePlan(
        [checked_name(label, "queue", "--queue") for label in queue or ()],
        QueueOptions(queue_depth, queue_message_size, queue_policy.value),
        hold,
        read_only,
    )
    log_to_stderr(log, log_level)
    _raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        until = stack.enter_context(_beside(parent)) if parent is not None else None
        listeners = [stack.enter_context(bind(address, _mode(mode))) for address in addresses]
        asyncio.run(_run(name, listeners, rules, options, tls, plan, until))


async def _run(
    name: str,
    listeners: Sequence[Listener],
    rules: AccessRules,
    options: GatewayOptions,
    tls: ssl.SSLContext | None,
    plan: QueuePlan,
    until: int | None,
) -> None:
    gateway = Gateway(
        name, listeners, rules, options, tls=tls, queues=plan if plan.labels else None
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, gateway.stop)
    if until is not None:

        def parent_ended() -> None:
            loop.remove_reader(until)  # it stays readable
            gateway.stop()

        loop.add_reader(until, parent_ended)
    for listener in listeners:
        _log.info("serves ring %s at %s", name, listener.address.url(tls=tls is not None))
    await gateway.run()


@contextlib.contextmanager
def _beside(parent: int) -> Iterator[int]:
    """A descriptor that is readable when the manager has ended which has started this process. The
    manager gets what goes wrong, on standard output, and logs it."""
    try:
        life = os.pidfd_open(parent)
    except ProcessLookupError:
        raise typer.Exit(1) from None
    try:
        if os.getppid() != parent:  # it has ended already, and the number is another's
            raise typer.Exit(1)
        yield life
    except (ConfigError, shm.RingError) as error:
        print(error, flush=True)
        raise typer.Exit(1) from None
    finally:
        os.close(life)


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
