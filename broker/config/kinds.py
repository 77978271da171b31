"""What a key of the configuration may hold: its type, its range, and how files write it.

When a `Config` is made, a value passes through `accept`, which checks its type, then through
`fault`, which checks the rest. A file's value passes through `from_toml` first.
"""

from __future__ import annotations

import base64
import enum
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from ringcast import shm

from ..topics.templates import TemplateError, check_topic_pattern, read_pointer
from .redaction import HIDDEN

__all__ = [
    "TOKEN_CHARACTERS",
    "Address",
    "Choice",
    "ConfigError",
    "Count",
    "File",
    "Flag",
    "HeaderValue",
    "Headers",
    "HostName",
    "Kind",
    "Messages",
    "Mode",
    "Name",
    "Patterns",
    "Pointer",
    "Proxy",
    "Rate",
    "Seconds",
    "SecondsOrNever",
    "Size",
    "Text",
    "Texts",
    "Tokens",
    "TopicPatterns",
    "Url",
    "VenueName",
    "is_function",
    "is_header_value",
    "is_token",
]

_SECONDS_MAX: Final = 1_000_000
"""Any wait must fit poll(), which counts milliseconds in 31 bits."""
_RATE_MAX: Final = 1_000_000
"""Messages a second."""
_POINTER_MAX: Final = 64
"""Characters of a pointer as JSON: it stands in the ring's note."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TOKEN_CHARACTERS: Final = "letters, digits and !#$%&'*+-.^_`|~"  # noqa: S105 - no password
"""Those of a token, for an error."""
_NOT_TOKENS: Final = f"use {TOKEN_CHARACTERS} only"
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_HOST_NAME: Final = re.compile(r"[0-9A-Za-z_:-][0-9A-Za-z_:.-]{0,252}")
_VISIBLE: Final = re.compile(r"[!-~]+")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMG]iB)?")
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MODE: Final = re.compile(r"(?:0o?)?([0-7]{3})")


def is_token(text: str) -> bool:
    """Is it a token, such as the name of a header (RFC 9110 section 5.6.2)?"""
    return _TOKEN.fullmatch(text) is not None


def is_header_value(text: str) -> bool:
    """Can it be the value of a header (RFC 9110 section 5.5)?"""
    return _HEADER_VALUE.fullmatch(text) is not None


class ConfigError(ValueError):
    """A configuration that can't be used: which key, and what would be right. Holds no secret."""


@dataclass(frozen=True)
class Kind:
    """What a key may hold, and what it is for.

    Attributes:
        summary: what the key is, in one sentence; also the help of its option.
        details: what else to know, and why the default is what it is.
        secret: the value is never shown.
        expected: what the value must be, in words for an error.
        accepted: the types of such values.

    The errors that `accept` and `from_toml` raise have a text that goes after the name of the key,
    and that shows no value: until all types are right, nobody knows what is secret.
    """

    summary: str
    details: str = ""
    secret: bool = field(default=False, kw_only=True)

    expected: ClassVar[str] = "text"
    accepted: ClassVar[tuple[type, ...]] = (str,)

    def accept(self, value: Any, /) -> Any:
        """What a `Config` holds for `value`.

        Raises:
            TypeError: it is of a wrong type.
        """
        is_disguised = isinstance(value, bool) and bool not in self.accepted  # True is an int
        if is_disguised or not isinstance(value, self.accepted):
            raise TypeError(f"must be {self.expected}, not {type(value).__name__}")
        return value

    def fault(self, _value: Any, /) -> str | None:
        """What is wrong with a value of the right type, and what would be right; None if it is
        fine."""
        return None

    def from_toml(self, value: Any, _folder: Path, /) -> Any:
        """What code would write for the `value` that a file in `folder` has. What a file should not
        hold stays as it is: `accept` refuses it.

        Raises:
            ValueError: a text that stands for no value.
        """
        return value

    def to_json(self, value: Any, /) -> Any:
        """`value` as JSON can hold it; `from_json` is the way back."""
        return value

    def from_json(self, value: Any, /) -> Any:
        """What `accept` takes, for what `to_json` gave."""
        return value

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        """`value` for people to see; `redact` takes secrets out of a text. It comes before quoting,
        which would escape what it looks for."""
        return redact(repr(value))


