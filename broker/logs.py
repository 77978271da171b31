"""How the manager logs: one line per event, whose fields a structured handler finds; and how its
commands show that on standard error."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from typing import Any, Final

__all__ = ["LogFormat", "log", "log_event", "log_to_stderr", "present_format", "quiet_logger"]

log: Final = logging.getLogger("ringcast")


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log one line, `event` and its fields; a structured handler finds them in the record."""
    text = " ".join(f"{key}={value!r}" for key, value in fields.items() if value is not None)
    log.log(level, "%s %s", event, text, extra={"event": event, "fields": fields})


def quiet_logger(module: str) -> logging.Logger:
    """For `websockets`' protocols of a module, which log whole requests, and so the tokens in them:
    only the library's own faults come out."""
    quiet = logging.getLogger(f"{module}.websockets")
    quiet.setLevel(logging.ERROR)
    return quiet


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class _JsonLines(logging.Formatter):
    """One JSON object per line: time (Unix, s), level, event and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": round(record.created, 6), "level": record.levelname.lower()}
        line["event"] = getattr(record, "event", record.getMessage())
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(form: LogFormat, level: int = logging.INFO) -> None:
    """Set up the log of a command that runs until it is ended."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonLines()
        if form is LogFormat.JSON
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler])


def present_format() -> LogFormat:
    """How the log of this process looks: a child that writes to the same standard error does so,
    too."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    is_json = any(isinstance(formatter, _JsonLines) for formatter in formatters)
    return LogFormat.JSON if is_json else LogFormat.TEXT
