"""One subscription at the server for all who want a topic, exactly while somebody does: with each
venue's server, workers that come and go at random, and deaths."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Final

import pytest

from ringcast import Manager, attach
from tests.conftest import DEADLINE, Processes, eventually

from .manager import kill
from .subscribers import TOPICS, come_and_go, config_of, drain, hold, states
from .traffic import stress_seconds
from .venues import VenueServer

WORKERS_MAX: Final = 8
BRIEFLY: Final = 0.2
"""Seconds that workers come and go in a default run."""
USUAL: Final = ("binance", "bitfinex", "coinbase")
"""Venues with an id, a channel number, and a list of all topics in their answers."""

some_venues: Final = pytest.mark.parametrize(
    "venue",
    [*USUAL, *(pytest.param(v, marks=pytest.mark.stress) for v in TOPICS if v not in USUAL)],
)
"""The others in the long run."""


class Steady:
    """A worker that wants one topic all the time, and misses nothing of it.

    Attributes:
        topic: the one.
        expected: the number of the next message.
    """

    def __init__(self, name: str, topic: str) -> None:
        self.topic = topic
        self.feed = attach(name, topics=[topic], timeout=DEADLINE)
        self.expected = 1

    def check(self) -> None:
        """All that came is the topic's, and follows what came before."""
        for topic, number in drain(self.feed):
            assert (topic, number) == (self.topic, self.expected)
            self.expected += 1

    def check_to(self, number: int) -> None:
        """It comes to this number."""

        def came() -> bool:
            self.check()
            return self.expected > number

        eventually(came, f"message {number} of {self.topic}")


class Crowd:
    """One to eight workers that come and go."""

    def __init__(
        self, name: str, topics: list[str], rng: random.Random, processes: Processes
    ) -> None:
        self._name = name
        self._topics = topics
        self._rng = rng
        self._processes = processes
        self._living: list[tuple[BaseProcess, Event]] = []

    def turn(self) -> None:
        """One comes or goes, or is killed."""
        rng = self._rng
        if len(self._living) <= 1 or (len(self._living) < WORKERS_MAX and rng.random() < 0.5):
            stop = multiprocessing.get_context("fork").Event()
            seed = rng.getrandbits(32)
            process = self._processes.start(come_and_go, self._name, self._topics, seed, stop)
            self._living.append((process, stop))
            return
        process, stop = self._living.pop(rng.randrange(len(self._living)))
        if rng.random() < 0.5:
            self._processes.kill(process)
        else:
            stop.set()
            self._processes.join(process)

    def go(self) -> None:
        """All leave, one way or another."""
        while len(self._living) > 1:
            self.turn()
        for process, stop in self._living:
            stop.set()
            self._processes.join(process)


def churn(
    server: VenueServer, topics: list[str], crowd: Crowd, steady: Steady, seconds: float
) -> int:
    """Workers come and go while messages are sent; returns how many of the steady one's."""
    rng = random.Random(0)
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        crowd.turn()
        for topic in [steady.topic, *rng.sample(topics, 2)]:
            server.publish(topic)
        number += 1
        steady.check()
    crowd.go()
    steady.feed.subscribe("no such*")  # wakes the manager, which finds the dead now
    return number


def subscribes(server: VenueServer, name: str, op: str = "subscribe", connection: int = 1) -> int:
    """How often a topic was asked for."""
    requests = [said for said in server.requests(op) if said.connection == connection]
    return sum(said.names.count(name) for said in requests)


def play(venue: str, name: str, processes: Processes, seed: int, seconds: float) -> None:
    """Workers come and go, and the connection does."""
    kept, *others = TOPICS[venue]
    with VenueServer(venue) as server, Manager(config_of(server.url, name, venue)):
        steady = Steady(name, kept)
        crowd = Crowd(name, others, random.Random(seed), processes)
        number = churn(server, others, crowd, steady, seconds)
        steady.check_to(number)
        server.wait_for(kept)  # all others are unsubscribed
        assert subscribes(server, kept) == 1
        assert subscribes(server, kept, "unsubscribe") == 0

        wanted = [kept, *others[:2]]
        steady.feed.subscribe(*others[:2])
        server.drop()
        server.wait_for(*wanted)
        assert [subscribes(server, n, connection=2) for n in wanted] == [1, 1, 1]
        eventually(
            lambda: states(steady.feed) == dict.fromkeys(wanted, "subscribed"),
            "states are as before",
        )
        server.publish(kept)
        steady.check_to(number + 1)
        steady.feed.close()
        server.wait_for()
        assert not server.violations


