"""What a scanner should find, in plain Python: the json module, RFC 6901 by hand, and `re`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from ringcast.broker.topics.found import What
from ringcast.broker.topics.venue import Venue
from ringcast.shm import hash_key

NAME_MAX: Final = 127
JOINED_MAX: Final = 1023

_PIECE: Final = re.compile(r"\{\{|\}\}|\{(/[^{}]*)\}|([^{])", re.DOTALL)
_INDEX: Final = re.compile(r"0|[1-9][0-9]*")


class _Number(str):
    """A number as it is spelled."""

    __slots__ = ()


def _first_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found


def parse(payload: bytes) -> Any:
    """The JSON in a payload; numbers stay as they are spelled, the first of equal keys counts."""
    return json.loads(
        payload.decode(),
        object_pairs_hook=_first_of,
        parse_int=_Number,
        parse_float=_Number,
        parse_constant=lambda _: None,
    )


def follow(document: Any, pointer: str) -> str | None:
    """The value at a JSON pointer, if it is a string or a number."""
    for raw in pointer.split("/")[1:]:
        token = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict) and token in document:
            document = document[token]
        elif isinstance(document, list) and _INDEX.fullmatch(token) and int(token) < len(document):
            document = document[int(token)]
        else:
            return None
    return str(document) if isinstance(document, str) else None


def join(document: Any, pattern: str) -> str | None:
    """A pattern with its values, if all are there."""
    joined = []
    for piece in _PIECE.finditer(pattern):
        pointer, text = piece.groups()
        value = text or piece[0][0] if pointer is None else follow(document, pointer)
        if value is None:
            return None
        joined.append(value)
    return "".join(joined)


def _encoded(text: str | None) -> bytes | None:
    try:
        return None if text is None else text.encode()
    except UnicodeEncodeError:
        return None


def _is_control(document: Any, pattern: str) -> bool:
    before, equals, glob = pattern.partition("=")
    joined = join(document, before)
    if joined is None or not equals:
        return joined is not None
    raw = _encoded(joined)
    if raw is None or len(raw) > JOINED_MAX:
        return False
    wanted = b".*".join(re.escape(part) for part in glob.encode().split(b"*"))
    return re.fullmatch(wanted, raw, re.DOTALL) is not None


def expected(
    payload: bytes, topic: Sequence[str], key: Sequence[str] = (), control: Sequence[str] = ()
) -> tuple[What, bytes | None, int]:
    """What a scanner that knows no names finds in valid JSON: the kind, the name and the key."""
    document = parse(payload)
    if any(_is_control(document, pattern) for pattern in control):
        return What.CONTROL, None, 0
    keys = [text for pattern in key if (text := join(document, pattern)) is not None]
    raw = _encoded(keys[0]) if keys else None
    number = hash_key(raw) if raw is not None and len(raw) <= JOINED_MAX else 0
    names = [text for pattern in topic if (text := join(document, pattern)) is not None]
    if not names:
        return What.UNNAMED, None, number
    name = _encoded(names[0])
    if not name or len(name) > NAME_MAX:
        return What.UNUSABLE, None, number
    return What.NEW, name, number


def topic(patterns: Sequence[str], payload: bytes) -> str | None:
    """The name that a scanner finds; None for topic 0, also if the payload is no JSON."""
    try:
        name = expected(payload, patterns)[1]
    except ValueError:
        return None
    return None if name is None else name.decode()


def is_control(patterns: Sequence[str], payload: bytes) -> bool:
    """Is it a message that the manager looks at?"""
    try:
        return expected(payload, (), control=patterns)[0] is What.CONTROL
    except ValueError:
        return False


def topic_name(venue: Venue, payload: bytes) -> str | None:
    """The topic of a message as workers see it; None for topic 0."""
    if is_control(venue.control, payload):
        return None
    raw = topic(venue.topic, payload)
    return None if raw is None else venue.topic_of(raw)
