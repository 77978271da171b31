"""What a client's message says, by the template of the same request: the inverse of filling it.

A template of a request (`json_templates.JsonTemplate`) says what is constant in a message and where
it has the parts of a topic's name. Here a message is matched against it:

* Constants must be equal. Members of tables may come in any order; others than those of the
  template must be `optional`.
* ``{id}`` may be a text, a number or null, whatever the template says, or be missing.
* A repeated list may have any number of elements. Each element of the outermost lists is matched by
  itself, because elements may have different templates: none of the rows has those that this one
  does not match.
* A part that is found in several places must be the same in all. Lists beside each other name every
  combination of their elements.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ringcast.shm.topics import NAME_MAX

from .answer_templates import scalar_json
from .json_templates import JsonTemplate, Repeated, Text, placeholders
from .rules import Condition
from .templates import NameParts, Number, Part

__all__ = ["Element", "Reading", "Row", "constant_texts", "match"]

_ROWS_MAX: Final = 4096
"""Topics of a message. One that names more is not read: lists that are combined could name
millions in a few kilobytes."""
_EACH: Final = "*"
"""The part of a pointer that stands for every index of a list."""

_Path = tuple[str, ...]


class Element(NamedTuple):
    """An element of one of the outermost lists of a message."""

    path: _Path
    position: int


@dataclass(frozen=True, slots=True)
class Row:
    """What one topic's name has in a message.

    Attributes:
        parts: of the name; or "name", all of it.
        elements: where they were found, as far as that is in lists.
    """

    parts: NameParts
    elements: tuple[Element, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a template finds in a message.

    Attributes:
        id: JSON of the message's id; None if it has none.
        rows: one for each topic, in the message's order.
        elements: all elements of the outermost lists.
    """

    id: str | None
    rows: tuple[Row, ...]
    elements: frozenset[Element]


def match(
    template: JsonTemplate, message: Any, optional: Sequence[Condition] = ()
) -> Reading | None:
    """What `template` finds in a message that `parse_json` has read; None if they do not match.

    Args:
        template: of a request.
        message: of a client.
        optional: what it may have besides. A part ``*`` of a pointer stands for each index of a
            list.
    """
    walk = _Walk(optional)
    rows = walk.rows(template.value, message, (), is_outermost=True)
    if rows is None:
        return None
    return Reading(walk.id, tuple(rows), frozenset(walk.elements))


def constant_texts(template: JsonTemplate) -> tuple[tuple[str, str], ...]:
    """The members at the top of a template that are texts without placeholders."""
    members = template.value.items() if isinstance(template.value, Mapping) else ()
    return tuple(
        (key, "".join(map(str, part.pieces)))
        for key, part in members
        if isinstance(part, Text) and not placeholders(part)
    )


class _Walk:
    """A template and a message, side by side. Its depth is the template's, or that of an `optional`
    pointer, whatever the message is."""

    def __init__(self, optional: Sequence[Condition]) -> None:
        self._optional = optional
        self.id: str | None = None
        self.elements: set[Element] = set()

    def rows(
        self, template: Any, value: Any, path: _Path, *, is_outermost: bool
    ) -> list[Row] | None:
        """The topics below a value; None if it does not match."""
        if isinstance(template, Text):
            return self._text(template, value)
        if isinstance(template, Mapping):
            return self._table(template, value, path, is_outermost=is_outermost)
        if isinstance(template, Repeated):
            return self._repeated(template, value, path, is_outermost=is_outermost)
        if isinstance(template, list):
            if not isinstance(value, list) or len(value) != len(template):
                return None
            found = [
                self.rows(part, element, (*path, _EACH), is_outermost=is_outermost)
                for part, element in zip(template, value, strict=True)
            ]
            return _joined(found)
        if isinstance(template, bool):
            return [Row({})] if value is template else None
        return [Row({})] if isinstance(value, Number) and value == json.dumps(template) else None

    def _table(
        self, template: Mapping[str, Any], value: Any, path: _Path, *, is_outermost: bool
    ) -> list[Row] | None:
        if not isinstance(value, dict):
            return None
        for key in value.keys() - template.keys():
            if not self._is_optional(value[key], (*path, key)):
                return None
        found = []
        for key, part in template.items():
            if key in value:
                found.append(self.rows(part, value[key], (*path, key), is_outermost=is_outermost))
            elif not _is_id(part):
                return None
        return _joined(found)

    def _repeated(
        self, template: Repeated, value: Any, path: _Path, *, is_outermost: bool
    ) -> list[Row] | None:
        if not isinstance(value, list) or len(value) > _ROWS_MAX:
            return None
        rows: list[Row] = []
        for index, element in enumerate(value):
            found = self.rows(template.element, element, (*path, _EACH), is_outermost=False)
            if is_outermost:
                self.elements.add(Element(path, index))
                rows += [Row(row.parts, (Element(path, index),)) for row in found or ()]
            elif found is None:
                return None
            else:
                rows += found
            if len(rows) > _ROWS_MAX:
                return None
        return rows

    def _text(self, template: Text, value: Any) -> list[Row] | None:
        if _is_id(template):
            self.id = scalar_json(value)
            return None if self.id is None or isinstance(value, bool) else [Row({})]
        if not isinstance(value, str):
            return None
        pieces = template.pieces
        if len(pieces) == 1 and isinstance(pieces[0], Part):
            is_number = pieces[0].style == "number"
            fits = isinstance(value, Number) is is_number
            return [Row({pieces[0].name: str(value)})] if fits else None
        if isinstance(value, Number):
            return None
        pattern, length_max = _pattern(template)
        found = pattern.fullmatch(value) if len(value) <= length_max else None
        return None if found is None else [Row(found.groupdict())]

    def _is_optional(self, value: Any, path: _Path) -> bool:
        """May a member be there that the template does not have?"""
        if not any(condition.pointer[: len(path)] == path for condition in self._optional):
            return False
        if isinstance(value, dict):
            return bool(value) and all(
                self._is_optional(part, (*path, key)) for key, part in value.items()
            )
        if isinstance(value, list):
            return bool(value) and all(self._is_optional(part, (*path, _EACH)) for part in value)
        return any(c.pointer == path and c.matches(value) for c in self._optional)


def _is_id(template: Any) -> bool:
    return isinstance(template, Text) and any(
        isinstance(piece, Part) and piece.name == "id" for piece in template.pieces
    )


@lru_cache(maxsize=1024)
def _pattern(text: Text) -> tuple[re.Pattern[str], int]:
    """What a text with several pieces matches, and the length that it can have: that of a name
    bounds the parts, and so the time that matching takes."""
    pattern, length = "", NAME_MAX
    seen: set[str] = set()
    for piece in text.pieces:
        if isinstance(piece, str):
            pattern += re.escape(piece)
            length += len(piece)
        elif piece.name in seen:
            pattern += f"(?P={piece.name})"
            length += NAME_MAX
        else:
            pattern += f"(?P<{piece.name}>.+?)"
            seen.add(piece.name)
    return re.compile(pattern, re.DOTALL), length


def _joined(found: Sequence[list[Row] | None]) -> list[Row] | None:
    """Every combination of rows; None if parts of one differ, or there are too many."""
    rows = [Row({})]
    for more in found:
        if more is None or len(rows) * len(more) > _ROWS_MAX:
            return None
        combined = []
        for one, other in itertools.product(rows, more):
            if any(one.parts.get(name, part) != part for name, part in other.parts.items()):
                return None
            parts = {**one.parts, **other.parts}
            combined.append(Row(parts, one.elements + other.elements))
        rows = combined
    return rows
