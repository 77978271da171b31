"""What a member of a work group has in hand when its messages come through a gateway's socket.

A message is the program's by a `Lease`, and a lease ends once: acknowledged, given back, or void,
as its connection has ended, with which the gateway has given everything back. With `auto_ack` what
a thread or task was handed last lies in its `Hand`, too, and is done when that asks for the next.

A lease or a hand that goes tells the feed so, and must not wait there: a collector of garbage may
run in the middle of whatever that does.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from ringcast.shm import hash_key

from ._socket_feed import DESCRIPTOR, SocketMessage
from .wire import RecordType

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from .socket_group import SocketGroupFeed

__all__ = ["Grant", "Hand", "Lease", "SocketGroupBatch", "SocketGroupMessage", "key_of"]


class Grant(NamedTuple):
    """Messages that a hand has.

    Attributes:
        connection: over which they came: the number of that among the feed's.
        sequences: theirs.
        keys: what they are shared out by, each as `key_of` has it.
    """

    connection: int
    sequences: tuple[int, ...]
    keys: tuple[int, ...]


class _State(enum.Enum):
    OPEN = enum.auto()
    DONE = enum.auto()
    GIVEN_BACK = enum.auto()


class Hand:
    """What one thread or task was handed last, and has not acknowledged.

    Args:
        number: of this hand among the feed's.

    Attributes:
        leases: of what it was handed.
        loop: the loop that handed it out; None if none did.
    """

    __slots__ = ("__weakref__", "leases", "loop", "number")

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.leases: list[Lease] = []
        self.loop: int | None = None

    def drop(self) -> None:
        """It goes, or its loop does: what it has is given back."""
        leases, self.leases, self.loop = self.leases, [], None
        for lease in leases:
            lease.drop()

    def __del__(self) -> None:
        self.drop()


class Lease:
    """The right to handle some messages; one that goes gives them back.

    Args:
        feed: whose messages they are.
        grant: which.
    """

    __slots__ = ("__weakref__", "_feed", "_grant", "_state")

    def __init__(self, feed: SocketGroupFeed, grant: Grant) -> None:
        self._state = _State.OPEN
        self._feed = feed
        self._grant = grant

    @property
    def feed(self) -> SocketGroupFeed:
        """Whose messages they are."""
        return self._feed

    @property
    def is_open(self) -> bool:
        """Has it not ended?"""
        return self._state is _State.OPEN

    def end(self, how: RecordType) -> list[Grant]:
        """What it stands for, which is done (DONE) or given back (GIVE_BACK) from now on, and its
        caller says so; nothing if it has ended before.

        Raises:
            ValueError: it is done, and was given back.
        """
        if self._state is _State.OPEN:
            self._state = _State.DONE if how is RecordType.DONE else _State.GIVEN_BACK
            return [self._grant]
        if self._state is _State.GIVEN_BACK and how is RecordType.DONE:
            raise ValueError("it was given back: whoever has it next acknowledges it")
        return []

    def ack(self) -> None:
        """See `SocketGroupMessage.ack`."""
        self._feed.ends(RecordType.DONE, self.end(RecordType.DONE))

    def nack(self) -> None:
        """See `SocketGroupMessage.nack`."""
        self._feed.ends(RecordType.GIVE_BACK, self.end(RecordType.GIVE_BACK))

    def drop(self) -> None:
        """Give back without waiting for anything."""
        if self._state is _State.OPEN:
            self._state = _State.GIVEN_BACK
            self._feed.dropped(self._grant)

    def __del__(self) -> None:
        self.drop()


class SocketGroupMessage(SocketMessage):
    """A message of a work group that came through a gateway. As `SocketMessage`; and it is this
    feed's to handle until it is acknowledged or given back, or the connection ends."""

    __slots__ = ("_lease",)

    _lease: Lease

    @classmethod
    def of(cls, message: SocketMessage, lease: Lease) -> Self:
        """This message, with its lease."""
        made = cls.__new__(cls)
        made._become(message)
        made._lease = lease
        return made

    @property
    def lease(self) -> Lease:
        """What makes it this feed's."""
        return self._lease

    @property
    def deliveries(self) -> int:
        """How often it was delivered, with this time: 1, unless somebody had it before."""
        return self._deliveries

    def ack(self) -> None:
        """It is done. A second time does nothing.

        Raises:
            shm.Evicted: the connection over which it came has ended: another has it or will.
            ValueError: it was given back.
            shm.RingClosed: this end is closed.
        """
        self._lease.ack()

    def nack(self) -> None:
        """Give it back: it is delivered again, to another member if there is one, and here after a
        pause. Does nothing if it was acknowledged or given back before.

        Raises:
            shm.Evicted, shm.RingClosed: as `ack` does.
        """
        self._lease.nack()


