"""Messages with which an exchange answers: JSON with placeholders, some of which may stand for
nothing.

They are templates as those of requests (`json_templates`), and also know

* ``{id}``: the id of the client's request, spelled as there; ``{id:null}`` is null if it has none,
* ``{reason}``: why a topic is refused,
* ``{null}``: null, which TOML does not have,
* ``{/req_id}``: the text, number, true, false or null at this JSON pointer of the client's message.

What stands for nothing is left out: the member of a table, or the element of a list. So one
template can serve topics whose names have different parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from .json_templates import Repeated, Text, check_known, compiled, placeholders, shared_placeholders
from .templates import NameParts, Number, Part, TemplateError, parts_of, read_pointer, resolve

__all__ = ["AnswerTemplate", "scalar_json"]

_PLACEHOLDER: Final = re.compile(r"(/[^:]*|[A-Za-z][A-Za-z0-9_]*)(?::([a-z]+))?")
_NULL: Final = "null"
"""A placeholder, a style, and the JSON of both."""
_POINTER: Final = "/pointer"
_VALUES: Final = ("id", _NULL, _POINTER)
"""Placeholders that stand for a value of their own, and not for a part of a text."""

_Finder = Callable[[Part, NameParts], str | None]
"""Finds the JSON for a placeholder and a topic; None if it stands for nothing."""


def scalar_json(value: Any) -> str | None:
    """The JSON of a parsed text, number, true, false or null, a number as it was spelled; None for
    anything else."""
    if isinstance(value, Number):
        return str(value)
    if value is None or isinstance(value, str | bool):
        return json.dumps(value)
    return None


class AnswerTemplate:
    """A JSON message with which an exchange answers.

    Args:
        value: a table of TOML: texts, numbers, booleans, lists, tables.
        known: the placeholders that it may have; "/pointer" stands for any JSON pointer.

    Attributes:
        used: the placeholders that it has.
        shared: those that stand outside of repeated lists.

    Raises:
        TemplateError: it can't be understood.
    """

    __slots__ = ("_members", "shared", "used")

    def __init__(self, value: Mapping[str, Any], known: Sequence[str]) -> None:
        self._members: Mapping[str, Any] = compiled(value, _read_text)
        self.used = placeholders(self._members)
        self.shared = shared_placeholders(self._members)
        check_known({_POINTER if _is_pointer(name) else name for name in self.used}, known)

    def text(
        self,
        topics: Sequence[NameParts] = (),
        *,
        request_id: str | None = None,
        reason: str = "",
        message: Any = None,
    ) -> str:
        """The answer.

        Args:
            topics: parts of the topics that it names; those outside of lists are the first one's.
            request_id: JSON of the request's id; None if it has none.
            reason: why it is refused.
            message: the client's message, parsed, for JSON pointers.
        """

        def find(part: Part, topic: NameParts) -> str | None:
            if _is_pointer(part.name):
                return scalar_json(resolve(message, read_pointer(part.name)))
            if part.name == _NULL:
                return _NULL
            if part.name == "id":
                return _NULL if request_id is None and part.style == _NULL else request_id
            value = reason if part.name == "reason" else topic.get(part.name)
            return value if value is None or part.style else json.dumps(value)

        return _table(self._members, topics, find)


def _is_pointer(placeholder: str) -> bool:
    return placeholder.startswith("/")


def _read_text(text: str) -> Text:
    pieces = parts_of(text, ("number", _NULL), _PLACEHOLDER)
    for piece in pieces:
        if isinstance(piece, str):
            continue
        if _is_pointer(piece.name):
            read_pointer(piece.name)
        kind = _POINTER if _is_pointer(piece.name) else piece.name
        if len(pieces) > 1 and (piece.style or kind in _VALUES):
            raise TemplateError(f"{text!r}: {{{piece.name}}} is a value of its own: nothing beside")
        if piece.style == _NULL and kind != "id":
            raise TemplateError(
                f"{text!r}: only {{id:null}} has :null, and {{null}} is always null"
            )
        if piece.style == "number" and kind in (*_VALUES, "reason"):
            raise TemplateError(f"{text!r}: only a part of a name is made a :number")
    return Text(pieces)


def _filled(value: Any, topics: Sequence[NameParts], find: _Finder) -> str | None:
    """The JSON of a value; None if it stands for nothing."""
    if isinstance(value, Text):
        return _text(value, topics[0] if topics else {}, find)
    if isinstance(value, Mapping):
        return _table(value, topics, find)
    if isinstance(value, Repeated):
        return _list(_filled(value.element, group, find) for group in _groups(value, topics))
    if isinstance(value, list):
        return _list(_filled(part, topics, find) for part in value)
    return json.dumps(value)


def _table(members: Mapping[str, Any], topics: Sequence[NameParts], find: _Finder) -> str:
    found = [(key, _filled(part, topics, find)) for key, part in members.items()]
    return f"{{{','.join(f'{json.dumps(key)}:{text}' for key, text in found if text is not None)}}}"


def _list(elements: Iterable[str | None]) -> str:
    return f"[{','.join(element for element in elements if element is not None)}]"


def _text(text: Text, topic: NameParts, find: _Finder) -> str | None:
    if len(text.pieces) == 1 and isinstance(text.pieces[0], Part):
        return find(text.pieces[0], topic)
    joined = ""
    for piece in text.pieces:
        found = json.dumps(piece) if isinstance(piece, str) else find(piece, topic)
        if found is None:
            return None
        joined += json.loads(found)
    return json.dumps(joined)


def _groups(repeated: Repeated, topics: Sequence[NameParts]) -> list[list[NameParts]]:
    """The topics that share an element; one that has not all of its parts has none."""
    keys = sorted(shared_placeholders(repeated.element))
    groups: dict[tuple[str, ...], list[NameParts]] = {}
    for topic in topics:
        if all(key in topic for key in keys):
            groups.setdefault(tuple(topic[key] for key in keys), []).append(topic)
    return [*groups.values()]
