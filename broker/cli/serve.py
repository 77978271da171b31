"""``ringcast serve``: the manager in the foreground."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import Config
from ..manager import Manager

__all__ = ["serve"]


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class OfflineSends(StrEnum):
    """`Config.offline_sends`."""

    BUFFER = "buffer"
    REJECT = "reject"


class _JsonLines(logging.Formatter):
    """One JSON object a line: time (Unix, s), level, event and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": round(record.created, 6), "level": record.levelname.lower()}
        line["event"] = getattr(record, "event", record.getMessage())
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _seconds_or_never(text: str) -> float | None:
    return None if text == "never" else float(text)


def _seconds(help_text: str) -> Any:
    return typer.Option(metavar="S", help=help_text + ' Seconds, or "never".')


def serve(
    name: Annotated[str | None, typer.Option(help="The ring's name; workers attach by it.")] = None,
    url: Annotated[str | None, typer.Option(help="Where to connect: ws:// or wss://.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file; its keys are the names of these options, and some more."),
    ] = None,
    initial_message: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Sent after each connect; repeatable."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:VALUE", help="Header of the handshake; repeatable."),
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="http://, socks4://, socks5://, with user:password@.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file of our certificate.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    reconnect: Annotated[
        bool, typer.Option(help="Connect again when the connection is lost, or stop.")
    ] = True,
    ping_interval: Annotated[str | None, _seconds("Pause between pings.")] = None,
    idle_timeout: Annotated[
        str | None, _seconds("A connection that says nothing for so long is lost.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Messages that the ring holds.")] = None,
    capacity: Annotated[int | None, typer.Option(help="Bytes that the ring holds.")] = None,
    max_readers: Annotated[int | None, typer.Option(help="Workers at once.")] = None,
    demote_after: Annotated[
        str | None, _seconds("Readers that keep the ring full for so long become lossy.")
    ] = None,
    evict_after: Annotated[
        str | None, _seconds("Those that do not, for so long, are put out.")
    ] = None,
    offline_sends: Annotated[
        OfflineSends | None,
        typer.Option(help="What becomes of workers' messages while there is no connection."),
    ] = None,
    send_rate: Annotated[
        float | None, typer.Option(metavar="N", help="Messages a second to the server, at most.")
    ] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds to wait for readers at the end.")
    ] = None,
    log: Annotated[LogFormat, typer.Option(help="Form of the log, on stderr.")] = LogFormat.TEXT,
) -> None:
    """Run a manager: connect, and write what the server says into a ring that workers attach to.

    Options take precedence over the file. Secrets belong into the file, as ${VAR}, which is
    replaced from the environment: a command line can be read by everybody. Ctrl-C or SIGTERM ends
    it in order: workers get what was received; a second one ends it at once. A ring whose manager
    was killed is resumed, and its workers read on."""
    given = {
        "name": name,
        "url": url,
        "initial_messages": tuple(initial_message) if initial_message else None,
        "headers": dict(map(_header, header)) if header else None,
        "proxy": proxy,
        "ca": ca,
        "certificate": certificate,
        "private_key": private_key,
        "slots": slots,
        "capacity": capacity,
        "max_readers": max_readers,
        "offline_sends": offline_sends and str(offline_sends),
        "send_rate": send_rate,
        "drain_timeout": drain_timeout,
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not reconnect:
        options["reconnect"] = False
    for key, text in (
        ("ping_interval", ping_interval),
        ("idle_timeout", idle_timeout),
        ("demote_after", demote_after),
        ("evict_after", evict_after),
    ):
        if text is not None:
            options[key] = _parsed(f"--{key.replace('_', '-')}", text, _seconds_or_never)
    _log_to_stderr(log)
    Manager(_configured(config, options)).run()


def _configured(file: Path | None, options: dict[str, Any]) -> Config:
    if file is not None:
        return Config.load(file, **options)
    for key in ("name", "url"):
        if key not in options:
            raise typer.BadParameter("is needed, or --config", param_hint=f"--{key}")
    return Config(**options)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise typer.BadParameter("is NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()


def _parsed(option: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter('is seconds, or "never"', param_hint=option) from error


def _log_to_stderr(form: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonLines()
        if form is LogFormat.JSON
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
