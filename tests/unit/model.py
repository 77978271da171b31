"""A broadcast ring in plain Python: what was published, and what each reader must get of it.

It knows nothing of memory. Where a ring may choose (when exactly it is full, how far an overrun
reader skips) the model gives bounds; everything else it determines exactly:

* a reader that receives message n receives what was published as n;
* a lossless reader receives every message from its start on, or from where the ring begins; one
  that chooses, every message of those that it wants at the time when it comes to it;
* received + skipped + lost == cursor - start, and each message has the gap before it;
* a ring is not full for a writer whose gating readers have read everything, hold nothing, and have
  shown it by going to wait;
* and it is full when one more message would take the place of one that a gating reader still needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

EVENT: Final = 16
"""The kind of records that everybody wants."""


def matches(pattern: str, name: str) -> bool:
    """Is this the topic's name, if * stands for any run of characters?"""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.S) is not None


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
    names: list[str] = field(default_factory=list)
    newest: dict[str, int] = field(default_factory=dict)
    ended: bool = False

    def topic(self, name: str) -> int:
        """The id of a topic, which is there from now on."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name) + 1

    def name_of(self, topic: int) -> str | None:
        """The name of a topic, if the table has it."""
        return self.names[topic - 1] if 1 <= topic <= len(self.names) else None

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
        name = self.name_of(message.topic)
        if name is not None:
            self.newest[name] = self.published - 1
        return self.published - 1


@dataclass(slots=True, eq=False)
class ReaderModel:
    """One reader: what it received, and what it holds.

    Attributes:
        start: the sequence it asked for.
        cursor: the next it takes.
        topics: the names and patterns that it wants; None if it wants everything.
        others: it wants messages without a topic, too.
        gap: how many it missed since the last message it received.
        received, skipped, lost: how many it received, passed over and missed.
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
    topics: list[str] | None = None
    others: bool = False
    gap: int = 0
    received: int = 0
    skipped: int = 0
    lost: int = 0
    holds: list[int] = field(default_factory=list)
    asked: bool = False
    evicted: bool = False
    closed: bool = False
    rested: bool = True

    def __post_init__(self) -> None:
        self.gap = self.lost = self.cursor - self.start

    def wants(self, message: Published) -> bool:
        """Is it one that it wants now?"""
        if self.topics is None or message.kind == EVENT:
            return True
        name = self.ring.name_of(message.topic)
        if name is None:
            return self.others
        return any(matches(pattern, name) for pattern in self.topics)

    def skip_to(self, sequence: int) -> None:
        """It passed over what comes before this message: nothing that it wants."""
        assert self.cursor <= sequence <= self.ring.published
        for message in self.ring.messages[self.cursor : sequence]:
            assert not self.wants(message)
        self.skipped += sequence - self.cursor
        self.cursor = sequence

    def lose(self, count: int, oldest: int) -> None:
        """It missed so many, while the ring held everything from `oldest` on."""
        assert count >= 0
        if self.gating or self.cursor >= oldest:
            assert count == 0
        else:
            assert oldest <= self.cursor + count <= self.ring.published
        self.cursor += count
        self.lost += count
        self.gap += count

    def floor(self) -> int:
        """The oldest message that it still needs."""
        return min([*self.holds, self.ring.published if self.closed else self.cursor])

    def is_done(self) -> bool:
        """Does the writer know that this reader needs nothing that was published?"""
        return self.floor() == self.ring.published and self.rested

    def receive(self, sequence: int, gap: int, oldest: int) -> Published:
        """A message came, while the ring held everything from `oldest` on; what it must hold."""
        assert sequence < self.ring.published
        self.lose(gap - self.gap, oldest)
        self.skip_to(sequence)
        message = self.ring.messages[sequence]
        assert self.wants(message)
        self.cursor = sequence + 1
        self.gap = 0
        self.received += 1
        self.rested = False
        return message

    def find_nothing(self, cursor: int, lost: int, oldest: int) -> None:
        """Nothing came, and the reader is at `cursor` now, and has lost so many in all."""
        self.lose(lost - self.lost, oldest)
        assert cursor == self.ring.published
        self.skip_to(cursor)
        self.rested = True

    def step_down_if_asked(self) -> None:
        """It is in the ring: what the writer asked for is done, if nothing is held."""
        if self.asked and not self.holds:
            self.asked = self.gating = False

    def evict(self) -> None:
        """The writer evicts it."""
        self.evicted = True
        self.gating = False
