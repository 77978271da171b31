"""A group against its model: any sequence of calls, one writer and a few members, a tiny ring.

What there is to be had depends on time, since what was given back has a pause. So rules have no
preconditions: those that find nothing to do do nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupMessage, Member
from tests.conftest import BETWEEN_LOOKS, DEADLINE

from .conftest import text
from .model import WANTED, GroupModel

SLOTS = 16
MAX_MEMBERS = 3
MOST = 4
PICK = st.integers(0, 63)
"""Which of the members, messages and so on there are: modulo their number."""
TOPICS = st.sampled_from([None, "a", "ab", "b", "new", "newer"])


@dataclass(slots=True, eq=False)
class Party:
    """A member, and the messages that its program has in hand."""

    number: int
    member: Member
    held: dict[int, GroupMessage] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Hold:
    """A view of a message that is done."""

    party: Party
    sequence: int
    view: memoryview

    def check(self) -> None:
        assert bytes(self.view) == text(self.sequence)


def pick(things: list[Any], number: int) -> Any:
    """One of several things."""
    return things[number % len(things)]


class GroupMachine(RuleBasedStateMachine):
    """Calls of the public names, each checked against the model."""

    ring_name: str
    balance: Any

    @initialize(topics=st.booleans(), members=st.integers(1, MAX_MEMBERS))
    def create(self, topics: bool, members: int) -> None:
        self.parties: list[Party] = []
        self.holds: list[Hold] = []
        self.count = 0
        self.options: dict[str, Any] = {
            "balance": self.balance,
            "auto_ack": False,
            "max_deliveries": MOST,
            "topics": ["a*", "new"] if topics else None,
        }
        self.writer = Writer.create(
            self.ring_name, slots=SLOTS, capacity=1024, max_readers=MAX_MEMBERS + 1, max_topics=8
        )
        self.model = GroupModel(SLOTS, self.balance == "key", MOST)
        for _ in range(members):
            self.join()

    def teardown(self) -> None:
        if not hasattr(self, "writer"):
            return
        try:
            self.drain()
        finally:
            for hold in self.holds:
                hold.view.release()
            for party in self.parties:
                party.held.clear()
                party.member.close()
            self.writer.close()
            self.writer.unlink()

    # -- the writer

    @rule(key=st.integers(1, 5), topic=TOPICS)
    def publish(self, key: int, topic: str | None) -> None:
        number = 0 if topic is None else self.writer.topic(topic)
        payload = text(self.writer.sequence)
        if self.model.must_accept():
            self.writer.publish(payload, key=key, topic=number, timeout=DEADLINE)
        elif self.writer.try_publish(payload, key=key, topic=number) is None:
            return
        else:
            assert self.model.may_accept(), "took what the group still needs"
        self.model.publish(key, wanted=self.options["topics"] is None or topic in WANTED)

    # -- members come and go

    @rule()
    def join(self) -> None:
        if len(self.parties) == MAX_MEMBERS:
            return
        member = Member.attach(self.ring_name, "g", **self.options)
        self.parties.append(Party(self.count, member))
        self.model.join(self.count)
        self.count += 1

    @rule(number=PICK, how=st.sampled_from(["close", "close", "drop", "evict"]))
    def leave(self, number: int, how: str) -> None:
        if not self.parties:
            return
        party = pick(self.parties, number)
        holds = [hold for hold in self.holds if hold.party is party]
        if holds and how != "drop":
            named = "|".join(str(hold.sequence) for hold in holds)
            with pytest.raises(BufferError, match=f"of message ({named}):"):
                party.member.close()
            return
        if holds:
            return
        if how == "evict":
            assert self.writer.evict(party.member.slot)
            self.model.evict()
        kept = list(party.held.values()) if how == "close" else []
        if how == "drop":
            party.held.clear()
        party.member.close()
        for message in kept:
            assert bytes(message) == text(message.sequence)
        party.held.clear()
        self.parties.remove(party)
        self.model.leave(party.number)

    # -- taking, and what becomes of it

    @rule(number=PICK, count=st.integers(1, 4))
    def take(self, number: int, count: int) -> None:
        if not self.parties:
            return
        party = pick(self.parties, number)
        for _ in range(count):
            if not self.take_one(party):
                break

    def take_one(self, party: Party) -> bool:
        message = party.member.read(timeout=0)
        if message is None:
            self.model.find_nothing(party.number)
            return False
        self.received(party, message)
        return True

    def received(self, party: Party, message: GroupMessage) -> None:
        assert bytes(message) == text(message.sequence)
        assert message.gap == 0
        self.model.take(party.number, message.sequence, message.deliveries)
        party.held[message.sequence] = message

    @rule(number=PICK, limit=st.integers(1, 6))
    def read_available(self, number: int, limit: int) -> None:
        if not self.parties:
            return
        party = pick(self.parties, number)
        messages = party.member.read_available(limit=limit)
        assert len(messages) <= limit
        if not messages:
            self.model.find_nothing(party.number)
        for message in messages:
            self.received(party, message)

    @rule(number=PICK, limit=st.integers(1, 6), end=st.sampled_from(["ack", "leave", "fail"]))
    def batch(self, number: int, limit: int, end: str) -> None:
        if not self.parties:
            return
        party = pick(self.parties, number)
        batch = party.member.batch(limit, timeout=0)
        sequences = (batch.descriptors["seq1"].astype("i8") - 1).tolist()
        if not sequences:
            self.model.find_nothing(party.number)
        for index, sequence in enumerate(sequences):
            assert bytes(batch.payload(index)) == text(sequence)
            self.model.take(party.number, sequence, batch.deliveries)
            assert batch.deliveries == 1 or len(sequences) == 1
        if end == "ack":
            batch.ack()
        elif end == "fail":
            batch.nack()
        with batch:
            pass
        for index, sequence in enumerate(sequences):
            if end == "ack":
                self.model.ack(sequence)
            else:
                self.model.give_back(sequence, pause=end == "fail" and index == 0)

    @rule(number=PICK, which=PICK, how=st.sampled_from(["ack", "ack", "ack", "view"]))
    def ack(self, number: int, which: int, how: str) -> None:
        holding = [party for party in self.parties if party.held]
        if not holding:
            return
        party = pick(holding, number)
        message = party.held.pop(pick(list(party.held), which))
        if how == "view":
            self.holds.append(Hold(party, message.sequence, message.payload))
            self.model.entries[message.sequence].views += 1
        message.ack()
        message.ack()
        self.model.ack(message.sequence)

    @rule(number=PICK, which=PICK, how=st.sampled_from(["nack", "drop"]))
    def give_back(self, number: int, which: int, how: str) -> None:
        holding = [party for party in self.parties if party.held]
        if not holding:
            return
        party = pick(holding, number)
        message = party.held.pop(pick(list(party.held), which))
        self.model.give_back(message.sequence, pause=how == "nack")
        if how == "nack":
            message.nack()
            with pytest.raises(ValueError, match="was given back"):
                message.ack()
        del message

    @rule(which=PICK)
    def release(self, which: int) -> None:
        if not self.holds:
            return
        hold = self.holds.pop(which % len(self.holds))
        hold.check()
        hold.view.release()
        self.model.entries[hold.sequence].views -= 1

    # -- what is always so

    @invariant()
    def nothing_held_changes(self) -> None:
        for hold in self.holds:
            hold.check()
        for party in self.parties:
            for sequence, message in party.held.items():
                assert bytes(message) == text(sequence)

    @rule()
    def look(self) -> None:
        (status,) = group.list_groups(self.ring_name)
        assert status.members == tuple(sorted(party.member.slot for party in self.parties))
        assert status.in_flight == len(self.model.in_hand())
        assert status.floor <= self.model.floor(looked=True)
        assert status.set_aside <= self.model.aside()
        assert (status.voided, status.lost, status.state) == (0, 0, "active")

    def drain(self) -> None:
        """Whatever happened, all of it can be done."""
        if not self.parties:
            self.join()
        end = time.monotonic() + DEADLINE
        while not self.model.is_done:
            assert time.monotonic() < end, "the rest does not come"
            before = len(self.model.in_hand())
            for party in self.parties:
                self.take_one(party)
                for sequence, message in party.held.items():
                    message.ack()
                    self.model.ack(sequence)
                party.held.clear()
            if before == 0:
                time.sleep(BETWEEN_LOOKS)
        while self.holds:
            self.release(0)
        while group.list_groups(self.ring_name)[0].lag:
            assert time.monotonic() < end, "the floor does not get there"
            for party in self.parties:
                assert party.member.read(timeout=0) is None
        (status,) = group.list_groups(self.ring_name)
        assert (status.set_aside, status.voided) == (self.model.aside(), 0)
        assert status.redelivered == sum(max(0, e.deliveries - 1) for e in self.model.entries)


@pytest.mark.parametrize("balance", ["any", "key"])
def test_the_group_follows_its_model(name: str, balance: Any) -> None:
    machine = type("Machine", (GroupMachine,), {"ring_name": name, "balance": balance})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
