"""How a late joiner gets the state that a topic's messages build on."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import Feed, attach, shm
from ringcast.shm.broadcast import Message
from tests.conftest import DEADLINE, eventually

from .manager import running
from .subscribers import config_of, number_of, venue_file
from .venues import VenueServer

# ---- subscribed again --------------------------------------------------------------------------

BOOK: Final = "book:BTC/USD"
EVERY: Final = 0.3
OFTEN: Final = ("every = 5", f"every = {EVERY}")


def snapshot_of(feed: Feed) -> None:
    """Read on to a snapshot."""
    while True:
        message = feed.read(DEADLINE)
        assert message is not None
        if b'"snapshot"' in bytes(message):
            assert message.topic_name == BOOK
            return


def test_all_who_join_late_share_one_resubscription(name: str, tmp_path: Path) -> None:
    file = venue_file(tmp_path, "kraken", OFTEN)
    with VenueServer("kraken") as server, running(config_of(server.url, name, file)):
        with attach(name, topics=[]) as early, attach(name, topics=[]) as late:
            began = time.monotonic()
            early.subscribe(BOOK, snapshot=True, timeout=DEADLINE)
            snapshot_of(early)  # the subscription has brought it
            assert len(server.requests()) == 1
            with attach(name, topics=[]) as later:
                late.subscribe(BOOK, snapshot=True, wait=False)
                later.subscribe(BOOK, snapshot=True, timeout=DEADLINE)
                for feed in (early, late, later):
                    snapshot_of(feed)
            ops = [said.op for said in server.requests()]
            assert ops[:3] == ["subscribe", "unsubscribe", "subscribe"]
            # However many ask, and however often: it takes its time.
            for _ in range(5):
                late.subscribe(BOOK, snapshot=True, timeout=DEADLINE)
                snapshot_of(late)
            renewals = len(server.requests("unsubscribe"))
            assert renewals >= 4
            assert renewals - 1 <= (time.monotonic() - began) / EVERY
            server.wait_for(BOOK)
            server.publish(BOOK)
            numbers = [0]
            while numbers[-1] == 0:  # all the snapshots, and then what follows
                numbers += [number_of(message) for message in early.read_available(64)]
            assert numbers[-1] == 1
        assert not server.violations


def test_where_messages_are_whole_nothing_is_asked(name: str) -> None:
    topic = "ticker:BTC/USD"
    with (
        VenueServer("kraken") as server,
        running(config_of(server.url, name, "kraken")),
        attach(name, topics=[topic], timeout=DEADLINE),
        attach(name, topics=[]) as late,
    ):
        late.subscribe(topic, "ticker*", snapshot=True, timeout=DEADLINE)
        late.subscribe("trade:BTC/USD", timeout=DEADLINE)
        assert [said.op for said in server.requests()] == ["subscribe", "subscribe"]


# ---- requested ---------------------------------------------------------------------------------

TRADES: Final = "publicTrade.BTCUSDT"
REQUESTED: Final = (
    "[limits]",
    '[[snapshots]]\nnames = ["publicTrade.*"]\nkind = "request"\n'
    'request = { op = "snapshot", args = ["{name}"], req_id = "{id}" }\n\n[limits]',
)


def asked(server: VenueServer, count: int = 1) -> list[str]:
    """The ids of so many requests for snapshots, when they have come."""

    def found() -> list[str]:
        others = [json.loads(said.text) for said in list(server.log) if said.op == "other"]
        requests = [request for request in others if request["op"] == "snapshot"]
        assert all(request["args"] == [TRADES] for request in requests)
        ids = [request["req_id"] for request in requests]
        return ids if len(ids) >= count else []

    ids: list[str] = eventually(found, f"{count} snapshots are asked for")
    assert len(ids) == count
    return ids


def answer(number: str, text: str = "whole") -> str:
    """The server's answer to a request for a snapshot."""
    return json.dumps({"op": "snapshot", "req_id": number, "data": text})


def contents(messages: list[Message]) -> list[Any]:
    """Of messages: the number of a topic's, the data of an answer."""
    return [
        number_of(message) if message.topic_name == TRADES else json.loads(bytes(message))["data"]
        for message in messages
        if message.topic_name == TRADES or b'"data"' in bytes(message)
    ]


@contextlib.contextmanager
def joined(name: str, folder: Path, **options: Any) -> Iterator[tuple[VenueServer, Feed, Feed]]:
    """A server, a worker that has had the topic for long, and one that joins late and asks."""
    file = venue_file(folder, "bybit", REQUESTED)
    with (
        VenueServer("bybit") as server,
        running(config_of(server.url, name, file, **options)),
        attach(name, topics=[TRADES], timeout=DEADLINE) as early,
        attach(name, topics=[]) as late,
    ):
        late.subscribe(TRADES, snapshot=True, timeout=DEADLINE)
        yield server, early, late


