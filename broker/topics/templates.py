"""Small languages of venue files: names with parts, patterns of pointers.

Two kinds of text have braces in them, as `json_templates` have, and in all of them ``{{`` is a
brace:

* A **form** describes names: ``{channel}:{symbol:upper}`` reads ``trades:BTC-USDT`` as channel
  ``trades`` and symbol ``BTC-USDT``. A part may be ``:number`` (digits), ``:lower`` or ``:upper``
  (which case its letters must have).
* A **pattern** takes values out of a message: ``{/arg/channel}:{/arg/instId}`` joins what JSON
  pointers (RFC 6901) find. A value is a text, or a number as it is spelled. In an answer's pattern
  a part ``*`` of a pointer stands for every index of a list.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "ABSENT",
    "Form",
    "NameParts",
    "Number",
    "Part",
    "Pattern",
    "TemplateError",
    "check_topic_pattern",
    "glob_matches",
    "parse_json",
    "parts_of",
    "read_pointer",
    "resolve",
    "scalar_text",
    "value_at",
]

_PLACEHOLDER: Final = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?::([a-z]+))?")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_DIGITS: Final = re.compile(r"[0-9]{1,15}")
_ESCAPED: Final = re.compile(r"~(?![01])")
_EACH: Final = "*"
"""The part of a pointer that stands for every index of a list."""


class TemplateError(ValueError):
    """A form, template or pattern that can't be understood."""


NameParts = Mapping[str, str]
"""The parts of a name by what its form calls them."""


# ---- braces ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hole:
    """What stands between two braces."""

    text: str


def _split(text: str) -> Iterator[str | _Hole]:
    """The literal stretches of `text` and the holes between them.

    Raises:
        TemplateError: a brace is not closed.
    """
    literal, position = "", 0
    while position < len(text):
        if text.startswith("{{", position):
            literal, position = literal + "{", position + 2
        elif text.startswith("}}", position):
            literal, position = literal + "}", position + 2
        elif text[position] != "{":
            literal, position = literal + text[position], position + 1
        else:
            end = text.find("}", position)
            if end < 0:
                raise TemplateError(f"{text!r} has a brace that is not closed; write {{{{ for one")
            if literal:
                yield literal
            yield _Hole(text[position + 1 : end])
            literal, position = "", end + 1
    if literal:
        yield literal


@dataclass(frozen=True, slots=True)
class Part:
    """A placeholder: a part's name, and how it is written."""

    name: str
    style: str


def parts_of(
    text: str, styles: Sequence[str], placeholder: re.Pattern[str] = _PLACEHOLDER
) -> tuple[str | Part, ...]:
    """The literal stretches and placeholders of a text.

    Args:
        text: with braces.
        styles: what may stand after a placeholder's colon.
        placeholder: what placeholders look like: a name, and perhaps a colon and a style.

    Raises:
        TemplateError: it has other placeholders, or a brace that is not closed.
    """
    found: list[str | Part] = []
    for piece in _split(text):
        if isinstance(piece, str):
            found.append(piece)
            continue
        match = placeholder.fullmatch(piece.text)
        if match is None:
            raise TemplateError(
                f"{{{piece.text}}} in {text!r} is no name of a part, such as {{id}}"
            )
        if match[2] is not None and match[2] not in styles:
            known = " or ".join(f":{style}" for style in styles)
            raise TemplateError(f"{{{piece.text}}} in {text!r}: after the colon goes {known}")
        found.append(Part(match[1], match[2] or ""))
    return tuple(found)


# ---- names -----------------------------------------------------------------------------------


class Form:
    """The form of some of a venue's names, such as ``{channel}:{symbol}``.

    Args:
        text: the form.
        only: by part, patterns with ``*`` of which one must match.

    Attributes:
        text: as it was given.
        parts: what it calls the parts.
        is_limited: `only` excludes some names.

    Raises:
        TemplateError: it can't be understood.
    """

    __slots__ = ("_cases", "_only", "_pieces", "_regex", "is_limited", "parts", "text")

    def __init__(self, text: str, only: Mapping[str, Sequence[str]] | None = None) -> None:
        pieces = parts_of(text, ("number", "lower", "upper"))
        names = [piece.name for piece in pieces if isinstance(piece, Part)]
        if not pieces:
            raise TemplateError("a form is empty")
        if len({*names}) < len(names):
            raise TemplateError(f"{text!r} has a part twice")
        for name in names:
            if name in ("name", "id", "raw"):
                raise TemplateError(f"{text!r}: {{{name}}} has a meaning of its own")
        for first, second in itertools.pairwise(pieces):
            if isinstance(first, Part) and isinstance(second, Part):
                raise TemplateError(f"{text!r}: between two parts goes a character that ends one")
        for name in only or ():
            if name not in names:
                raise TemplateError(f"{text!r} has no part {name!r}")
        self.text = text
        self.parts = tuple(names)
        self.is_limited = bool(only)
        self._only = {name: tuple(globs) for name, globs in (only or {}).items()}
        self._cases = {
            piece.name: (str.lower if piece.style == "lower" else str.upper)
            for piece in pieces
            if isinstance(piece, Part) and piece.style in ("lower", "upper")
        }
        self._pieces = pieces
        self._regex = re.compile("".join(map(_regex_of, pieces)), re.DOTALL)

    def write(self, parts: NameParts) -> str:
        """The name that has these parts."""
        return "".join(p if isinstance(p, str) else parts[p.name] for p in self._pieces)

    def read(self, name: str) -> NameParts | None:
        """The parts of `name`, or None if it does not have this form; the case of its letters
        does not matter here."""
        match = self._regex.fullmatch(name)
        if match is None:
            return None
        parts = match.groupdict()
        for part, globs in self._only.items():
            if not any(glob_matches(glob, parts[part]) for glob in globs):
                return None
        return parts

    def case_fault(self, parts: NameParts) -> str | None:
        """What is wrong with the case of a name's letters, if anything."""
        for part, converted in self._cases.items():
            if converted(parts[part]) != parts[part]:
                return f"write its {part} as {converted(parts[part])!r}"
        return None