@some_venues
def test_a_topic_is_subscribed_once_exactly_while_somebody_wants_it(
    venue: str, name: str, processes: Processes, seed: int
) -> None:
    play(venue, name, processes, seed, BRIEFLY)


@pytest.mark.stress
@pytest.mark.parametrize("venue", TOPICS)
def test_for_long(venue: str, name: str, processes: Processes, seed: int) -> None:
    play(venue, name, processes, seed, stress_seconds() / len(TOPICS))


def test_a_killed_worker_takes_nothing_from_others(name: str, processes: Processes) -> None:
    kept, other = TOPICS["okx"][:2]
    context = multiprocessing.get_context("fork")
    with VenueServer("okx") as server, Manager(config_of(server.url, name, "okx")):
        steady = Steady(name, kept)
        ready, stop = context.Event(), context.Event()
        doomed = processes.start(hold, name, [kept, other], ready, stop)
        assert ready.wait(DEADLINE)
        server.wait_for(kept, other)
        processes.kill(doomed)
        server.wait_for(kept)
        server.publish(kept)
        steady.check_to(1)
        assert subscribes(server, kept) == 1
        assert not server.violations
        steady.feed.close()


@some_venues
def test_the_next_manager_reads_the_wishes_again(venue: str, name: str) -> None:
    kept, gone, coming, later = TOPICS[venue][:4]
    with VenueServer(venue) as server:
        config = config_of(server.url, name, venue)
        with Manager(config) as manager:
            steady = Steady(name, kept)
            server.publish(kept, 5)
            steady.check_to(3)
            steady.feed.subscribe(gone)
            kill(manager)
        # Wishes are only written down.
        steady.feed.subscribe(coming, wait=False)
        steady.feed.unsubscribe(gone)
        with pytest.raises(TimeoutError):
            steady.feed.subscribe(coming, timeout=0.02)
        with Manager(config):
            steady.feed.subscribe(later, timeout=DEADLINE)
            server.wait_for(kept, coming, later)
            wanted = dict.fromkeys([kept, coming, later], "subscribed")
            eventually(lambda: states(steady.feed) == wanted, "states are right")
            server.publish(kept)
            steady.check_to(6)
            steady.feed.unsubscribe(coming, later)
            server.wait_for(kept)
            eventually(
                lambda: states(steady.feed) == {kept: "subscribed"}, "topics that nobody wants"
            )
            steady.feed.close()
        assert not server.violations


def test_topics_linger(name: str) -> None:
    """Who comes back in time finds the subscription as it was."""
    first, second = TOPICS["okx"][:2]
    with VenueServer("okx") as server, Manager(config_of(server.url, name, "okx", linger=3600)):
        with attach(name, topics=[first], timeout=DEADLINE):
            pass
        with attach(name, topics=[second], timeout=DEADLINE):
            pass
        with attach(name, topics=[first], timeout=DEADLINE) as feed:
            server.publish(first)
            assert feed.read(DEADLINE) is not None
        assert len(server.requests("subscribe")) == 2
        assert not server.requests("unsubscribe")
        assert not server.violations


def test_the_managers_own_topics_stay(name: str) -> None:
    own, other = TOPICS["bybit"][:2]
    with (
        VenueServer("bybit") as server,
        Manager(config_of(server.url, name, "bybit", subscribe=[own])),
    ):
        server.wait_for(own)
        with attach(name, topics=[own, other], timeout=DEADLINE) as feed:
            server.publish(other)
            assert feed.read(DEADLINE) is not None
            assert {t.name: t.wanted_by for t in feed.topics} == {own: 1, other: 1}
        server.wait_for(own)
        assert len(server.requests("subscribe")) == 2
        assert not server.violations
