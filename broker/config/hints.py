"""The right key for a wrong one: a hint for whoever misspelt it, shortened it, or has it from
another library."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

__all__ = ["hint"]

_SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    # websockets
    "additional_headers": ("headers",),
    "extra_headers": ("headers",),
    "uri": ("url",),
    # websocket-client
    "http_proxy_auth": ("proxy",),
    "http_proxy_host": ("proxy",),
    "http_proxy_port": ("proxy",),
    "sslopt": ("ca", "certificate", "private_key", "verify"),
    # aiohttp
    "heartbeat": ("ping_interval",),
    "receive_timeout": ("idle_timeout",),
    # ssl, requests and others
    "cafile": ("ca",),
    "check_hostname": ("verify",),
    "connect_timeout": ("open_timeout",),
    "keyfile": ("private_key",),
    "server_hostname": ("server_name",),
    "ssl": ("ca", "certificate", "private_key", "verify"),
}
"""What other libraries call a key whose name is too different to be found by its letters."""

_FRAGMENT_LENGTH_MIN: Final = 3
"""Letters. Fewer are part of nearly every key."""


def hint(wrong: str, keys: Collection[str]) -> str:
    """What to use in place of `wrong`: "did you mean ...?", or all keys if none is near."""
    near = _nearest(wrong.strip().lower().replace("-", "_"), keys)
    if not near:
        return f"known are {', '.join(keys)}"
    if len(near) == 1:
        return f"did you mean {near[0]}?"
    return f"did you mean one of {', '.join(near)}?"


def _nearest(wrong: str, keys: Collection[str]) -> list[str]:
    """The keys that may be meant, by the first of these that finds any: the same word, a synonym, a
    word or a part of a key, a longer form of one, a similar spelling."""
    if wrong in keys:
        return [wrong]
    if wrong in _SYNONYMS:
        return [*_SYNONYMS[wrong]]
    if len(wrong) >= _FRAGMENT_LENGTH_MIN:
        for found in (
            [key for key in keys if _has_words(key, wrong)],
            [key for key in keys if wrong in key],
            _longest(key for key in keys if _has_words(wrong, key)),
        ):
            if found:
                return found
    similar = difflib.get_close_matches(wrong, [*keys, *_SYNONYMS], 1)
    return [key for found in similar for key in _SYNONYMS.get(found, (found,))]


def _has_words(text: str, words: str) -> bool:
    return f"_{words}_" in f"_{text}_"


def _longest(keys: Iterable[str]) -> list[str]:
    """`private_key` and not a `key` for `my_private_key`."""
    return sorted(keys, key=len)[-1:]
