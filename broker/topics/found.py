"""What a scanner says of a message, and what the id of a request says."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["Found", "RequestId", "What"]


class What(enum.IntEnum):
    """The kinds of what is found; names and numbers are pointer.h's.

    Attributes:
        UNNAMED: no pattern has all its values, the payload is not JSON, or the function returned
            None. Topic 0.
        UNUSABLE: the name is empty, not UTF-8 or longer than 127 bytes. Topic 0.
        CONTROL: a message for the manager itself. Topic 0.
        NEW: a name that is not in the map yet: call `name`.
        OVERFLOWED: a name that is not in the map, which is full. Topic 0.
        KNOWN: a name that is in the map.
        FAILED: the function raised, or did not return a name. Topic 0.
        ANSWER: it has the id of a worker's request. Topic 0.
    """

    UNNAMED = 0
    UNUSABLE = 1
    CONTROL = 2
    NEW = 4
    OVERFLOWED = 5
    KNOWN = 6
    FAILED = 7
    ANSWER = 8


class Found(NamedTuple):
    """What was found in one message.

    Attributes:
        what: the kind.
        name: the joined string, or None unless it is usable.
        topic: its id, 0 unless the name is known.
        key: the key of the message, 0 for none; of an answer the id that it bears.
    """

    what: What
    name: bytes | None
    topic: int
    key: int


class RequestId(NamedTuple):
    """What the id of a request says; request_ids.h has its form.

    Attributes:
        slot: the reader slot of whoever asked.
        generation: the low bits of the slot's generation then.
        counter: the requester's own number for it.
    """

    slot: int
    generation: int
    counter: int