def _regex_of(piece: str | Part) -> str:
    if isinstance(piece, str):
        return re.escape(piece)
    return f"(?P<{piece.name}>{_DIGITS.pattern if piece.style == 'number' else '.+?'})"


def glob_matches(pattern: str, text: str) -> bool:
    """Does `text` match `pattern`, in which ``*`` stands for any characters and nothing else is
    special? Takes time in proportion to the text, whatever the pattern."""
    first, *middle = pattern.split("*")
    if not middle:
        return first == text
    last = middle.pop()
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


# ---- messages received -----------------------------------------------------------------------


class Number(str):
    """A number as the message spells it."""

    __slots__ = ()


def parse_json(payload: bytes) -> Any:
    """The JSON of `payload`, numbers as they are spelled and the first of equal keys; None if it is
    none."""
    try:
        return json.loads(
            payload,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_first_wins,
        )
    except (ValueError, RecursionError):
        return None


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs)) if len({k for k, _ in pairs}) < len(pairs) else dict(pairs)


def read_pointer(text: str) -> tuple[str, ...]:
    """The parts of a JSON pointer (RFC 6901).

    Raises:
        TemplateError: it is none.
    """
    if not text.startswith("/") or _ESCAPED.search(text):
        raise TemplateError(
            f"{text!r} is no JSON pointer: write /key/0, with ~1 for a / in a key and ~0 for a ~"
        )
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))


ABSENT: Final = object()
"""What stands where nothing is."""


def _step(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value.get(part, ABSENT)
    if isinstance(value, list) and _INDEX.fullmatch(part) and int(part) < len(value):
        return value[int(part)]
    return ABSENT


def resolve(value: Any, pointer: Sequence[str]) -> Any:
    """What is at `pointer` in parsed JSON; `ABSENT` if nothing is."""
    for part in pointer:
        value = _step(value, part)
    return value


def value_at(value: Any, pointer: Sequence[str]) -> str | None:
    """The text or number at `pointer`; None if there is none."""
    value = resolve(value, pointer)
    return value if isinstance(value, str) else None


def scalar_text(value: Any, pointer: Sequence[str]) -> str | None:
    """As `value_at`, and also "true", "false" and "null"."""
    value = resolve(value, pointer)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return value if isinstance(value, str) else None


class Pattern:
    """Texts and pointers that are joined to a name.

    Raises:
        TemplateError: it can't be understood, or has no pointer.
    """

    __slots__ = ("_pieces", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces = tuple(
            piece if isinstance(piece, str) else read_pointer(piece.text) for piece in _split(text)
        )
        if all(isinstance(piece, str) for piece in self._pieces):
            raise TemplateError(f"{text!r} has no pointer: write one in braces, as in {{/channel}}")

    def find(self, message: Any) -> str | None:
        """The joined text; None if a pointer finds nothing."""
        return next(iter(self.find_all(message)), None)

    def find_all(self, message: Any) -> list[str]:
        """The joined texts, one for each index that ``*`` can stand for."""
        return [*_joined(self._pieces, message)]


def _joined(pieces: Sequence[str | tuple[str, ...]], message: Any) -> Iterator[str]:
    each = next((p for p in pieces if isinstance(p, tuple) and _EACH in p), None)
    if each is None:
        values = [p if isinstance(p, str) else value_at(message, p) for p in pieces]
        if None not in values:
            yield "".join(value for value in values if value is not None)
        return
    before = each[: each.index(_EACH)]
    listed = resolve(message, before)
    if not isinstance(listed, list):
        return
    length = len(before) + 1
    for index in range(len(listed)):
        bound = (*before, str(index))
        yield from _joined(
            [
                (*bound, *p[length:])
                if isinstance(p, tuple) and p[:length] == (*before, _EACH)
                else p
                for p in pieces
            ],
            message,
        )


def check_topic_pattern(text: str) -> None:
    """Check a pattern that gives messages their topics; it has no ``*`` in its pointers.

    Raises:
        TemplateError: it can't be used.
    """
    Pattern(text)
    for piece in _split(text):
        if isinstance(piece, _Hole) and _EACH in read_pointer(piece.text):
            raise TemplateError(f"{text!r}: a topic's pointer names one index, such as /0")
