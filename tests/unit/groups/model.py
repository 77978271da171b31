"""A work group in plain Python: what became of each message, and what a member may be handed.

It knows nothing of memory, nor of partitions' owners. Where a group may choose it gives bounds;
everything else it determines exactly:

* a message that is wanted is with one member at a time, and is delivered again only after that one
  gave it back; the number of deliveries is right;
* what nobody has had yet comes in order; with balance "key" all of a partition does, and only one
  member has messages of it;
* with balance "any", or one member, there is nothing to be had only if nothing waits, or if what
  waits was given back there and has its pause;
* the floor is the oldest message that is wanted and not done, or whose bytes somebody still views.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ringcast.shm.group import partition_of_key

LOOKS: Final = 0.2
"""Seconds within which a member that asks looks around, twice at least."""


class State(Enum):
    """Of a message."""

    FREE = "nobody has had it"
    IN_HAND = "a member has it"
    RETURNED = "it was given back"
    DONE = "it is done, or not wanted"


@dataclass(slots=True)
class Entry:
    """One message.

    Attributes:
        partition: of its key.
        state: what became of it.
        deliveries: how often it was handed to a member.
        holder: the number of the member that has it.
        paused: the numbers of members that gave it back, and may have to wait for it.
        views: how many views of its bytes hold the ring though it is done.
    """

    partition: int
    state: State
    deliveries: int = 0
    holder: int | None = None
    paused: set[int] = field(default_factory=set)
    views: int = 0


@dataclass(slots=True)
class GroupModel:
    """All messages of the ring, as one group sees them.

    Attributes:
        by_key: its balance is "key", else "any".
        most: after how many deliveries a message is set aside.
        unannounced: a member was evicted: what it had, and what comes for its keys, may take a
            while.
        evicted_at: when, on a monotonic clock.
        bequeathed: partitions of which something was in hand when a member came or went, and which
            may have an heir since: then their owner gets no more until it has done with that.
    """

    slots: int
    by_key: bool
    most: int
    entries: list[Entry] = field(default_factory=list)
    members: set[int] = field(default_factory=set)
    unannounced: bool = False
    evicted_at: float = 0.0
    bequeathed: set[int] = field(default_factory=set)

    def join(self, member: int) -> None:
        """A member comes."""
        self.members.add(member)
        self.bequeath()

    def leave(self, member: int) -> None:
        """A member goes, and what it had in hand goes back."""
        for sequence in self.in_hand(member):
            self.give_back(sequence)
        self.members.remove(member)
        self.bequeath()

    def evict(self) -> None:
        """A member was evicted, and goes."""
        self.unannounced = True
        self.evicted_at = time.monotonic()

    def bequeath(self) -> None:
        if self.by_key:
            self.bequeathed |= {self.entries[n].partition for n in self.in_hand()}

    def publish(self, key: int, *, wanted: bool) -> None:
        """One more message."""
        state = State.FREE if wanted else State.DONE
        self.entries.append(Entry(partition_of_key(key), state))

    def is_aside(self, entry: Entry) -> bool:
        """Is it one that is set aside as soon as somebody looks at it?"""
        return entry.state is State.RETURNED and entry.deliveries >= self.most

    def is_open(self, entry: Entry) -> bool:
        """Does it wait for a member?"""
        return entry.state in (State.FREE, State.RETURNED) and not self.is_aside(entry)

    def floor(self, *, looked: bool) -> int:
        """The oldest that holds the ring; `looked`: all that is set aside has been looked at."""
        for sequence, entry in enumerate(self.entries):
            if entry.views or entry.state is not State.DONE:
                if looked and not entry.views and self.is_aside(entry):
                    continue
                return sequence
        return len(self.entries)

    def must_accept(self) -> bool:
        """Is there certainly room?"""
        return len(self.entries) - self.floor(looked=False) < self.slots

    def may_accept(self) -> bool:
        """Is there possibly room?"""
        return len(self.entries) - self.floor(looked=True) < self.slots

    def next_of(self, partition: int, member: int) -> int | None:
        """The next of a partition for this member; None: none, or another has one of it."""
        mine = [n for n, entry in enumerate(self.entries) if entry.partition == partition]
        for sequence in mine:
            entry = self.entries[sequence]
            if entry.state is State.IN_HAND and entry.holder != member:
                return None
        return next((n for n in mine if self.is_open(self.entries[n])), None)

    def candidates(self, member: int) -> list[int]:
        """What this member could be handed now."""
        waiting = [n for n, entry in enumerate(self.entries) if self.is_open(entry)]
        if not self.by_key:
            fresh = [n for n in waiting if self.entries[n].state is State.FREE]
            return [n for n in waiting if self.entries[n].state is State.RETURNED] + fresh[:1]
        found = {self.next_of(self.entries[n].partition, member) for n in waiting}
        return sorted(n for n in found if n is not None)

    def take(self, member: int, sequence: int, deliveries: int) -> None:
        """It was handed to this member."""
        entry = self.entries[sequence]
        assert sequence in self.candidates(member), (sequence, entry, self.candidates(member))
        entry.deliveries += 1
        assert deliveries == entry.deliveries
        entry.state = State.IN_HAND
        entry.holder = member
        entry.paused.discard(member)

    def find_nothing(self, member: int) -> None:
        """It asked, and got nothing."""
        if time.monotonic() > self.evicted_at + LOOKS:
            self.unannounced &= any(map(self.is_open, self.entries))
        if self.unannounced or (self.by_key and len(self.members) > 1):
            return
        self.bequeathed &= {self.entries[n].partition for n in self.in_hand()}
        left = [self.entries[n] for n in self.candidates(member)]
        if self.by_key:
            blocked = {e.partition for e in self.entries if member in e.paused} | self.bequeathed
            left = [entry for entry in left if entry.partition not in blocked]
        else:
            left = [entry for entry in left if member not in entry.paused]
        assert left == [], (member, [e for e in self.entries if e.state is not State.DONE])

    def ack(self, sequence: int) -> None:
        """It is done."""
        self.entries[sequence].state = State.DONE
        self.entries[sequence].holder = None

    def give_back(self, sequence: int, *, pause: bool = False) -> None:
        """It goes back, with a pause for the member that had it, or without."""
        entry = self.entries[sequence]
        entry.state = State.RETURNED
        assert entry.holder is not None
        if pause:
            entry.paused.add(entry.holder)
        entry.holder = None

    def in_hand(self, member: int | None = None) -> list[int]:
        """What this member has, or all."""
        return [
            n
            for n, entry in enumerate(self.entries)
            if entry.state is State.IN_HAND and member in (None, entry.holder)
        ]

    def aside(self) -> int:
        """How many messages are set aside, or will be when somebody looks."""
        return sum(self.is_aside(entry) for entry in self.entries)

    @property
    def is_done(self) -> bool:
        """Is nothing left to be handed out or acknowledged?"""
        return all(entry.state is State.DONE or self.is_aside(entry) for entry in self.entries)


WANTED: Final = ("a", "ab", "new")
"""Of the topics that the tests publish under, those that match the group's list, ["a*", "new"]."""
