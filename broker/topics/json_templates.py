"""Messages to send, as JSON with placeholders: a small language of venue files.

A **template** is JSON, written as TOML. A text that is one placeholder becomes the value itself,
``{part}`` as a text and ``{part:number}`` as a number; values are put in as JSON, so no character
of them can break the message. A list of one element that has placeholders is repeated; what stands
outside such lists is the same for all topics of a message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .templates import NameParts, Part, TemplateError, parts_of

__all__ = [
    "JsonTemplate",
    "Repeated",
    "Text",
    "check_known",
    "compiled",
    "placeholders",
    "read_text",
    "shared_placeholders",
]


class JsonTemplate:
    """A JSON message with placeholders.

    Args:
        value: of TOML: texts, numbers, booleans, lists, tables.
        known: the placeholders that it may have.

    Attributes:
        value: as `compiled` makes it.
        used: the placeholders that it has.
        shared: those that stand outside of repeated lists: topics with different values of them
            need messages of their own.

    Raises:
        TemplateError: it can't be understood.
    """

    __slots__ = ("shared", "used", "value")

    def __init__(self, value: Any, known: Iterable[str] = ()) -> None:
        self.value = compiled(value)
        self.used = placeholders(self.value)
        self.shared = shared_placeholders(self.value)
        check_known(self.used, known)

    def text(self, topics: Sequence[NameParts] = ({},)) -> str:
        """The message for `topics`, which have the same values of `shared`."""
        return json.dumps(_filled(self.value, topics), separators=(",", ":"))

    def group(self, parts: NameParts) -> tuple[str, ...]:
        """What topics must have in common to share a message."""
        return tuple(parts[name] for name in sorted(self.shared))


def check_known(used: Iterable[str], known: Iterable[str]) -> None:
    """Check that a template has no other placeholders than those that are known.

    Raises:
        TemplateError: it has; the error names them all.
    """
    for name in sorted({*used} - {*known}):
        shown = ", ".join(f"{{{each}}}" for each in known) or "none"
        raise TemplateError(f"there is no {{{name}}} here; known are {shown}")


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a template."""

    pieces: tuple[str | Part, ...]

    def filled(self, parts: NameParts) -> str | int:
        """The value that it becomes."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], Part):
            part = self.pieces[0]
            return int(parts[part.name]) if part.style == "number" else parts[part.name]
        return "".join(p if isinstance(p, str) else parts[p.name] for p in self.pieces)


@dataclass(frozen=True, slots=True)
class Repeated:
    """A list with one element, which is repeated for the topics."""

    element: Any


def read_text(text: str) -> Text:
    """A text of a template of requests.

    Raises:
        TemplateError: it can't be understood.
    """
    pieces = parts_of(text, ("number",))
    if len(pieces) > 1:
        for piece in pieces:
            if isinstance(piece, Part) and piece.style:
                raise TemplateError(f"{text!r}: only a placeholder alone can be a number")
    return Text(pieces)


def compiled(value: Any, read: Callable[[str], Text] = read_text) -> Any:
    """A value of TOML in which each text is what `read` makes of it, and each list of one element
    that has placeholders is `Repeated`.

    Raises:
        TemplateError: JSON can't hold it, or `read` does not understand a text.
    """
    if isinstance(value, str):
        return read(value)
    if isinstance(value, dict):
        return {key: compiled(part, read) for key, part in value.items()}
    if isinstance(value, list):
        parts = [compiled(part, read) for part in value]
        return Repeated(parts[0]) if len(parts) == 1 and placeholders(parts[0]) else parts
    if isinstance(value, bool | int | float):
        return value
    raise TemplateError(f"{type(value).__name__} is nothing that JSON can hold; write it as text")


def placeholders(value: Any) -> frozenset[str]:
    """The placeholders of what `compiled` has made."""
    if isinstance(value, Repeated):
        return placeholders(value.element)
    return _collected(value, placeholders)


def shared_placeholders(value: Any) -> frozenset[str]:
    """Those of them that stand outside of repeated lists."""
    if isinstance(value, Repeated):
        return frozenset()
    return _collected(value, shared_placeholders)


def _collected(value: Any, collect: Callable[[Any], frozenset[str]]) -> frozenset[str]:
    if isinstance(value, Text):
        return frozenset(piece.name for piece in value.pieces if isinstance(piece, Part))
    if isinstance(value, dict):
        return frozenset[str]().union(*map(collect, value.values()))
    if isinstance(value, list):
        return frozenset[str]().union(*map(collect, value))
    return frozenset()


def _filled(value: Any, topics: Sequence[NameParts]) -> Any:
    if isinstance(value, Text):
        return value.filled(topics[0])
    if isinstance(value, dict):
        return {key: _filled(part, topics) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, topics) for part in value]
    if isinstance(value, Repeated):
        keys = sorted(shared_placeholders(value.element))
        groups: dict[tuple[str, ...], list[NameParts]] = {}
        for topic in topics:
            groups.setdefault(tuple(topic[key] for key in keys), []).append(topic)
        return [_filled(value.element, group) for group in groups.values()]
    return value