# ---- text ------------------------------------------------------------------------------------


class Text(Kind):
    """Any text."""

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        return repr(redact(value))


class Name(Text):
    """The name of a ring."""

    def fault(self, value: Any, /) -> str | None:
        try:
            shm.check_name(value)
        except ValueError:
            return "use 1 to 20 of a-z, 0-9, _ and -, starting with a letter or digit"
        return None


class VenueName(Text):
    """The name of a venue, or the path of a venue file; in a configuration file, a relative path
    starts at its folder."""

    def from_toml(self, value: Any, folder: Path, /) -> Any:
        is_path = isinstance(value, str) and ("/" in value or value.endswith(".toml"))
        return str(folder / value) if is_path else value


class HostName(Text):
    """A host, without scheme and port."""

    def fault(self, value: Any, /) -> str | None:
        return None if _HOST_NAME.fullmatch(value) else "give a host name, without scheme and port"


class HeaderValue(Text):
    """The value of an HTTP header."""

    def fault(self, value: Any, /) -> str | None:
        if value and is_header_value(value):
            return None
        return "it is empty, or has a line break or control character"


@dataclass(frozen=True)
class Choice(Text):
    """One of the texts of `choices`."""

    choices: type[enum.StrEnum] = field(kw_only=True)

    def accept(self, value: Any, /) -> Any:
        return str(Text.accept(self, value))

    def fault(self, value: Any, /) -> str | None:
        if value in [*self.choices]:
            return None
        quoted = (f'"{choice}"' for choice in self.choices)
        return f"it must be {' or '.join(quoted)}"


class Address(Text):
    """SCHEME://HOST:PORT with what may follow; `schemes` are the ones that are understood."""

    schemes: ClassVar[tuple[str, ...]]

    def fault(self, value: Any, /) -> str | None:
        if not _VISIBLE.fullmatch(value):
            return "percent-encode spaces, control characters and all that is not ASCII"
        if value.partition("://")[0] not in self.schemes or "://" not in value:
            return f"it must start with {' or '.join(f'{scheme}://' for scheme in self.schemes)}"
        try:
            parts = urlsplit(value)
            host, port = parts.hostname, parts.port
        except ValueError:  # its message may quote the password
            host, port = None, None
        if not host or port == 0:
            return (
                "it has no valid host and port: SCHEME://HOST or SCHEME://HOST:PORT, port 1 to"
                " 65535; in a password, percent-encode / ? # @"
            )
        return None


class Url(Address):
    """Where a WebSocket server is."""

    schemes = ("ws", "wss")

    def fault(self, value: Any, /) -> str | None:
        fault = Address.fault(self, value)
        if fault is None and "#" in value:
            return "a WebSocket URL has no fragment; write # as %23"
        return fault


class Proxy(Address):
    """Where a proxy is, and whom it lets through."""

    schemes = ("http", "socks4", "socks4a", "socks5", "socks5h")

    def fault(self, value: Any, /) -> str | None:
        fault = Address.fault(self, value)
        if fault is None and re.search("[/?#]", value.partition("://")[2].removesuffix("/")):
            return "nothing may follow the port; in a password, percent-encode / ? #"
        return fault

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        return repr(redact(re.sub("(?s)//.*@", "//", value)))


# ---- several texts ---------------------------------------------------------------------------


def _check_parts(parts: tuple[Any, ...], *types: type) -> None:
    for part in parts:
        if not isinstance(part, types):
            raise TypeError(f"must hold texts, not {type(part).__name__}")


