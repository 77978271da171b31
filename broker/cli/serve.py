"""``ringcast serve``: the manager in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import KEYS, Config, OfflineSends, Seconds
from ..logs import LogFormat, log_to_stderr
from ..manager import Manager

__all__ = ["serve"]


def _option(name: str, *, metavar: str | None = None, repeatable: bool = False) -> Any:
    """The option that sets a key of `Config`; its help is the key's."""
    key = KEYS[name]
    text = key.kind.summary
    if isinstance(key.kind, Seconds):
        metavar = "S"
        text += ' Seconds, or "never".' if key.is_optional else " Seconds."
    if repeatable:
        text += " Repeatable, one each."
    elif key.default is not None:
        text += f" Default: {key.kind.display(key.default, str)}."
    return typer.Option(help=text, metavar=metavar)


def serve(
    name: Annotated[str | None, _option("name")] = None,
    url: Annotated[str | None, _option("url")] = None,
    venue: Annotated[str | None, _option("venue", metavar="NAME|FILE")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file; its keys are the names of these options, and some more."),
    ] = None,
    subscribe: Annotated[
        list[str] | None, _option("subscribe", metavar="TOPIC", repeatable=True)
    ] = None,
    initial_message: Annotated[
        list[str] | None, _option("initial_messages", metavar="TEXT", repeatable=True)
    ] = None,
    header: Annotated[
        list[str] | None, _option("headers", metavar="NAME:VALUE", repeatable=True)
    ] = None,
    proxy: Annotated[str | None, _option("proxy", metavar="URL")] = None,
    ca: Annotated[Path | None, _option("ca")] = None,
    certificate: Annotated[Path | None, _option("certificate")] = None,
    private_key: Annotated[Path | None, _option("private_key")] = None,
    reconnect: Annotated[bool | None, _option("reconnect")] = None,
    ping_interval: Annotated[str | None, _option("ping_interval")] = None,
    idle_timeout: Annotated[str | None, _option("idle_timeout")] = None,
    slots: Annotated[int | None, _option("slots")] = None,
    capacity: Annotated[int | None, _option("capacity")] = None,
    max_readers: Annotated[int | None, _option("max_readers")] = None,
    demote_after: Annotated[str | None, _option("demote_after")] = None,
    evict_after: Annotated[str | None, _option("evict_after")] = None,
    offline_sends: Annotated[OfflineSends | None, _option("offline_sends")] = None,
    send_rate: Annotated[float | None, _option("send_rate", metavar="N")] = None,
    drain_timeout: Annotated[float | None, _option("drain_timeout")] = None,
    listen: Annotated[
        list[str] | None, _option("listen", metavar="ADDRESS", repeatable=True)
    ] = None,
    log: Annotated[LogFormat, typer.Option(help="Form of the log, on stderr.")] = LogFormat.TEXT,
) -> None:
    """Run a manager: connect, and write what the server sends into a ring that workers attach to.

    Options take precedence over the file. Secrets belong in the file, as ${VAR}, which is replaced
    from the environment: everybody can read a command line. Ctrl-C or SIGTERM ends the manager in
    order, and workers get what was received; a second one ends it at once. A ring whose manager was
    killed is resumed, and its workers read on."""
    given: dict[str, Any] = {
        "name": name,
        "url": url,
        "venue": venue,
        "subscribe": subscribe or None,
        "initial_messages": initial_message or None,
        "headers": dict(map(_header, header)) if header else None,
        "proxy": proxy,
        "ca": ca,
        "certificate": certificate,
        "private_key": private_key,
        "reconnect": reconnect,
        "ping_interval": ping_interval,
        "idle_timeout": idle_timeout,
        "slots": slots,
        "capacity": capacity,
        "max_readers": max_readers,
        "demote_after": demote_after,
        "evict_after": evict_after,
        "offline_sends": offline_sends,
        "send_rate": send_rate,
        "drain_timeout": drain_timeout,
        "listen": listen or None,
    }
    options = {key: value for key, value in given.items() if value is not None}
    for key in ("ping_interval", "idle_timeout", "demote_after", "evict_after"):
        if key in options:
            options[key] = _seconds_or_never(key, options[key])
    log_to_stderr(log)
    Manager(_configured(config, options)).run()


def _configured(file: Path | None, options: dict[str, Any]) -> Config:
    if file is not None:
        return Config.load(file, **options)
    if "name" not in options:
        raise typer.BadParameter("is needed, or --config", param_hint="--name")
    if not options.keys() & {"url", "venue"}:
        raise typer.BadParameter("is needed, or --venue or --config", param_hint="--url")
    return Config(**options)


def _seconds_or_never(key: str, text: str) -> float | None:
    """An option's value; None for "never", which differs from an option that is not given."""
    try:
        return None if text == "never" else float(text)
    except ValueError as error:
        hint = f"--{key.replace('_', '-')}"
        raise typer.BadParameter('must be seconds, or "never"', param_hint=hint) from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise typer.BadParameter("must be NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()