class SocketGroupBatch:
    """Many messages of a work group, acknowledged as one; use it in a ``with`` block. What is in it
    stays valid as long as it, or a view of it, lives.

    With `auto_ack` the end of the block says that all are done, and an exception gives all back.
    Without, `ack` says so; the end of the block gives back what was not.
    """

    __slots__ = ("_auto_ack", "_headers", "_lease", "_messages")

    def __init__(
        self, messages: Sequence[SocketMessage], lease: Lease | None, *, auto_ack: bool
    ) -> None:
        self._messages = messages
        self._lease = lease  # None: it is empty
        self._auto_ack = auto_ack
        self._headers: NDArray[np.void] | None = None

    @property
    def lease(self) -> Lease | None:
        """What makes its messages this feed's; None if it is empty."""
        return self._lease

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._auto_ack and kind is None and self._lease is not None and self._lease.is_open:
            self._lease.ack()
        self.release()

    def release(self) -> None:
        """End the batch: what was not acknowledged is given back."""
        if self._lease is not None:
            self._lease.drop()

    def ack(self) -> None:
        """All of it is done. A second time does nothing. Raises as `SocketGroupMessage.ack`
        does."""
        if self._lease is not None:
            self._lease.ack()

    def nack(self) -> None:
        """Give all of it back. Raises as `SocketGroupMessage.nack` does."""
        if self._lease is not None:
            self._lease.nack()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def deliveries(self) -> int:
        """How often its messages were delivered, with this time. Those that somebody had before
        come singly. 0: it is empty."""
        return self._messages[0]._deliveries if self._messages else 0

    @property
    def first(self) -> int:
        """Sequence of the first message. Raises IndexError: there is none."""
        return self._messages[0].sequence

    @property
    def gap(self) -> int:
        """How many messages the group has missed, as far as it was reported with these."""
        return sum(message.gap for message in self._messages)

    @property
    def descriptors(self) -> NDArray[np.void]:
        """Of each message its sequence, length, topic, time_ns, key, kind, epoch and gap: a copy, a
        structured array of shape (len(batch),)."""
        if self._headers is None:
            made = np.zeros(len(self._messages), DESCRIPTOR)
            for name in DESCRIPTOR.names or ():
                if name == "length":
                    made[name] = [len(message) for message in self._messages]
                else:
                    made[name] = [getattr(message, name) for message in self._messages]
            made.flags.writeable = False
            self._headers = made
        return self._headers

    def payload(self, index: int) -> memoryview:
        """The bytes of message `index` in place. Raises IndexError."""
        return self._messages[index].payload

    def records(self, dtype: DTypeLike) -> NDArray[Any]:
        """The payloads as an array of `dtype`, which each has to be one item of: a copy. Raises
        ValueError."""
        kind = np.dtype(dtype)
        if any(len(message) != kind.itemsize for message in self._messages):
            raise ValueError(
                f"not every message of this batch has the {kind.itemsize} bytes of {kind}"
            )
        return np.frombuffer(b"".join(map(bytes, self._messages)), kind)


def key_of(message: SocketMessage) -> int:
    """What a group with balance "key" shares a message out by; docs/groups.md has the rule."""
    if message.key or not message.topic:
        return message.key
    name = message.topic_name
    return message.topic if name is None else hash_key(name)
