"""Subscriptions against a server and a model: workers come and go at random."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ringcast.broker.topics.venue import Confirmation
from tests.integration.traffic import stress_seconds

from .play import PlayServer, PlayVenue, answer
from .world import BAD, NAMES, World

SLOTS = st.integers(0, 7)
SOME_NAMES = st.sets(st.sampled_from(NAMES), max_size=8)
DELAY_MAX = 0.9
"""Seconds: shorter than the rest of a refused batch is waited for."""
RATES = [None, None, 0.5, 5.0]
LIMITS = [None, None, 3, 6, 12]
LOSSES = [0.0, 0.0, 0.1, 0.5]


class SubscriptionsMachine(RuleBasedStateMachine):
    """Any sequence of calls."""

    @initialize(
        confirmation=st.sampled_from(Confirmation),
        named=st.booleans(),
        per_request=st.sampled_from([None, 1, 3]),
        limit=st.sampled_from(LIMITS),
        rate=st.sampled_from(RATES),
        burst=st.integers(1, 4),
        every=st.sampled_from([0.0, 3.0, 60.0]),
        loss=st.sampled_from(LOSSES),
        seed=st.integers(0, 1000),
        connected=st.booleans(),
    )
    def begin(
        self,
        confirmation: Confirmation,
        named: bool,
        per_request: int | None,
        limit: int | None,
        rate: float | None,
        burst: int,
        every: float,
        loss: float,
        seed: int,
        connected: bool,
    ) -> None:
        venue = PlayVenue(
            confirmation,
            topics_per_request=per_request,
            topics_per_connection=limit,
            messages_per_second=rate,
            burst=burst,
            every=every,
        )
        named = named and confirmation in (Confirmation.ID, Confirmation.TOPIC)
        server = PlayServer(
            confirmation, frozenset(BAD), named=named, delay=DELAY_MAX, loss=loss, seed=seed
        )
        self.world = World(venue, server, connected)

    @rule(slot=SLOTS, names=SOME_NAMES, again=SOME_NAMES)
    def wish(self, slot: int, names: set[str], again: set[str]) -> None:
        self.world.wish(slot, names, again)

    @rule(slot=SLOTS)
    def leave(self, slot: int) -> None:
        self.world.leave(slot)

    @rule(slot=SLOTS, name=st.sampled_from(["new0", "new1", "ask0", "t0"]))
    def snapshot(self, slot: int, name: str) -> None:
        self.world.snapshot(slot, name)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 4.9, 5.0, 30.0]), most=st.sampled_from([1, 99]))
    def run_for(self, seconds: float, most: int) -> None:
        self.world.run(seconds, most)

    @rule()
    def disconnect(self) -> None:
        self.world.disconnect()

    @rule()
    def connect(self) -> None:
        self.world.connect()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.rest()


def test_any_sequence_of_calls_keeps_the_server_with_the_workers() -> None:
    run_state_machine_as_test(
        SubscriptionsMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def random_world(seed: int) -> World:
    """Rules and a server drawn by lot."""
    draw = random.Random(seed)
    confirmation = draw.choice(list(Confirmation))
    venue = PlayVenue(
        confirmation,
        topics_per_request=draw.choice([None, 1, 2, 5]),
        topics_per_connection=draw.choice(LIMITS),
        messages_per_second=draw.choice(RATES),
        burst=draw.randint(1, 4),
        every=draw.choice([0.0, 3.0, 60.0]),
    )
    named = draw.random() < 0.5 and confirmation in (Confirmation.ID, Confirmation.TOPIC)
    delay = draw.choice([0.0, DELAY_MAX])
    loss = draw.choice(LOSSES)
    server = PlayServer(confirmation, frozenset(BAD), named=named, delay=delay, loss=loss)
    return World(venue, server, connected=True)


def play_at_random(seed: int, steps: int) -> None:
    """One to eight workers come and go, now and then the connection."""
    draw = random.Random(seed)
    world = random_world(seed)
    slots = range(draw.randint(1, 8))
    for _ in range(steps):
        slot, chance = draw.choice(slots), draw.random()
        if chance < 0.5:
            names = draw.sample(NAMES, draw.randint(0, 6))
            again = draw.sample(names, draw.randint(0, len(names)))
            world.wish(slot, names, again)
        elif chance < 0.65:
            world.leave(slot)
        elif chance < 0.75:
            world.snapshot(slot, draw.choice(["new0", "new1", "ask0"]))
        elif chance < 0.78:
            world.disconnect()
        elif chance < 0.88:
            world.connect()
        world.run(draw.choice([0.0, 0.0, 0.2, 2.0, 7.0]), draw.choice([1, 99]))
        if draw.random() < 0.02:
            world.rest()
    world.rest()


@pytest.mark.parametrize("seed", range(50))
def test_workers_come_and_go(seed: int) -> None:
    play_at_random(seed, 100)


@pytest.mark.stress
def test_workers_come_and_go_for_long() -> None:
    end = time.monotonic() + stress_seconds()
    seed = 1000
    while time.monotonic() < end:
        print(f"seed {seed}")
        play_at_random(seed, 300)
        seed += 1


def test_no_answer_of_a_server_gone_mad_does_harm() -> None:
    """Whatever it says, no exception, and on the next connection all is well."""
    for seed in range(50):
        draw = random.Random(seed)
        world = random_world(seed)
        world.server.loss, world.strict = 1.0, False
        names = [*NAMES, "strange", "own"]
        for _ in range(100):
            world.wish(draw.randrange(3), draw.sample(NAMES, 4))
            said = answer(
                draw.choice(["subscribed", "unsubscribed", "refused", "listed"]),
                *draw.sample(names, draw.choice([0, 0, 1, 3, 8])),
                number=draw.choice([None, 1_000_000_001 + draw.randrange(200)]),
                reason="mad",
            )
            world.desk.heard(said)
            for _ in world.desk.take():
                pass
            world.desk.now += draw.choice([0.0, 0.5, 5.0])
        world.server.loss, world.strict = 0.0, True
        world.tokens = float(world.venue.burst)
        world.disconnect()
        world.rest()
