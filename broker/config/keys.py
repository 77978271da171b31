"""The keys of a configuration, each written once: a field with a kind, in a class under `@keyed`.

From that one place come the checks of types and ranges, the conversion from TOML and JSON, the
hint at the right key for a wrong one, the help of the command line's options and the list in the
class's docstring.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, dataclass_transform

from .hints import hint
from .kinds import ConfigError, Kind

__all__ = ["Key", "keyed", "keys_of", "refuse_unknown", "setting"]

_KIND: Final = "kind"
"""The field's metadata under which its kind stands."""
_DOCSTRING_WIDTH: Final = 96

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: as files, code and (with dashes) options write it.
        kind: what it may hold, and what it is for.
        annotation: its type in code.
        is_optional: may it be None?
        is_required: must it be given? Else there is a default.
        default: what it is if it is not given; None if it must be.
    """

    name: str
    kind: Kind
    annotation: str
    is_optional: bool
    is_required: bool
    default: Any

    def accept(self, value: Any) -> Any:
        """What a configuration holds for `value`.

        Raises:
            ConfigError: it is of a wrong type.
        """
        if value is None and self.is_optional:
            return None
        try:
            return self.kind.accept(value)
        except TypeError as error:
            raise ConfigError(f"{self.name} {error}") from None

    def from_toml(self, value: Any, folder: Path) -> Any:
        """What code would write for the `value` that a file in `folder` has.

        Raises:
            ConfigError: a text that stands for no value.
        """
        try:
            return self.kind.from_toml(value, folder)
        except ValueError as error:
            raise ConfigError(f"{self.name} {error}") from None

    def to_json(self, value: Any) -> Any:
        """`value` as JSON can hold it."""
        return None if value is None else self.kind.to_json(value)

    def from_json(self, value: Any) -> Any:
        """What `to_json` was given, or equal to it once accepted."""
        return None if value is None else self.kind.from_json(value)

    def describe(self) -> str:
        """The key for a reference: type, meaning, default."""
        text = f"{self.name} ({self.annotation}): {self.kind.summary}"
        if self.kind.details:
            text += f" {self.kind.details}"
        if self.is_required:
            return f"{text} Required."
        if self.default in (None, ()) or self.default == {}:
            return text
        return f"{text} Default: {self.kind.display(self.default, str)}."


def setting(kind: Kind, **how: Any) -> Any:
    """A field that is a key; `how` is what `dataclasses.field` takes: a default, if it has one."""
    return field(metadata={_KIND: kind}, **how)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting, field))
def keyed(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose keys are the fields that `setting` made.

    A wrong or missing keyword raises ConfigError with a hint, as a wrong key in a file does, and
    the docstring lists the keys.
    """
    made: type[T] = dataclass(frozen=True, slots=True, kw_only=True, repr=False)(cls)
    keys = keys_of(made)
    names = {part.name for part in dataclasses.fields(made)}  # type: ignore[arg-type]
    plain_init = made.__init__

    @functools.wraps(plain_init)
    def __init__(self: T, **values: Any) -> None:  # noqa: N807 - it is one
        refuse_unknown((name for name in values if name not in names), keys)
        for key in keys.values():
            if key.is_required and key.name not in values:
                raise ConfigError(f"{key.name} is missing: {key.kind.summary}")
        plain_init(self, **values)

    made.__init__ = __init__  # type: ignore[method-assign, assignment]
    made.__doc__ = _docstring(made, keys.values())
    return made


def keys_of(cls: type) -> Mapping[str, Key]:
    """The keys of a class under `@keyed`, by name, in their order."""
    hints = typing.get_type_hints(cls)
    keys = {}
    for part in dataclasses.fields(cls):
        if _KIND not in part.metadata:
            continue
        default = part.default
        if part.default_factory is not dataclasses.MISSING:
            default = part.default_factory()
        is_required = default is dataclasses.MISSING
        keys[part.name] = Key(
            name=part.name,
            kind=part.metadata[_KIND],
            annotation=str(part.type),
            is_optional=type(None) in typing.get_args(hints[part.name]),
            is_required=is_required,
            default=None if is_required else default,
        )
    return MappingProxyType(keys)


def refuse_unknown(names: Iterable[str], keys: Mapping[str, Key]) -> None:
    """Raise ConfigError for the first of `names` that is no key, with a hint at the right one."""
    for name in names:
        if name not in keys:
            raise ConfigError(f"there is no key {name!r}: {hint(name, keys)}")


def _docstring(cls: type, keys: Iterable[Key]) -> str:
    parts = [inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:"]
    parts += (
        textwrap.fill(
            key.describe(),
            _DOCSTRING_WIDTH,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key in keys
    )
    return "\n".join(parts) + "\n"
