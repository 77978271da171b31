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
    "SendRejected",
    "SendUnconfirmed",
    "TooManyReaders",
    "TooManySenders",
    "TooManyTopics",
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


class TooManySenders(RingError):
    """Every lane of the uplink is taken by a living process, or not yet emptied."""


class TooManyTopics(RingError):
    """The ring's topic table has no room for another topic: its size is `max_topics`, for good."""


class SendRejected(RingError):
    """The receiver delivers nothing now, and holds nothing.

    Attributes:
        count: messages sent before that were not delivered; 0 if it is only the one that was to be
            sent now.
    """

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class SendUnconfirmed(RingError):
    """The receiver died between taking messages and delivering them.

    Attributes:
        count: messages sent before of which nobody knows whether they were delivered.
    """

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class Evicted(RingError):
    """The writer took this reader's hold on the ring away, and views made from it are not valid; or
    the receiver of an uplink took its sender's lane away."""


class RingClosed(RingError):
    """The ring has ended, was removed, or this end of it is closed."""
