"""Transports whose receivers share the messages of a link out: no two get the same message.

What `Transport` says of a link holds here, too, but for that. A link is made for so many `readers`,
and each of them enters `receiver`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from ringcast.shm import broadcast, group

from ..errors import RunFailedError
from .base import LinkSender, Transport
from .peers import FasterFifo, FasterFifoBatched
from .rings import BatchedRing, Ring, batches
from .servers import NatsQueue, RedisStream
from .stdlib import Queue

GROUP: Final = "consumers"
KEYS: Final = 10_000
"""Number of different keys of messages that are shared out by key."""
GROUP_BATCH: Final = 256
"""Number of messages that a member takes at once, at most."""


class GroupAny(Ring):
    """A work group whose members take the next message when they are free.

    Attributes:
        balance: how it shares messages out.
    """

    name = "ringcast group, any"
    copies = "the writer copies into shared memory; a member claims a message and looks at it there"
    fans_out = False
    balance: ClassVar[group.Balance] = "any"

    def _attach(self) -> group.Member:
        return group.Member.attach(self.ring, GROUP, balance=self.balance, wait=self._strategy())

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A member, message by message. Asking for the next one acknowledges the last."""
        with self._attach() as member:
            yield iter(member)

    def is_acknowledged(self) -> bool:
        """Whether the group has done everything."""
        return all_done(self.ring)


class GroupRoundRobin(GroupAny):
    """A work group whose members take turns."""

    name = "ringcast group, round-robin"
    balance = "round-robin"


class GroupKey(GroupAny):
    """A work group whose members share out by key: `KEYS` random ones, a random one per message."""

    name = "ringcast group, key"
    balance = "key"

    def prepare(self, payloads: Sequence[bytes]) -> list[Any]:
        """Messages with their keys."""
        random_numbers = random.Random(KEYS)
        keys = [random_numbers.getrandbits(64) | 1 for _ in range(KEYS)]
        return list(zip(payloads, random_numbers.choices(keys, k=len(payloads)), strict=True))

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A writer that gives each message its key."""
        with broadcast.Writer.create(self.ring, wait=self._strategy(), **self.geometry) as writer:
            publish = writer.publish

            def send(item: tuple[bytes, int]) -> None:
                publish(item[0], key=item[1])

            def send_all(items: Sequence[tuple[bytes, int]]) -> None:
                for data, key in items:
                    publish(data, key=key)

            yield LinkSender(send, send_all)


class GroupBatched(GroupAny, BatchedRing):
    """A work group whose members take many messages at a time."""

    name = "ringcast group, any, batched"
    copies = "as ringcast group, any, 64 messages at a time in, and up to 256 out, as numpy arrays"

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A member, batch by batch. Each is acknowledged when the next is requested."""
        with self._attach() as member:
            yield batches(member, GROUP_BATCH)


def all_done(ring: str) -> bool:
    """Whether the groups of a ring have done everything.

    Raises:
        RunFailedError: one delivered a message more than once, or lost one.
    """
    for found in group.list_groups(ring):
        wrong = (found.redelivered, found.set_aside, found.lost, found.voided)
        if any(wrong):
            raise RunFailedError(
                f"messages redelivered, set aside, lost, voided by group {found.name}: {wrong}"
            )
        if found.lag or found.in_flight or found.returned:
            return False
    return True


SHARING: Final[tuple[type[Transport], ...]] = (
    GroupAny,
    GroupKey,
    GroupRoundRobin,
    GroupBatched,
    Queue,
    FasterFifo,
    FasterFifoBatched,
    RedisStream,
    NatsQueue,
)
"""All transports whose receivers can share messages out, ringcast's own first."""
