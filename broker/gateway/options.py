"""What a client wants, as the URL that it connects to says: ``/?topics=a,b*&start=oldest``.

A client of an exchange sends that exchange's paths and parameters. They are accepted whatever they
are, and kept for those who know them. In a value, ``%20`` is a space and ``+`` is itself: tokens
and topics have plus signs, and are written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Self
from urllib.parse import unquote, unquote_to_bytes

from ringcast import shm
from ringcast.shm.group import Balance

__all__ = ["ClientOptions", "OptionsError", "Parameter", "parameters"]

_IN_FLIGHT_DEFAULT: Final = 64
_IN_FLIGHT_MAX: Final = 65536
_DELIVERIES_MAX: Final = 200
_SEQUENCE_MAX: Final = 2**64 - 1
_LABEL_MAX: Final = 63
"""Bytes: what a ring keeps of a label."""
_TOPIC_MAX: Final = 127
"""Bytes: what a ring keeps of a topic's name."""
_SHOWN_MAX: Final = 60
"""Characters of a wrong value that an error shows."""

_TARGET: Final = re.compile(r"/[!-~]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


class OptionsError(ValueError):
    """A request target whose wishes can't be met: which parameter, and what would be right. Shows
    no token. The server answers 400 with it."""


class Parameter(NamedTuple):
    """One parameter of a query.

    Attributes:
        name: percent-decoded.
        raw: the value as it was sent; empty if there is none.
    """

    name: str
    raw: str

    @property
    def data(self) -> bytes:
        """The value, percent-decoded."""
        return unquote_to_bytes(self.raw)


def parameters(target: str) -> Iterator[Parameter]:
    """The parameters of a request target's query, in their order."""
    for part in target.partition("?")[2].split("&"):
        if part:
            name, _, raw = part.partition("=")
            yield Parameter(unquote(name), raw)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What one client wants. Its `repr` shows no token and nothing of `rest`.

    Attributes:
        path: of the request target, as it was sent.
        rest: names and values, both percent-decoded, of the parameters that are not listed here, in
            the order in which they were sent.
        topics: names and patterns of topics; None for every message, empty for none as yet. In the
            URL they stand between commas, so a name with a comma in it can't be one of them.
        others: with `topics`, messages that have no topic, too.
        start: where to begin: "latest", "oldest" or a sequence.
        policy: what a client that is too slow gets: "lossy" leaves it behind, "block" holds the
            ring for it.
        label: what to call the client in listings; None if it doesn't say.
        group: the work group to be a member of; None for none.
        balance: how the group shares messages out.
        in_flight: messages that the member has, at most, and that are not acknowledged.
        max_deliveries: after how many deliveries the group sets a message aside; None for what the
            group has.
        token: what lets the client in; None if it isn't in the URL.
    """

    path: str = "/"
    rest: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    topics: tuple[str, ...] | None = None
    others: bool = False
    start: Literal["latest", "oldest"] | int = "latest"
    policy: Literal["lossy", "block"] = "lossy"
    label: str | None = None
    group: str | None = None
    balance: Balance = "any"
    in_flight: int = _IN_FLIGHT_DEFAULT
    max_deliveries: int | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, target: str) -> Self:
        """Read the target of a handshake's request (RFC 9112 section 3.2.1).

        Raises:
            OptionsError: a parameter of this class is given twice or has a wrong value, or one that
                is for members of groups is given without a group; or the target is none: it does
                not start with a slash, or has other characters than visible ASCII, or a "#".
        """
        if not _TARGET.fullmatch(target) or "#" in target:
            raise OptionsError(
                "the request target starts with / and has visible ASCII characters only, no #:"
                " percent-encode others"
            )
        known: dict[str, Any] = {}
        rest = []
        for parameter in parameters(target):
            read = _READERS.get(parameter.name)
            if read is None:
                rest.append((parameter.name, unquote(parameter.raw)))
                continue
            if parameter.name in known:
                raise OptionsError(f"{parameter.name}= is given twice: give it once")
            known[parameter.name] = _value(parameter, read)
        _check_together(known)
        return cls(path=target.partition("?")[0], rest=tuple(rest), **known)


def _value(parameter: Parameter, read: Callable[[str], Any]) -> Any:
    name, raw = parameter
    try:
        if _BAD_PERCENT.search(raw):
            raise ValueError("two hexadecimal digits follow a %; write % itself as %25")
        return read(parameter.data.decode())
    except UnicodeDecodeError:
        raise OptionsError(f"{name}= is not valid UTF-8") from None
    except ValueError as error:
        shown = "" if name == "token" else f"{raw[:_SHOWN_MAX]!r}: "
        raise OptionsError(f"{name}={shown}{error}") from None


def _check_together(known: dict[str, Any]) -> None:
    if "group" not in known:
        for name in ("balance", "in_flight", "max_deliveries"):
            if name in known:
                raise OptionsError(f"{name}= is for members of a work group: give group=, too")
    elif "policy" in known:
        raise OptionsError("policy= is not for members of a work group, which holds the ring")


# ---- values ----------------------------------------------------------------------------------
#
# Each raises ValueError with what would be right, and without the value.


def _topics(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if not name:
            raise ValueError("a topic between the commas has no name")
        if "\0" in name or len(name.encode()) > _TOPIC_MAX:
            raise ValueError(f"a topic has at most {_TOPIC_MAX} bytes, and no NUL")
    return names


def _flag(text: str) -> bool:
    if text not in _FLAGS:
        raise ValueError("give true or false")
    return _FLAGS[text]


def _start(text: str) -> str | int:
    if text in ("latest", "oldest"):
        return text
    if not _NUMBER.fullmatch(text) or int(text) > _SEQUENCE_MAX:
        raise ValueError("give latest, oldest or a sequence")
    return int(text)


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"give {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return read


def _label(text: str) -> str:
    if not text or _CONTROL.search(text) or len(text.encode()) > _LABEL_MAX:
        raise ValueError(f"a label has 1 to {_LABEL_MAX} bytes, and no control characters")
    return text


def _group(text: str) -> str:
    try:
        return shm.check_name(text, "group")
    except ValueError:  # its text has all of the name
        raise ValueError(
            "use 1 to 20 of a-z, 0-9, _ and -, starting with a letter or digit"
        ) from None


def _number(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= most:
            raise ValueError(f"give a number from 1 to {most}")
        return int(text)

    return read


def _token(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "topics": _topics,
    "others": _flag,
    "start": _start,
    "policy": _choice("lossy", "block"),
    "label": _label,
    "group": _group,
    "balance": _choice("any", "key", "round-robin"),
    "in_flight": _number(_IN_FLIGHT_MAX),
    "max_deliveries": _number(_DELIVERIES_MAX),
    "token": _token,
}
"""The parameters that are known, and how each is read."""
