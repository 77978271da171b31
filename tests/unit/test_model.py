"""The ring against its model: any sequence of calls, one writer and a few readers, tiny rings."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ringcast import shm
from ringcast.shm.broadcast import Batch, Message, Reader, Writer
from tests.conftest import reader_status
from tests.unit.model import Published, ReaderModel, RingModel

MAX_READERS = 3
PICK = st.integers(0, 63)
"""Which of the readers, holds and so on there are: modulo their number."""
SELDOM = st.integers(0, 7).map(lambda number: number == 0)
"""For what ends a reader's or the ring's life, so that the rest has time to happen."""
POLICIES = st.sampled_from(["block", "block", "lossy"])
MAX_TOPICS = 5
NAMES = st.sampled_from(["a", "ab", "b/a", "ba", "c"])
PATTERNS = st.one_of(NAMES, st.sampled_from(["*", "a*", "*a", "*b*", "x*", "a*b"]))
LISTS = st.one_of(st.none(), st.lists(PATTERNS, max_size=4, unique=True))
TOPICS = st.one_of(st.integers(0, MAX_TOPICS), st.integers(0, 2**32 - 1))


@dataclass(slots=True, eq=False)
class Hold:
    """Something that exports bytes of the ring, and what those must be."""

    pinned: int
    expected: list[bytes]
    views: list[memoryview]
    batch: Batch | None = None

    def check(self) -> None:
        """The bytes have not changed."""
        assert [bytes(view) for view in self.views] == self.expected

    def release(self) -> None:
        """Let go of it."""
        for view in self.views:
            view.release()
        if self.batch is not None:
            self.batch.release()


@dataclass(slots=True)
class Kept:
    """A message without a buffer, as a variable keeps it."""

    message: Message
    expected: bytes


@dataclass(slots=True, eq=False)
class Party:
    """A reader, its model, and what the program keeps of its messages."""

    reader: Reader
    model: ReaderModel
    holds: list[Hold] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    def add_hold(self, hold: Hold) -> None:
        """Hold on to something."""
        self.holds.append(hold)
        self.model.holds.append(hold.pinned)

    def release(self, hold: Hold) -> None:
        """Let go of something."""
        hold.release()
        self.holds.remove(hold)
        if hold.pinned in self.model.holds:
            self.model.holds.remove(hold.pinned)
        self.model.rested = False


def pick(things: list[Any], number: int) -> Any:
    """One of several things."""
    return things[number % len(things)]


class RingMachine(RuleBasedStateMachine):
    """Calls of the public names, each checked against the model."""

    ring_name: str

    @initialize(
        slots=st.sampled_from([4, 8, 16, 64]),
        capacity=st.sampled_from([256, 512, 4096]),
        policies=st.lists(POLICIES, min_size=1, max_size=MAX_READERS),
    )
    def create(self, slots: int, capacity: int, policies: list[str]) -> None:
        self.parties: list[Party] = []
        self.gone: list[Kept] = []
        self.writer = Writer.create(
            self.ring_name,
            slots=slots,
            capacity=capacity,
            max_readers=MAX_READERS,
            max_topics=MAX_TOPICS,
        )
        self.ring = RingModel(slots, capacity)
        for policy in policies:
            self.attach_one(policy, "latest", None, others=False)

    def teardown(self) -> None:
        for party in getattr(self, "parties", []):
            for hold in list(party.holds):
                party.release(hold)
            party.reader.close()
        if hasattr(self, "writer"):
            self.writer.close()
            self.writer.unlink()

    # -- helpers

    def status(self) -> shm.RingStatus:
        return shm.status(self.ring_name)

    def open_ones(self) -> list[Party]:
        """The readers that are not closed."""
        return [party for party in self.parties if not party.model.closed]

    def holding_ones(self) -> list[Party]:
        """The readers, open or not, that hold something."""
        return [party for party in self.parties if party.holds]

    def closed_ones(self) -> list[Party]:
        """The readers that are closed and hold something still."""
        return [party for party in self.parties if party.model.closed]

    def message(self, length: int, topic: int, kind: int) -> Published:
        """Contents that no other message has."""
        length %= self.ring.capacity // 4 + 1
        payload = random.Random(self.ring.published * 1000 + length).randbytes(length)
        return Published(payload, topic, kind)

    def accepted(self, sequence: int | None, message: Published) -> None:
        """What try_publish (or its like) said about one message."""
        if sequence is None:
            assert not self.ring.must_accept(), "refused, though nobody needs anything"
        else:
            assert self.ring.may_accept(len(message.payload)), "took what a reader still needs"
            assert sequence == self.ring.append(message)

    def forget(self, party: Party) -> None:
        """The reader is gone: its slot is free."""
        self.parties.remove(party)
        self.ring.readers.remove(party.model)
        self.gone.extend(party.kept)
        assert reader_status(self.ring_name, party.reader.slot) is None

    # -- the writer

    @precondition(lambda self: not self.ring.ended)
    @rule(
        length=st.integers(0, 2000),
        topic=TOPICS,
        kind=st.sampled_from([0, 1, 2, 16, 65535]),
        how=st.sampled_from(["try_publish", "publish", "reserve"]),
        slack=st.integers(0, 100),
    )
    def publish(self, length: int, topic: int, kind: int, how: str, slack: int) -> None:
        message = self.message(length, topic, kind)
        sequence: int | None = None
        with suppress(shm.RingFull):
            if how == "try_publish":
                sequence = self.writer.try_publish(message.payload, topic=topic, kind=kind)
            elif how == "publish":
                sequence = self.writer.publish(message.payload, topic=topic, kind=kind, timeout=0)
            else:
                sequence = self.write_in_place(message, slack)
        self.accepted(sequence, message)

    def write_in_place(self, message: Published, slack: int) -> int:
        size = min(len(message.payload) + slack, self.writer.max_message)
        with self.writer.reserve(size, timeout=0) as room:
            room[:] = b"?" * size
            room[: len(message.payload)] = message.payload
            return room.commit(len(message.payload), topic=message.topic, kind=message.kind)

    @precondition(lambda self: not self.ring.ended)
    @rule(name=NAMES)
    def add_topic(self, name: str) -> None:
        assert self.writer.topic(name) == self.ring.topic(name)

    @precondition(lambda self: not self.ring.ended)
    @rule(lengths=st.lists(st.integers(0, 300), max_size=20), topic=st.integers(0, MAX_TOPICS))
    def publish_many(self, lengths: list[int], topic: int) -> None:
        first = self.ring.published
        limit = self.ring.capacity // 4
        payloads = [
            random.Random(first + i).randbytes(min(n, limit)) for i, n in enumerate(lengths)
        ]
        try:
            assert self.writer.publish_many(payloads, topic=topic, timeout=0) == range(
                first, first + len(payloads)
            )
            published = len(payloads)
        except shm.RingFull as error:
            published = error.published
        for payload in payloads[:published]:
            self.accepted(self.ring.published, Published(payload, topic, 2))
        assert published > 0 or not payloads or not self.ring.must_accept()

    @precondition(lambda self: not self.ring.ended)
    @rule(length=st.integers(0, 2000), leave=st.booleans())
    def reserve_and_abandon(self, length: int, leave: bool) -> None:
        try:
            room = self.writer.reserve(length % (self.writer.max_message + 1), timeout=0)
        except shm.RingFull:
            assert not self.ring.must_accept()
            return
        room[:] = b"!" * len(room)
        if leave:
            with room:
                pass
        del room
        assert self.writer.sequence == self.ring.published

    @precondition(lambda self: self.parties and not self.ring.ended)
    @rule(number=PICK)
    def demote(self, number: int) -> None:
        party = pick(self.parties, number)
        model = party.model
        expected = model.gating and not model.asked
        assert self.writer.demote(party.reader.slot) == expected
        model.asked = model.asked or expected

    @precondition(lambda self: self.parties and not self.ring.ended)
    @rule(number=PICK, really=SELDOM)
    def evict(self, number: int, really: bool) -> None:
        if not really:
            return
        party = pick(self.parties, number)
        assert self.writer.evict(party.reader.slot) == (not party.model.evicted)
        party.model.evict()
        for hold in party.holds:
            hold.expected = []  # no longer valid

    @precondition(lambda self: not self.ring.ended)
    @rule(really=SELDOM, surely=SELDOM)
    def end(self, really: bool, surely: bool) -> None:
        if really and surely:
            self.writer.close()
            self.ring.ended = True

    # -- readers come and go

    @rule(
        policy=POLICIES,
        start=st.one_of(st.sampled_from(["latest", "latest", "oldest"]), st.integers(0, 40)),
        topics=LISTS,
        others=st.booleans(),
    )
    def attach(self, policy: Any, start: Any, topics: list[str] | None, others: bool) -> None:
        full = len(self.parties) == MAX_READERS
        if full or (isinstance(start, int) and start > self.ring.published):
            with pytest.raises(shm.TooManyReaders if full else ValueError):
                Reader.attach(self.ring_name, policy=policy, start=start)
            return
        self.attach_one(policy, start, topics, others=others)

    def attach_one(
        self, policy: Any, start: Any, topics: list[str] | None, *, others: bool
    ) -> None:
        oldest = self.status().oldest
        wanted = {"latest": self.ring.published, "oldest": oldest}.get(start, start)
        reader = Reader.attach(
            self.ring_name, policy=policy, start=start, topics=topics, others=others
        )
        model = ReaderModel(
            self.ring,
            wanted,
            max(wanted, oldest),
            gating=policy == "block",
            topics=topics,
            others=others and topics is not None,
        )
        assert reader.cursor == model.cursor
        self.parties.append(Party(reader, model))
        self.ring.readers.append(model)

    @precondition(lambda self: self.parties)
    @rule(number=PICK, really=SELDOM)
    def close(self, number: int, really: bool) -> None:
        party = pick(self.parties, number)
        if party.holds:
            with pytest.raises(
                BufferError, match=f"of message {min(h.pinned for h in party.holds)}"
            ):
                party.reader.close()
        elif really:
            party.reader.close()
            self.forget(party)

    @precondition(lambda self: self.open_ones())
    @rule(number=PICK, really=SELDOM)
    def leave(self, number: int, really: bool) -> None:
        party = pick(self.open_ones(), number)
        if not (really or party.holds):
            return
        with party.reader:
            pass
        assert party.reader.closed
        party.model.closed = True
        if not party.holds:
            self.forget(party)

    @precondition(lambda self: self.closed_ones())
    @rule(number=PICK)
    def use_a_closed_one(self, number: int) -> None:
        with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
            pick(self.closed_ones(), number).reader.read_available()

    # -- what they want

    def choosing_ones(self) -> list[Party]:
        """The open readers that choose among topics."""
        return [party for party in self.open_ones() if party.model.topics is not None]

    @precondition(lambda self: self.choosing_ones())
    @rule(number=PICK, topics=st.lists(PATTERNS, max_size=3))
    def subscribe(self, number: int, topics: list[str]) -> None:
        party = pick(self.choosing_ones(), number)
        party.reader.subscribe(*topics)
        party.model.topics = list(dict.fromkeys(party.model.topics + topics))

    @precondition(lambda self: self.choosing_ones())
    @rule(number=PICK, topics=st.lists(PATTERNS, max_size=3))
    def unsubscribe(self, number: int, topics: list[str]) -> None:
        party = pick(self.choosing_ones(), number)
        party.reader.unsubscribe(*topics)
        party.model.topics = [topic for topic in party.model.topics if topic not in topics]

    @precondition(lambda self: self.open_ones())
    @rule(number=PICK, name=NAMES)
    def latest(self, number: int, name: str) -> None:
        """It is the newest of the topic, if the ring has it, whatever became of the reader."""
        message = pick(self.open_ones(), number).reader.latest(name)
        newest = self.ring.newest.get(name, -1)
        if newest < self.status().oldest:
            assert message is None
        else:
            expected = self.ring.messages[newest]
            assert message is not None
            assert (message.sequence, bytes(message)) == (newest, expected.payload)

    # -- reading

    def call(self, party: Party, call: Callable[[], Any]) -> Any:
        """One call into the ring; None if it raised what it had to."""
        model = party.model
        try:
            result = call()
        except shm.Evicted:
            assert model.evicted
            return None
        except shm.RingClosed:
            assert self.ring.ended
            model.step_down_if_asked()
            model.find_nothing(party.reader.cursor, party.reader.lost, self.status().oldest)
            return None
        assert not model.evicted
        model.step_down_if_asked()
        return result

    def received(self, party: Party, message: Message, keep: str) -> None:
        """One message came."""
        oldest = self.status().oldest
        expected = party.model.receive(message.sequence, message.gap, oldest)
        assert (message.topic, message.kind) == (expected.topic, expected.kind)
        assert bytes(message) == expected.payload
        if keep == "view" and party.model.gating:
            view = message.payload
            party.add_hold(Hold(message.sequence, [expected.payload], [view]))
        elif keep != "drop":
            party.kept.append(Kept(message, expected.payload))

    @precondition(lambda self: self.open_ones())
    @rule(number=PICK, keep=st.sampled_from(["drop", "keep", "view"]))
    def read(self, number: int, keep: str) -> None:
        party = pick(self.open_ones(), number)
        nothing = object()

        def read() -> object:
            message = party.reader.read(timeout=0)
            return nothing if message is None else message

        message = self.call(party, read)
        if message is nothing:
            party.model.find_nothing(party.reader.cursor, party.reader.lost, self.status().oldest)
        elif message is not None:
            self.received(party, message, keep)

    @precondition(lambda self: self.open_ones())
    @rule(number=PICK, limit=st.integers(1, 70), keep=st.sampled_from(["drop", "keep", "view"]))
    def read_available(self, number: int, limit: int, keep: str) -> None:
        party = pick(self.open_ones(), number)
        messages = self.call(party, lambda: party.reader.read_available(limit))
        if messages == []:
            party.model.find_nothing(party.reader.cursor, party.reader.lost, self.status().oldest)
        elif messages is not None:
            assert len(messages) <= limit
            if party.model.asked or (self.ring.ended and len(messages) < limit):
                keep = "keep"  # on its way down, or at the end, it may have copied them already
            for message in messages:
                self.received(party, message, keep)
            party.model.skip_to(party.reader.cursor)

    @precondition(lambda self: self.open_ones())
    @rule(
        number=PICK,
        limit=st.integers(1, 70),
        keep=st.sampled_from(["release", "open", "views"]),
    )
    def batch(self, number: int, limit: int, keep: str) -> None:
        party = pick(self.open_ones(), number)
        batch = self.call(party, lambda: party.reader.batch(limit, timeout=0))
        if batch is None:
            return
        assert len(batch) <= limit
        if len(batch) == 0:
            party.model.find_nothing(party.reader.cursor, party.reader.lost, self.status().oldest)
            batch.release()
            return
        expected = self.check_batch(party, batch)
        party.model.skip_to(party.reader.cursor)
        if keep == "release" or not party.model.gating:
            batch.release()
        elif keep == "open":
            party.add_hold(Hold(batch.first, [], [], batch))
        else:
            views = [batch.payload(i) for i in range(len(batch))]
            batch.release()
            party.add_hold(Hold(batch.first, expected, views))

    def check_batch(self, party: Party, batch: Batch) -> list[bytes]:
        """All in it is as published; the payloads."""
        oldest = self.status().oldest
        payloads = []
        table = batch.descriptors
        for i in range(len(batch)):
            gap = batch.gap if i == 0 else 0
            sequence = int(table["seq1"][i]) - 1
            assert i or sequence == batch.first
            expected = party.model.receive(sequence, gap, oldest)
            assert (table["topic"][i], table["kind"][i]) == (expected.topic, expected.kind)
            assert bytes(batch.payload(i)) == expected.payload
            payloads.append(expected.payload)
        return payloads

    # -- letting go

    @precondition(lambda self: self.holding_ones())
    @rule(number=PICK, which=PICK)
    def release(self, number: int, which: int) -> None:
        party = pick(self.holding_ones(), number)
        party.release(pick(party.holds, which))
        if party.model.closed and not party.holds:
            self.forget(party)

    @precondition(lambda self: any(party.kept for party in self.parties))
    @rule(number=PICK)
    def drop_kept_messages(self, number: int) -> None:
        pick([party for party in self.parties if party.kept], number).kept.clear()

    # -- what is always so

    @invariant()
    def nothing_held_changes(self) -> None:
        for party in self.parties:
            if not party.model.evicted:
                for hold in party.holds:
                    hold.check()
            for kept in party.kept:
                self.check_kept(kept, evicted=party.model.evicted)
        for kept in self.gone:
            self.check_kept(kept, evicted=True)
        del self.gone[:-20]

    @staticmethod
    def check_kept(kept: Kept, *, evicted: bool) -> None:
        """A message that is kept reads as it did, or says that its reader was evicted."""
        try:
            assert bytes(kept.message) == kept.expected
        except shm.Evicted:
            assert evicted

    @invariant()
    def figures(self) -> None:
        for party in self.parties:
            reader, model = party.reader, party.model
            assert reader.cursor == model.cursor
            assert reader.lost == model.lost >= 0
            assert (reader.received, reader.skipped) == (model.received, model.skipped)
            assert model.received + model.skipped + model.lost == reader.cursor - model.start
            if not model.closed and model.topics is not None:
                assert list(reader.subscriptions) == model.topics
            if not model.evicted:
                assert (reader.policy == "block") == model.gating
            if not model.closed:
                assert reader.lag == self.ring.published - model.cursor

    @rule()
    def look(self) -> None:
        status = self.status()
        ring = self.ring
        assert status.state == ("closed" if ring.ended else "open")
        assert status.sequence == self.writer.sequence == ring.published
        assert max(0, ring.published - ring.slots) <= status.oldest <= ring.published
        assert 0 <= status.occupancy <= 1
        by_slot = {reader.slot: reader for reader in status.readers}
        assert sorted(by_slot) == sorted(party.reader.slot for party in self.parties)
        for party in self.parties:
            self.check_status(party.model, by_slot[party.reader.slot], status.oldest)

    def check_status(self, model: ReaderModel, status: shm.ReaderStatus, oldest: int) -> None:
        assert status.gating == model.gating
        assert not status.waiting
        assert status.lost == model.lost
        assert status.received <= model.received
        assert status.skipped <= model.skipped
        assert status.topics == (None if model.topics is None else tuple(model.topics))
        assert status.others == model.others
        assert (status.state == "evicted") == model.evicted
        if model.gating:
            assert oldest <= status.cursor <= model.floor()
            assert status.lag == self.ring.published - status.cursor <= self.ring.slots
            assert status.state == ("demoting" if model.asked else "active")


@pytest.mark.parametrize("examples", [80, pytest.param(600, marks=pytest.mark.stress)])
def test_the_ring_follows_its_model(name: str, examples: int) -> None:
    class Machine(RingMachine):
        ring_name = name

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
