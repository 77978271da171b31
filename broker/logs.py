"""How the manager logs: one line per event, whose fields a structured handler finds."""

from __future__ import annotations

import logging
from typing import Any, Final

__all__ = ["log", "log_event"]

log: Final = logging.getLogger("ringcast")


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log one line, `event` and its fields; a structured handler finds them in the record."""
    text = " ".join(f"{key}={value!r}" for key, value in fields.items() if value is not None)
    log.log(level, "%s %s", event, text, extra={"event": event, "fields": fields})
