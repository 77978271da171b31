"""An uplink against a model of it: the same calls, and the same results."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import HealthCheck, Phase, settings
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
from ringcast.shm import mpsc
from ringcast.shm.mpsc import Receiver, Sender
from tests.unit.conftest import Background
from tests.unit.mpsc.conftest import LANE, MAX_MESSAGE


class SenderModel:
    """A lane: what lies in it, in positions, and what of it is not acknowledged."""

    def __init__(self, sender: Sender, start: int) -> None:
        self.sender = sender
        self.written = self.taken = start
        self.ends: deque[int] = deque()
        self.unacknowledged = 0
        self.rejected = 0
        self.evicted = False

    def room(self, length: int, limit: int) -> bool:
        if limit and self.unacknowledged >= limit:
            return False
        return self.place(length) - self.taken <= LANE

    def place(self, length: int) -> int:
        """Position after the message."""
        size = -(-(16 + length) // 64) * 64
        left = LANE - self.written % LANE
        return self.written + size + (0 if size <= left else left)


class UplinkMachine(RuleBasedStateMachine):
    """Calls of the public names, each checked against the model."""

    uplink_name: str

    @initialize()
    def create(self) -> None:
        self.receiver = Receiver.create(
            self.uplink_name, max_senders=3, lane_bytes=LANE, auto_ack=False
        )
        self.senders: list[SenderModel] = []
        self.lanes: dict[int, SenderModel] = {}
        self.queue: deque[tuple[int, SenderModel, bytes]] = deque()
        self.taken: list[tuple[mpsc.Envelope, SenderModel]] = []
        self.in_flight_max = 0
        self.tickets = 0

    def teardown(self) -> None:
        for model in getattr(self, "senders", []):
            model.sender.close()
        if hasattr(self, "receiver"):
            self.receiver.close()
            self.receiver.unlink()

    @precondition(lambda self: len(self.senders) < 3)
    @rule()
    def attach(self) -> None:
        sender = self.attach_when_free()
        before = self.lanes.get(sender.lane)
        model = SenderModel(sender, before.taken if before else 0)
        self.lanes[sender.lane] = model
        self.senders.append(model)

    def attach_when_free(self) -> Sender:
        """Lanes of those that left are emptied: take all, as a receiver does."""
        self.take(64)
        self.acknowledge(64, False)
        attaching = Background(lambda: Sender.attach(self.uplink_name))
        while attaching.running:
            assert self.receiver.read(timeout=0.005) is None
        sender = attaching.result()
        assert isinstance(sender, Sender)
        return sender

    @precondition(lambda self: self.senders)
    @rule(which=st.integers(0, 2), length=st.integers(0, MAX_MESSAGE), wait=st.booleans())
    def send(self, which: int, length: int, wait: bool) -> None:
        model = self.senders[which % len(self.senders)]
        data = random.Random(self.tickets).randbytes(length)
        if model.evicted:
            with pytest.raises(shm.Evicted):
                model.sender.send(data)
        elif model.rejected:
            with pytest.raises(shm.SendRejected) as raised:
                model.sender.send(data)
            assert raised.value.count == model.rejected
            model.rejected = 0
        elif not model.room(length, self.in_flight_max):
            assert model.sender.try_send(data) is None
            if wait:
                with pytest.raises(shm.RingFull):
                    model.sender.send(data, timeout=0)
        else:
            assert model.sender.send(data, timeout=0) == self.tickets
            model.written = model.place(length)
            model.ends.append(model.written)
            model.unacknowledged += 1
            self.queue.append((self.tickets, model, data))
            self.tickets += 1

    @rule(count=st.integers(1, 8))
    def take(self, count: int) -> None:
        expected: list[tuple[int, int, bytes, SenderModel]] = []
        while self.queue and len(expected) < count:
            ticket, model, data = self.queue.popleft()
            if model.evicted:
                continue
            model.taken = model.ends.popleft()
            expected.append((ticket, model.sender.lane, data, model))
        got = self.receiver.read_available(count)
        assert [(m.ticket, m.sender, bytes(m)) for m in got] == [e[:3] for e in expected]
        self.taken += [(message, e[3]) for message, e in zip(got, expected, strict=True)]

    @rule(count=st.integers(1, 8), rejected=st.sampled_from([False, False, False, True]))
    def acknowledge(self, count: int, rejected: bool) -> None:
        some, self.taken = self.taken[:count], self.taken[count:]
        self.receiver.ack([message for message, _ in some], rejected=rejected)
        for _, model in some:
            model.unacknowledged -= 1
            model.rejected += rejected

    @rule(limit=st.integers(0, 4))
    def limit_in_flight(self, limit: int) -> None:
        self.receiver.limit_in_flight(limit)
        self.in_flight_max = limit

    @precondition(lambda self: self.senders)
    @rule(which=st.integers(0, 2), seldom=st.integers(0, 9))
    def leave(self, which: int, seldom: int) -> None:
        if seldom == 0:
            self.senders.pop(which % len(self.senders)).sender.close()

    @precondition(lambda self: self.senders)
    @rule(which=st.integers(0, 2), seldom=st.integers(0, 9))
    def evict(self, which: int, seldom: int) -> None:
        model = self.senders[which % len(self.senders)]
        if seldom == 0:
            self.receiver.evict(model.sender.lane)
            model.evicted = True

    @invariant()
    def agrees(self) -> None:
        for model in getattr(self, "senders", []):
            if not model.evicted:
                assert model.sender.pending == model.unacknowledged


def test_model(name: str) -> None:
    UplinkMachine.uplink_name = name
    run_state_machine_as_test(
        UplinkMachine,
        settings=settings(
            max_examples=40,
            phases=(Phase.reuse, Phase.generate),  # shrinking takes too long: lanes are waited for
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
