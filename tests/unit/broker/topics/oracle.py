"""What the scanner must find, in plain Python: the rules of topic and control patterns.

It parses the whole message, so it is right where the scanner is fast. Unlike the scanner it sees
faults behind the last value that is needed, and takes such a message for no JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from ringcast.broker.topics.venue import Venue

__all__ = ["is_control", "topic", "topic_name", "value"]

NAME_BYTES_MAX: Final = 127
_PIECES: Final = re.compile(r"\{\{|\{(/[^}]*)\}|[^{]+")


class _Spelled(str):
    """A number as it is spelled."""

    __slots__ = ()


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in pairs:
        found.setdefault(key, part)
    return found


def _parsed(payload: bytes) -> Any:
    try:
        return json.loads(
            payload, parse_int=_Spelled, parse_float=_Spelled, object_pairs_hook=_first
        )
    except (ValueError, RecursionError):
        return None


def value(message: Any, pointer: str) -> str | None:
    """The text or number at a JSON pointer."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(message, dict) and key in message:
            message = message[key]
        elif isinstance(message, list) and re.fullmatch("0|[1-9][0-9]*", key):
            if int(key) >= len(message):
                return None
            message = message[int(key)]
        else:
            return None
    return message if isinstance(message, str) else None


def _joined(pattern: str, message: Any) -> str | None:
    text = ""
    for piece in _PIECES.finditer(pattern):
        part = "{" if piece[0] == "{{" else piece[0]
        if piece[1] is not None:
            found = value(message, piece[1])
            if found is None:
                return None
            part = found
        text += part
    return text


def topic(patterns: Iterable[str], payload: bytes) -> str | None:
    """The name that `patterns` find; None for topic 0."""
    message = _parsed(payload)
    for pattern in patterns:
        found = _joined(pattern, message)
        if found is not None:
            fits = 0 < len(found.encode("utf-8", "surrogatepass")) <= NAME_BYTES_MAX
            return found if fits and not re.search("[\ud800-\udfff]", found) else None
    return None


def is_control(patterns: Iterable[str], payload: bytes) -> bool:
    """Is it a message that the manager looks at?"""
    message = _parsed(payload)
    for pattern in patterns:
        pointers, equals, wanted = pattern.partition("=")
        found = _joined(pointers, message)
        if found is not None:
            glob = "*".join(re.escape(part) for part in wanted.split("*")).replace("*", ".*")
            if not equals or re.fullmatch(glob, found, re.DOTALL):
                return True
    return False


def topic_name(venue: Venue, payload: bytes) -> str | None:
    """The topic of a message as workers see it; None for topic 0."""
    if is_control(venue.control, payload):
        return None
    raw = topic(venue.topic, payload)
    return None if raw is None else venue.topic_of(raw)
