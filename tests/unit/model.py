"""A broadcast ring in plain Python: what was published, and what each reader must get of it.

It knows nothing of memory. Where a ring may choose (when exactly it is full, how far an overrun
reader skips) the model gives bounds; everything else it determines exactly:

* a reader that receives message n receives what was published as n;
* a lossless reader receives every message from its start on, or from where the ring begins;
* received + lost == cursor - start, and each message has the gap before it;
* a ring is not full for a writer whose gating readers have read everything, hold nothing, and have
  shown it by going to wait;
* and it is full when one more message would take the place of one that a gating reader still needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Published:
    """A message, as the writer published it."""

    payload: bytes
    topic: int
    kind: int


@dataclass(slots=True)
class RingModel:
    """All that was ever published, and the readers that gate the writer."""

    slots: int
    capacity: int
    messages: list[Published] = field(default_factory=list)
    readers: list[ReaderModel] = field(default_factory=list)
    ended: bool = False

    @property
    def published(self) -> int:
        """Sequence of the next message."""
        return len(self.messages)

    def must_accept(self) -> bool:
        """Is there certainly room for any message?"""
        return all(reader.is_done() for reader in self.readers if reader.gating)

    def may_accept(self, length: int) -> bool:
        """Is there possibly room for a message of this length?"""
        return all(self._fits_above(r.floor(), length) for r in self.readers if r.gating)

    def _fits_above(self, floor: int, length: int) -> bool:
        needed = sum(len(message.payload) for message in self.messages[floor:])
        return self.published - floor < self.slots and needed + length <= self.capacity

    def append(self, message: Published) -> int:
        """It was published; its sequence."""
        self.messages.append(message)
        return self.published - 1


@dataclass(slots=True, eq=False)
class ReaderModel:
    """One reader: what it received, and what it holds.

    Attributes:
        start: the sequence it asked for.
        cursor: the next it takes.
        after_last: one more than the sequence of the last message it received.
        received: how many it received.
        holds: sequences whose buffers are alive here, a batch counting as its first.
        gating: the writer waits for it.
        asked: the writer has asked it to step down.
        evicted: the writer has evicted it.
        closed: it takes no more; what it holds it holds on to.
        rested: it has gone to wait since it last received or held anything.
    """

    ring: RingModel
    start: int
    cursor: int
    gating: bool
    after_last: int = 0
    received: int = 0
    holds: list[int] = field(default_factory=list)
    asked: bool = False
    evicted: bool = False
    closed: bool = False
    rested: bool = True

    def __post_init__(self) -> None:
        self.after_last = self.start

    @property
    def lost(self) -> int:
        """How many it missed."""
        return self.cursor - self.start - self.received

    def floor(self) -> int:
        """The oldest message that it still needs."""
        return min([*self.holds, self.ring.published if self.closed else self.cursor])

    def is_done(self) -> bool:
        """Does the writer know that this reader needs nothing that was published?"""
        return self.floor() == self.ring.published and self.rested

    def receive(self, sequence: int, gap: int, oldest: int) -> Published:
        """A message came, while the ring held everything from `oldest` on; what it must hold."""
        assert sequence < self.ring.published
        if self.gating or self.cursor >= oldest:
            assert sequence == self.cursor
        else:
            assert sequence >= oldest
        assert gap == sequence - self.after_last
        self.cursor = self.after_last = sequence + 1
        self.received += 1
        self.rested = False
        return self.ring.messages[sequence]

    def find_nothing(self, cursor: int, oldest: int) -> None:
        """Nothing came, and the reader is at `cursor` now."""
        if self.gating or self.cursor >= oldest:
            assert cursor == self.cursor
        else:
            assert oldest <= cursor
        assert cursor == self.ring.published
        self.cursor = cursor
        self.rested = True

    def step_down_if_asked(self) -> None:
        """It is in the ring: what the writer asked for is done, if nothing is held."""
        if self.asked and not self.holds:
            self.asked = self.gating = False

    def evict(self) -> None:
        """The writer evicts it."""
        self.evicted = True
        self.gating = False
