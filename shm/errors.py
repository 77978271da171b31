"""The errors of ringcast's rings. Each message says what to do about it."""

from __future__ import annotations

__all__ = [
    "Evicted",
    "LayoutMismatch",
    "MessageTooLarge",
    "RingClosed",
    "RingCorrupt",
    "RingError",
    "RingExists",
    "RingFull",
    "RingNotFound",
    "TooManyReaders",
]


class RingError(Exception):
    """Base of every error a ring raises."""


class RingNotFound(RingError, FileNotFoundError):
    """No ring of this name exists, or its creation has not finished."""


class RingExists(RingError, FileExistsError):
    """A ring of this name exists already, or its writer is alive."""


class LayoutMismatch(RingError):
    """The segment is not a ring, or one of another version, layout or byte order."""


class RingCorrupt(RingError):
    """The segment holds what no writer writes, or belongs to somebody it should not."""


class RingFull(RingError, TimeoutError):
    """There was no room in time.

    Attributes:
        published: how many messages of a ``publish_many`` were published before (0 otherwise).
    """

    def __init__(self, message: str, published: int = 0) -> None:
        super().__init__(message)
        self.published = published


class MessageTooLarge(RingError, ValueError):
    """The message is longer than the ring's ``max_message``, a quarter of its capacity."""


class TooManyReaders(RingError):
    """Every reader slot is taken by a living process."""


class Evicted(RingError):
    """The writer took this reader's hold on the ring away; views made from it are not valid."""


class RingClosed(RingError):
    """The ring has ended, was removed, or this end of it is closed."""
