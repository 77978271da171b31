"""A configuration as text: TOML that people write, with ``${VAR}`` for what comes from the
environment, and JSON for a child process."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from .keys import Key, refuse_unknown
from .kinds import ConfigError

__all__ = ["Expanded", "from_json", "read", "to_json"]

Expanded = Mapping[str, Iterable[str]]
"""By key, what its variables were replaced by: each is a secret."""

_VARIABLE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_EXPANDED: Final = "_expanded"
"""Member of the JSON beside the keys."""


# ---- TOML ------------------------------------------------------------------------------------


def read(
    path: Path, keys: Mapping[str, Key], overridden: Container[str]
) -> tuple[dict[str, Any], Expanded]:
    """The values of a TOML file, as code would write them, and what came from the environment.

    Args:
        path: the file.
        keys: those that it may have.
        overridden: keys of it that are not wanted, and not expanded.

    Raises:
        ConfigError: the file can't be read, or has an unknown key, an unset variable or a text that
            stands for no value. Types and ranges are not checked.
    """
    table = _read_toml(path)
    refuse_unknown(table, keys)
    expanded: dict[str, list[str]] = {}
    values = {
        name: keys[name].from_toml(_expand(name, value, expanded), path.parent)
        for name, value in table.items()
        if name not in overridden
    }
    return values, expanded


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}; save it as such") from None
    except ValueError as error:  # TOMLDecodeError, or an absurd number
        where = re.search(r"\(at [^()]*\)$", str(error))  # the rest may quote the file
        raise ConfigError(f"{path} is not valid TOML {where[0] if where else ''}") from None


def _expand(key: str, value: Any, expanded: dict[str, list[str]]) -> Any:
    """`value` with its variables replaced; what replaced them is added to `expanded`."""
    if isinstance(value, list):
        return [_expand(key, part, expanded) for part in value]
    if isinstance(value, dict):
        return {name: _expand(key, part, expanded) for name, part in value.items()}
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        variable = found[1]
        if variable is None:
            raise ConfigError(f"{key}: write ${{NAME}} for a variable, or $${{ for a literal ${{")
        if variable not in os.environ:
            raise ConfigError(f"{key}: the environment variable {variable} is not set")
        expanded.setdefault(key, []).append(os.environ[variable])
        return os.environ[variable]

    return _VARIABLE.sub(replacement, value)


# ---- JSON ------------------------------------------------------------------------------------


def to_json(values: Mapping[str, Any], keys: Mapping[str, Key], expanded: Expanded) -> str:
    """`values` and what was expanded in them; `from_json` reads it."""
    table = {name: key.to_json(values[name]) for name, key in keys.items()}
    table[_EXPANDED] = {name: [*texts] for name, texts in expanded.items()}
    return json.dumps(table)


def from_json(text: str, keys: Mapping[str, Key]) -> tuple[dict[str, Any], Expanded]:
    """The values, and what was expanded in them.

    Raises:
        ConfigError: it is not what `to_json` wrote.
    """
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict) or table.keys() != {*keys, _EXPANDED}:
        raise ConfigError("this is not what Config.as_json wrote: pass its text on unchanged")
    expanded: Expanded = table.pop(_EXPANDED)
    return {name: keys[name].from_json(value) for name, value in table.items()}, expanded
