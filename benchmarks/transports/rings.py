"""ringcast: its ring, in each way of using it, and its uplink."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Concatenate

from ringcast import shm
from ringcast.shm import broadcast, mpsc

from ..method import Channel, Params, crew
from ..payloads import BATCH_MOST
from .base import GROUP, Outlet, Transport, Wait

_numbers = itertools.count()
_STRATEGIES: dict[Wait, Callable[[], shm.Blocking | shm.BusySpin]] = {
    "block": shm.Blocking,
    "spin": shm.BusySpin,
}


@contextlib.contextmanager
def ring_names(count: int) -> Iterator[list[str]]:
    """Names of rings that nobody else uses; what a dead child leaves of them is removed."""
    names = [f"bench{os.getpid()}-{next(_numbers)}" for _ in range(count)]
    try:
        yield names
    finally:
        for name in names:
            with contextlib.suppress(shm.RingNotFound):
                shm.unlink(name)


def in_a_child(
    target: Callable[Concatenate[Channel, str, float, Params], None],
    seconds: float,
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> dict[str, float]:
    """What a child tells that is given the name of a ring to create, and the seconds."""
    with ring_names(1) as (name,), crew(seconds) as group:
        found: dict[str, float] = group.start(target, name, seconds, *args, **kwargs).hear()
        return found


class Ring(Transport):
    """A ring, one message at a time.

    Attributes:
        geometry: arguments of `Writer.create` where they are not the default.
    """

    name = "ringcast"
    copies = "the writer copies into shared memory; readers look at it there"
    fans_out = True
    geometry: ClassVar[dict[str, int]] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Remove what a dead child leaves."""
        with ring_names(1) as (self.ring,):
            yield

    def _strategy(self) -> shm.Blocking | shm.BusySpin:
        return _STRATEGIES[self.wait]()

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """A writer."""
        with broadcast.Writer.create(self.ring, wait=self._strategy(), **self.geometry) as writer:
            yield Outlet(writer.publish)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A reader, which is its own iterator."""
        with broadcast.Reader.attach(self.ring, wait=self._strategy()) as reader:
            yield reader


class SmallRing(Ring):
    """A ring of 4 MiB, a sixteenth of the default: about as much as the pools of other libraries,
    and what a processor's caches may hold."""

    name = "ringcast, 4 MiB"
    geometry: ClassVar[dict[str, int]] = {"slots": 4096, "capacity": 4 << 20}


class SleepingRing(Ring):
    """A ring both of whose sides sleep at once when they have to wait; by default they spin for
    50 us before."""

    name = "ringcast, without spinning"
    waits = frozenset({"block"})

    def _strategy(self) -> shm.Blocking:
        return shm.Blocking(spin_us=0)


class LossyRing(Ring):
    """A reader that holds nobody up."""

    name = "ringcast, lossy"
    copies = "the writer copies into shared memory; each reader copies out what it then validates"
    lossy = True

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A reader with the policy lossy."""
        wait = self._strategy()
        with broadcast.Reader.attach(self.ring, policy="lossy", wait=wait) as reader:
            yield reader


class BatchedRing(Ring):
    """A ring, many messages at a time."""

    name = "ringcast, batched"
    copies = "the writer copies into shared memory; readers look at it there, as numpy arrays"
    group = GROUP
    arrays = True

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """A writer of groups."""
        with broadcast.Writer.create(self.ring, wait=self._strategy(), **self.geometry) as writer:
            yield Outlet(writer.publish_many)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A reader of batches."""
        with broadcast.Reader.attach(self.ring, wait=self._strategy()) as reader:
            yield batches(reader)


def batches(reader: broadcast.Reader) -> Iterator[broadcast.Batch]:
    """What is there, as often as something is; each batch ends when the next is asked for."""
    while True:
        with reader.batch(BATCH_MOST) as batch:
            yield batch


class Uplink(Transport):
    """Many senders to one receiver."""

    name = "ringcast, uplink"
    copies = "a sender copies into its lane; the receiver copies out, as bytes"
    many_senders = True
    receiver_first = True

    @classmethod
    def largest(cls) -> int:
        """Longer ones go in parts, which the manager does and not the ring."""
        return 16 << 10

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Remove what a dead child leaves."""
        with ring_names(1) as (self.ring,):
            yield

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        """A sender."""
        with mpsc.Sender.attach(self.ring) as sender:
            yield Outlet(sender.send)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """The receiver."""
        with mpsc.Receiver.create(self.ring, wait=_STRATEGIES[self.wait]()) as receiver:
            yield _received(receiver)


def _received(receiver: mpsc.Receiver) -> Iterator[bytes]:
    while True:
        first = receiver.read()
        assert first is not None  # there is no time-out
        yield bytes(first)
        for sent in receiver.read_available():
            yield bytes(sent)
