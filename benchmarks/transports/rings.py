"""ringcast: its ring, in each way of using it, and its uplink."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from ringcast import shm
from ringcast.shm import broadcast, group, mpsc

from ..payloads import BATCH_MESSAGES_MOST
from ..ring_names import temporary_ring_name
from .base import BATCH_SIZE, LinkSender, Transport, Wait

_STRATEGIES: dict[Wait, Callable[[], shm.Blocking | shm.BusySpin]] = {
    "block": shm.Blocking,
    "spin": shm.BusySpin,
}


class Ring(Transport):
    """A ring, one message at a time.

    Attributes:
        geometry: arguments of `Writer.create` that differ from the defaults.
    """

    name = "ringcast"
    copies = "the writer copies into shared memory; readers look at it there"
    fans_out = True
    geometry: ClassVar[dict[str, int]] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Removes what a dead child leaves."""
        with temporary_ring_name() as self.ring:
            yield

    def _strategy(self) -> shm.Blocking | shm.BusySpin:
        return _STRATEGIES[self.wait]()

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A writer."""
        with broadcast.Writer.create(self.ring, wait=self._strategy(), **self.geometry) as writer:
            yield LinkSender(writer.publish)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A reader, which is its own iterator."""
        with broadcast.Reader.attach(self.ring, wait=self._strategy()) as reader:
            yield reader


class SmallRing(Ring):
    """A ring of 4 MiB, a sixteenth of the default. The pools of other libraries are about as large,
    and a processor's caches may hold it."""

    name = "ringcast, 4 MiB"
    geometry: ClassVar[dict[str, int]] = {"slots": 4096, "capacity": 4 << 20}


class SleepingRing(Ring):
    """A ring whose sides sleep at once when they have to wait. By default they first spin for
    50 us."""

    name = "ringcast, without spinning"
    waits = frozenset({"block"})

    def _strategy(self) -> shm.Blocking:
        return shm.Blocking(spin_us=0)


class LossyRing(Ring):
    """A ring whose readers make nobody wait."""

    name = "ringcast, lossy"
    copies = "the writer copies into shared memory; each reader copies out, then validates the copy"
    lossy = True

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A reader with the policy "lossy"."""
        wait = self._strategy()
        with broadcast.Reader.attach(self.ring, policy="lossy", wait=wait) as reader:
            yield reader


class BatchedRing(Ring):
    """A ring, many messages at a time."""

    name = "ringcast, batched"
    copies = "the writer copies into shared memory; readers look at it there, as numpy arrays"
    item_messages = BATCH_SIZE
    yields_batches = True

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A writer of groups."""
        with broadcast.Writer.create(self.ring, wait=self._strategy(), **self.geometry) as writer:
            yield LinkSender(writer.publish_many)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A reader of batches."""
        with broadcast.Reader.attach(self.ring, wait=self._strategy()) as reader:
            yield batches(reader)


def batches(
    reader: broadcast.Reader | group.Member, most: int = BATCH_MESSAGES_MOST
) -> Iterator[broadcast.Batch]:
    """Batches of what is there, at most so many messages each. Each ends when the next is
    requested."""
    while True:
        with reader.batch(most) as batch:
            yield batch


class Uplink(Transport):
    """Many senders to one receiver."""

    name = "ringcast, uplink"
    copies = "a sender copies into its lane; the receiver copies out, as bytes"
    many_senders = True
    receiver_first = True

    @classmethod
    def largest(cls) -> int:
        """Larger ones go in parts, and that is the manager's work, not the ring's."""
        return 16 << 10

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Removes what a dead child leaves."""
        with temporary_ring_name() as self.ring:
            yield

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A sender."""
        with mpsc.Sender.attach(self.ring) as sender:
            yield LinkSender(sender.send)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """The receiver."""
        with mpsc.Receiver.create(self.ring, wait=_STRATEGIES[self.wait]()) as receiver:
            yield _received(receiver)


def _received(receiver: mpsc.Receiver) -> Iterator[mpsc.Envelope]:
    while True:
        first = receiver.read()
        assert first is not None  # there is no timeout
        yield first
        yield from receiver.read_available()