def test_an_answer_goes_to_the_worker_that_asked(name: str, tmp_path: Path) -> None:
    file = venue_file(tmp_path, "bybit", REQUESTED)
    with (
        VenueServer("bybit") as server,
        running(config_of(server.url, name, file)),
        attach(name, topics=[TRADES], timeout=DEADLINE) as early,
        attach(name, topics=[], others=True) as late,
        attach(name, topics=[]) as later,
        attach(name, events=True) as everything,
        attach(name, policy="lossy") as lossy,
    ):
        late.subscribe(TRADES, snapshot=True, timeout=DEADLINE)
        (first,) = asked(server)
        later.subscribe(TRADES, snapshot=True, timeout=DEADLINE)
        _, second = asked(server, 2)
        server.publish(TRADES, 2)
        server.say(answer(second, "later's"))
        server.say(answer(first, "late's"))
        server.say(answer("1000", "nobody's"))
        server.publish(TRADES, 2)
        expected = {
            early: [1, 2, 3, 4],
            late: [1, 2, "late's", "nobody's", 3, 4],
            later: [1, 2, "later's", 3, 4],
            everything: [1, 2, "nobody's", 3, 4],
            lossy: [1, 2, "nobody's", 3, 4],
        }
        for feed, what in expected.items():
            taken = [feed.read(DEADLINE)]
            while contents([m for m in taken if m is not None])[-1:] != [4]:
                taken.append(feed.read(DEADLINE))
            assert contents([m for m in taken if m is not None]) == what
            assert feed.lost == 0
        status = {r.slot: r for r in shm.status(name).readers}
        published = shm.status(name).sequence
        assert everything.received + everything.skipped <= published
        assert status.keys() == {feed.slot for feed in expected}


def test_the_next_worker_in_the_slot_does_not_get_it(name: str, tmp_path: Path) -> None:
    with joined(name, tmp_path) as (server, early, late):
        (number,) = asked(server)
        slot = late.slot
        late.close()
        with attach(name, topics=[TRADES], timeout=DEADLINE) as other:
            assert other.slot == slot
            server.say(answer(number))
            server.publish(TRADES)
            for feed in (early, other):
                message = feed.read(DEADLINE)
                assert message is not None
                assert contents([message]) == [1]


def test_once_and_in_order_when_the_ring_is_full(name: str, tmp_path: Path) -> None:
    answers = 40
    with joined(name, tmp_path, slots=64, capacity=1 << 16) as (server, slow, late):
        (number,) = asked(server)
        for i in range(answers):
            server.publish(TRADES, 20)
            server.say(answer(number, f"{i}"))
        expected: list[Any] = []
        for i in range(answers):
            expected += [*range(20 * i + 1, 20 * i + 21), str(i)]
        numbers: list[Any] = []
        taken: list[Any] = []
        for _ in range(10):  # they take turns, and let the ring fill up each time
            eventually(lambda: max(r.lag for r in shm.status(name).readers) == 64, "it is full")
            numbers += contents(slow.read_available(40))
            taken += contents(late.read_available(40))
        while len(taken) < len(expected):
            numbers += contents(slow.read_available(40))
            taken += contents(late.read_available(40))
        numbers += contents(slow.read_available(64))
        assert taken == expected
        assert numbers == [number for number in expected if isinstance(number, int)]


def test_a_request_without_an_answer_is_made_again_on_the_next_connection(
    name: str, tmp_path: Path
) -> None:
    with joined(name, tmp_path) as (server, early, late):
        (first,) = asked(server)
        server.drop()
        _, second = asked(server, 2)
        server.say(answer(first, "too late"))  # nobody knows whose it is
        server.say(answer(second, "mine"))
        message = late.read(DEADLINE)
        assert message is not None
        assert contents([message]) == ["mine"]
        server.drop()
        server.wait_for(TRADES)
        assert asked(server, 2)  # it was answered
        assert early.read(0) is None


@pytest.mark.parametrize("kind", ["batch", "iteration"])
def test_every_way_of_reading_passes_over_what_is_for_others(
    kind: str, name: str, tmp_path: Path
) -> None:
    file = venue_file(tmp_path, "bybit", REQUESTED)
    with (
        VenueServer("bybit") as server,
        running(config_of(server.url, name, file)),
        attach(name, topics=[TRADES], timeout=DEADLINE) as late,
    ):
        late.subscribe(TRADES, snapshot=True, timeout=DEADLINE)
        (number,) = asked(server)
        with attach(name) as everything:
            server.publish(TRADES)
            server.say(answer(number, "late's"))
            server.publish(TRADES)
            eventually(lambda: everything.lag >= 3, "all is published")
            if kind == "batch":
                taken: list[bytes] = []
                while len(taken) < 2:
                    with everything.batch() as batch:
                        taken += [bytes(batch.payload(i)) for i in range(len(batch))]
            else:
                taken = [bytes(message) for message in itertools.islice(everything, 2)]
            assert [b'"data":{"n"' in payload for payload in taken] == [True, True]
            assert (everything.received, everything.skipped) == (2, 1)