class Texts(Kind):
    """A list of texts, each one once."""

    expected = "a list of texts"
    accepted: ClassVar[tuple[type, ...]] = (list, tuple)

    def accept(self, value: Any, /) -> Any:
        parts = tuple(Kind.accept(self, value))
        _check_parts(parts, str)
        return parts

    def fault(self, value: Any, /) -> str | None:
        if not all(value):
            return "a text of it is empty"
        if any(map(_SURROGATE.search, value)):
            return "a text of it is not valid Unicode"
        if len(set(value)) < len(value):
            return "name each one once"
        return None

    def to_json(self, value: Any, /) -> Any:
        return [*value]

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        return repr(tuple(map(redact, value)))


class Tokens(Texts):
    """A list of tokens (RFC 9110 section 5.6.2), each one once."""

    def fault(self, value: Any, /) -> str | None:
        return Texts.fault(self, value) if all(map(is_token, value)) else _NOT_TOKENS


class Patterns(Texts):
    """A list of patterns of JSON pointers; a single one may stand alone."""

    expected = "a pattern or a list of patterns"
    accepted = (str, list, tuple)

    def accept(self, value: Any, /) -> Any:
        return Texts.accept(self, (value,) if isinstance(value, str) else value)

    def fault(self, value: Any, /) -> str | None:
        try:
            for pattern in value:
                check_topic_pattern(pattern)
        except TemplateError as error:
            return str(error)
        return Texts.fault(self, value)


class Pointer(Text):
    """A JSON pointer (RFC 6901)."""

    def fault(self, value: Any, /) -> str | None:
        try:
            read_pointer(value)
        except TemplateError as error:
            return str(error)
        if set("{}*") & set(value):
            return "a pointer names one place, without {, } and *"
        if not value.isprintable() or len(json.dumps(value)) > _POINTER_MAX:
            return f"it must be printable, and as JSON have {_POINTER_MAX} characters at most"
        return None


def is_function(text: str) -> bool:
    """Does the text name a Python function, as "module:function"?"""
    return _FUNCTION.fullmatch(text) is not None


class TopicPatterns(Patterns):
    """Patterns, or one Python function."""

    expected = 'a pattern, a list of patterns, or one function as "module:function"'

    def fault(self, value: Any, /) -> str | None:
        if len(value) == 1 and is_function(value[0]):
            return None
        if any(map(is_function, value)):
            return "a function stands alone: give one function, or patterns"
        return Patterns.fault(self, value)


class Messages(Kind):
    """A list of messages: str for a text, bytes (in code only) for a binary one."""

    expected = "a list of texts"
    accepted = (list, tuple)

    def accept(self, value: Any, /) -> Any:
        parts = tuple(Kind.accept(self, value))
        _check_parts(parts, str, bytes)
        return parts

    def fault(self, value: Any, /) -> str | None:
        for number, message in enumerate(value, 1):
            if isinstance(message, str) and _SURROGATE.search(message):
                return f"message {number} is not valid Unicode"
        return None

    def to_json(self, value: Any, /) -> Any:
        return [
            message if isinstance(message, str) else {"base64": base64.b64encode(message).decode()}
            for message in value
        ]

    def from_json(self, value: Any, /) -> Any:
        return [
            message
            if isinstance(message, str)
            else base64.b64decode(message["base64"], validate=True)
            for message in value
        ]


class Headers(Kind):
    """A table of HTTP headers. Their names are shown, their values are not."""

    expected = "a table of texts"
    accepted = (Mapping,)

    def accept(self, value: Any, /) -> Any:
        # A copy that nobody can change: what was checked is what is used.
        table = dict(Kind.accept(self, value))
        _check_parts((*table, *table.values()), str)
        return MappingProxyType(table)

    def to_json(self, value: Any, /) -> Any:
        return dict(value)

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        return repr({redact(name): HIDDEN for name in value})


# ---- files, flags, numbers -------------------------------------------------------------------


