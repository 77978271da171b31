"""Tables of a venue file, read key by key with checks: what nobody asks for is an unknown key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from .rules import Condition
from .templates import TemplateError, read_pointer

__all__ = ["COUNT_MAX", "Table", "VenueError", "nearest", "type_name"]

COUNT_MAX: Final = 1_000_000
"""Largest number of anything."""

T = TypeVar("T")


class VenueError(ValueError):
    """A venue that is not there, or a venue file that can't be used: which file, which key, and
    what would be right."""


def nearest(wrong: str, known: Sequence[str]) -> str:
    """What may be meant by `wrong`: the nearest one, or all that there are."""
    near = difflib.get_close_matches(wrong.lower().replace("-", "_"), known, 1)
    near = near or [name for name in known if wrong and (wrong in name or name in wrong)][:1]
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


class Table:
    """A table of the file.

    Args:
        values: what TOML gave.
        file: as errors name it.
        path: of the table in its file.

    Every method that takes a key raises VenueError for a value that it can't return. After all keys
    are taken, `finish` refuses those that are left.
    """

    def __init__(self, values: Mapping[str, Any], file: str, path: str = "") -> None:
        self._values = values
        self._file = file
        self._path = path
        self._taken: list[str] = []

    def error(self, key: str, what: str) -> VenueError:
        """An error about a key of this table; "" for the table itself."""
        place = f"{self._path}.{key}" if self._path and key else self._path or key
        return VenueError(f"{self._file}: {place}: {what}" if place else f"{self._file}: {what}")

    def free_keys(self) -> tuple[str, ...]:
        """What this table holds, for tables with free keys."""
        self._taken += self._values
        return tuple(self._values)

    def take(self, key: str, what: str, *types: type, required: bool = False) -> Any:
        """The value of a key, or None; `what` it must be."""
        self._taken.append(key)
        value = self._values.get(key)
        if value is None:
            if required:
                raise self.error(key, f"is missing: give {what}")
            return None
        if (isinstance(value, bool) and bool not in types) or not isinstance(value, types):
            raise self.error(key, f"must be {what}, not {type_name(value)}")
        return value

    def text(self, key: str, *, required: bool = False) -> str | None:
        """A text that is not empty."""
        value = self.take(key, "a text", str, required=required)
        if value == "":
            raise self.error(key, "is empty; leave it out or give a text")
        return cast("str | None", value)

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of texts; a single one may stand alone."""
        value = self.take(key, "a text or a list of texts", str, list, required=required)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        for part in found:
            if not isinstance(part, str) or not part:
                raise self.error(key, f"must hold texts, not {type_name(part)}")
        if required and not found:
            raise self.error(key, "is empty; give at least one")
        return tuple(found)

    def number(self, key: str, most: float, *, required: bool = False) -> float | None:
        """A number above 0 and up to `most`."""
        value = self.take(key, "a number", int, float, required=required)
        if value is not None and not 0 < value <= most:
            raise self.error(key, f"is {value}; give a number above 0, up to {most:,.0f}")
        return None if value is None else float(value)

    def count(self, key: str) -> int | None:
        """A whole number, 1 or more."""
        value = self.take(key, "a whole number", int)
        if value is not None and not 1 <= value <= COUNT_MAX:
            raise self.error(key, f"is {value}; give a number from 1 to {COUNT_MAX:,}")
        return cast("int | None", value)

    def flag(self, key: str) -> bool:
        """True or false; false if it is not there."""
        return bool(self.take(key, "true or false", bool))

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of `choices`; needed if there is no default."""
        value = self.take(key, f"one of {', '.join(choices)}", str, required=default is None)
        if value is None:
            return cast("str", default)
        if value not in choices:
            raise self.error(key, f"is {value!r}: {nearest(value, choices)}")
        return cast("str", value)

    def table(self, key: str, *, required: bool = False) -> Table | None:
        """A table in this one."""
        value = self.take(key, "a table", dict, required=required)
        return None if value is None else Table(value, self._file, self._place(key))

    def tables(self, key: str, *, required: bool = False) -> list[Table]:
        """A list of tables."""
        values = self.take(key, f"a list of tables, [[{key}]]", list, required=required) or []
        for value in values:
            if not isinstance(value, dict):
                raise self.error(key, f"must hold tables, not {type_name(value)}")
        return [
            Table(value, self._file, f"{self._place(key)}[{number}]")
            for number, value in enumerate(values, 1)
        ]

    def conditions(self, key: str) -> tuple[Condition, ...]:
        """A table of JSON pointers, and what must be there; empty if it is not there."""
        table = self.table(key) or Table({}, self._file)
        conditions = []
        for text in table.free_keys():
            pointer = table.parsed(text, read_pointer, text)
            what = "a text, number, true, false or a list"
            value = table.take(text, what, str, int, float, bool, list)
            values = value if isinstance(value, list) else [value]
            for part in values:
                if not isinstance(part, str | int | float):
                    raise table.error(text, f"must hold texts or numbers, not {type_name(part)}")
            conditions.append(Condition(pointer, tuple(map(_spelled, values))))
        return tuple(conditions)

    def parsed(self, key: str, parse: Callable[[Any], T], value: Any) -> T:
        """`parse(value)`, whose error then names the key."""
        try:
            return parse(value)
        except TemplateError as error:
            raise self.error(key, str(error)) from None

    def finish(self) -> None:
        """Refuse what nobody has taken."""
        for key in self._values:
            if key not in self._taken:
                raise self.error("", f"there is no key {key!r}: {nearest(key, self._taken)}")

    def _place(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def type_name(value: Any) -> str:
    """What a value is, for an error."""
    names = {
        str: "a text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    if value == "":
        return "an empty text"
    return names.get(type(value), f"a {type(value).__name__}")
