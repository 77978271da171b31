"""Python functions that find topics, as an operator writes them: good ones and bad ones."""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any

kept: list[memoryview] = []
"""Views that `misuse` has kept."""


def of_channel(payload: memoryview) -> str | None:
    """Of gzip'd JSON, as Huobi sends it."""
    message = json.loads(gzip.decompress(payload))
    channel = message.get("ch")
    assert channel is None or isinstance(channel, str)
    return channel


def misuse(payload: memoryview) -> Any:
    """What the payload says, right or wrong."""
    kept.append(payload)
    match bytes(payload):
        case b"raise":
            raise LookupError("no such thing")
        case b"write":
            payload[0] = 0
        case b"exit":
            sys.exit("a topic function must not end the manager")
        case b"number":
            return 7
        case b"bytes":
            return b"topic"
        case b"none":
            return None
        case b"empty":
            return ""
        case b"long":
            return "x" * 128
        case b"surrogate":
            return "\ud800"
        case name:
            return name.decode()
    return "written"