class File(Kind):
    """A file that this user can read. In a configuration file, a relative path starts at its
    folder."""

    expected = "a path"
    accepted = (str, Path)

    def accept(self, value: Any, /) -> Any:
        return Path(Kind.accept(self, value))

    def fault(self, value: Any, /) -> str | None:
        try:
            found = value.is_file()
        except OSError as error:
            return f"cannot look at it: {error.strerror}"
        if not found:
            return "there is no such file"
        if not os.access(value, os.R_OK):
            return "this user can't read the file; change its permissions"
        return None

    def from_toml(self, value: Any, folder: Path, /) -> Any:
        return folder / value if isinstance(value, str) else value

    def to_json(self, value: Any, /) -> Any:
        return str(value)

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        return repr(redact(str(value)))


class Flag(Kind):
    """Yes or no."""

    expected = "true or false"
    accepted = (bool,)


@dataclass(frozen=True)
class Count(Kind):
    """A whole number from `least` to `most`. In a file also as text, which can come from a
    variable."""

    least: int | None = field(default=None, kw_only=True)
    most: int | None = field(default=None, kw_only=True)

    expected = "a whole number"
    accepted = (int,)
    units: ClassVar[bool] = False
    example: ClassVar[str] = '"65536"'

    def fault(self, value: Any, /) -> str | None:
        if self.most is not None and not (self.least or 0) <= value <= self.most:
            return f"give a number from {self.least or 0} to {self.most}"
        if self.least is not None and value < self.least:
            return f"give a number, {self.least} or more"
        return None

    def from_toml(self, value: Any, _folder: Path, /) -> Any:
        if not isinstance(value, str):
            return value
        size = _SIZE.fullmatch(value)
        if size is None or (size[2] and not self.units):
            raise ValueError(f"(its text is not shown): write it like {self.example}")
        return int(size[1]) * _UNITS[size[2]]


class Size(Count):
    """A number of bytes; as text also with KiB, MiB or GiB."""

    expected = "a number of bytes"
    units = True
    example = '"64MiB" (KiB, MiB, GiB) or "65536"'


class Mode(Kind):
    """Permissions; in a file also as octal text."""

    expected = "a whole number"
    accepted = (int,)

    def from_toml(self, value: Any, _folder: Path, /) -> Any:
        if not isinstance(value, str):
            return value
        mode = _MODE.fullmatch(value)
        if mode is None:
            raise ValueError('(its text is not shown): write it as "0600" or "0640"')
        return int(mode[1], 8)

    def display(self, value: Any, redact: Callable[[str], str], /) -> str:
        return redact(oct(value))


class _Number(Kind):
    """An int or a float, kept as a float; what is too large for one becomes infinite."""

    accepted = (int, float)

    def accept(self, value: Any, /) -> Any:
        number = Kind.accept(self, value)
        try:
            return float(number)
        except OverflowError:
            return float("inf")


@dataclass(frozen=True)
class Seconds(_Number):
    """A time. `may_be_zero`: so is zero."""

    may_be_zero: bool = field(default=False, kw_only=True)

    expected = "a number of seconds"

    def fault(self, value: Any, /) -> str | None:
        if 0 < value <= _SECONDS_MAX or (value == 0 and self.may_be_zero):
            return None
        return f"give seconds {'from' if self.may_be_zero else 'above'} 0, up to {_SECONDS_MAX}"


@dataclass(frozen=True)
class SecondsOrNever(Seconds):
    """A time; "never" in files and None in code mean that it does not come."""

    expected = 'a number of seconds, or "never" (in code: None)'

    def from_toml(self, value: Any, _folder: Path, /) -> Any:
        return None if value == "never" else value


class Rate(_Number):
    """Messages a second."""

    expected = "a number of messages a second"

    def fault(self, value: Any, /) -> str | None:
        if 0 < value <= _RATE_MAX:
            return None
        return f"give messages a second, above 0 and up to {_RATE_MAX}"
