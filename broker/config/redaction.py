"""Taking secrets out of text: URLs, log lines, the errors of other libraries.

A secret is found as it is written and percent-encoded, any of its characters either way, and each
stretch of text that belongs to one or more secrets becomes ``***``.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import quote, unquote, unquote_plus

__all__ = [
    "HIDDEN",
    "address_secrets",
    "cookie_secrets",
    "header_secrets",
    "redact",
    "redact_target",
    "redact_url",
    "worth_hiding",
]

HIDDEN: Final = "***"
"""What stands in the place of a secret."""

_SECRET_LENGTH_MIN: Final = 4
"""Characters. Shorter secrets stay in other people's text: with every "1" hidden, it would be
unreadable."""

_URL: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?P<user>[^/?#]*)@)?[^/?#@]*[^?#]*(?:\?(?P<query>[^#]*))?"
)
_ANY_SERVER: Final = "ws://h"
_URL_CHARACTERS: Final = string.punctuation
"""With letters and digits, what is visible in ASCII."""
_QUERY_VALUE: Final = re.compile(r"(?:^|&)(?:[^&=]*=)?([^&]*)")

_Span = tuple[int, int]
"""Where a stretch of text starts and where it ends."""


# ---- which parts of a value are secret -------------------------------------------------------


def header_secrets(headers: Mapping[str, str]) -> Iterator[str]:
    """Every value, and the credentials alone where the value names a scheme before them."""
    yield from headers.values()
    for name, value in headers.items():
        if name.lower() in ("authorization", "proxy-authorization"):
            yield value.partition(" ")[2]


def cookie_secrets(cookie: str) -> Iterator[str]:
    """The whole text, and the value of each pair in it."""
    yield cookie
    yield from (pair.partition("=")[2] for pair in cookie.split("; "))


def address_secrets(address: str) -> Iterator[str]:
    """User, password and the values of the query, as a URL has them and decoded."""
    for text in _written_secrets(address):
        yield from (text, unquote(text), unquote_plus(text))


def _written_secrets(address: str) -> Iterator[str]:
    found = _URL.match(address)
    if found is None:
        return
    if found["user"]:
        yield found["user"]
        user, _, password = found["user"].partition(":")
        yield from (user, password)
    if found["query"]:
        yield from _QUERY_VALUE.findall(found["query"])


def worth_hiding(secrets: Iterable[str]) -> set[str]:
    """Those that are long enough to be taken out of other people's text."""
    return {secret for secret in secrets if len(secret) >= _SECRET_LENGTH_MIN}


# ---- hiding them -----------------------------------------------------------------------------


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with ``***`` in place of `secrets`."""
    return _mask(text, _find(secrets, text))


def redact_url(url: str, secrets: Iterable[str]) -> str:
    """`url` without user and password, and with ``***`` in place of `secrets` and of the values of
    its query. A text that is no URL is hidden whole: its secrets may be anywhere."""
    found = _URL.match(url)
    if found is None:
        return HIDDEN
    hidden = [*_find(secrets, url)]
    if found["query"] is not None:
        start = found.start("query")
        hidden += (
            (start + value.start(1), start + value.end(1))
            for value in _QUERY_VALUE.finditer(found["query"])
        )
    if found["user"] is None:
        return _mask(url, hidden)
    return _mask(url, hidden, dropped=(found.start("user"), found.end("user") + 1))


def redact_target(target: str) -> str:
    """The target of a request (RFC 9112 section 3.2) for a log: ``***`` in place of the values of
    its query, and percent-encoded what can't be seen or could end a line. One that does not start
    with a slash is hidden whole."""
    if not target.startswith("/"):
        return HIDDEN
    # What follows a "#" is part of the last value here: a server is not sent fragments.
    shown = redact_url(f"{_ANY_SERVER}{target.replace('#', '%23')}", ())
    return quote(shown.removeprefix(_ANY_SERVER), safe=_URL_CHARACTERS, errors="backslashreplace")


def _find(secrets: Iterable[str], text: str) -> Iterator[_Span]:
    """Where any of `secrets` stands in `text`. One secret at a time and with a lookahead: secrets
    may overlap, and the one that is found first must not keep another one visible."""
    for secret in secrets:
        if secret:
            for found in re.finditer(f"(?=({_pattern(secret)}))", text):
                yield found.span(1)


def _pattern(secret: str) -> str:
    """A regular expression for `secret`, in which each character may be percent-encoded."""
    parts = []
    for character in secret:
        encoded = character.encode("utf-8", "surrogatepass").hex("%")
        plus = r"|\+" if character == " " else ""
        parts.append(f"(?:(?i:%{encoded})|{re.escape(character)}{plus})")
    return "".join(parts)


def _mask(text: str, hidden: Iterable[_Span], dropped: _Span = (0, 0)) -> str:
    """`text` with ``***`` for each stretch of `hidden` spans, and without the `dropped` one."""
    is_hidden = bytearray(len(text))
    for start, end in hidden:
        is_hidden[start:end] = b"\1" * (end - start)
    kept = [*zip(is_hidden, text, strict=True)]
    start, end = dropped
    del kept[start:end]
    return "".join(
        HIDDEN if hide else "".join(character for _, character in group)
        for hide, group in itertools.groupby(kept, key=lambda pair: pair[0])
    )
