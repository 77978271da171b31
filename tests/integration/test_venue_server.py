"""The server that plays each exchange, and each venue file, over a connection."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ringcast.broker.topics.venue import Answer, Outcome, Venue
from ringcast.broker.topics.venue_file import load_venue
from tests.conftest import DEADLINE, eventually
from tests.integration.venues import VenueServer
from tests.unit.broker.topics import oracle
from tests.unit.broker.topics.test_venues import NAMES

VENUES = pytest.mark.parametrize("name", NAMES)


class Client:
    """A venue at a connection."""

    def __init__(self, venue: Venue, socket: ClientConnection) -> None:
        self.venue = venue
        self.socket = socket
        self.ids = itertools.count(1)
        self.topics: list[str] = []

    def ask(self, *names: str, subscribing: bool = True) -> int:
        requests = self.venue.requests(names, subscribing=subscribing, ids=self.ids)
        for request in requests:
            self.socket.send(request.text)
        return len(requests)

    def receive(self) -> list[Answer]:
        """What the next message says; a topic of it is noted."""
        payload = self.socket.recv(DEADLINE, decode=False)
        if not oracle.is_control(self.venue.control, payload):
            topic = oracle.topic_name(self.venue, payload)
            self.topics += [topic] if topic is not None else []
            return []
        for reply in self.venue.replies(payload):
            self.socket.send(reply)
        return self.venue.answers(payload)

    def answers(self, *outcomes: Outcome) -> list[Answer]:
        """Receive until an answer has one of these outcomes."""
        while True:
            found = self.receive()
            if any(answer.outcome in outcomes for answer in found):
                return found


@contextmanager
def connected(name: str, server: VenueServer) -> Iterator[Client]:
    venue = load_venue(name)
    with connect(server.url, compression=None, ping_interval=None) as socket:
        client = Client(venue, socket)
        for text in venue.initial:
            socket.send(text)
        yield client


@VENUES
def test_a_conversation(name: str) -> None:
    names = NAMES[name]
    with VenueServer(name) as server, connected(name, server) as client:
        client.ask(*names)
        server.wait_for(*names)
        for each in names:
            assert server.publish(each, 3) == 1
        while len([topic for topic in client.topics if topic == names[-1]]) < 3:
            client.receive()
        for each in names:
            assert client.topics.count(each) >= 3
        heartbeat = client.venue.heartbeat
        if heartbeat is not None:
            client.socket.send(heartbeat.send)
        server.beat()
        client.ask(*names, subscribing=False)
        while server.subscribed or server.owed:
            client.receive()
        assert server.publish(names[0]) == 0
        assert server.violations == []
        assert {each for said in server.requests() for each in said.names} == {*names}
        assert [said.op for said in server.log if said.op == "other"] == ["other"] * (
            len(client.venue.initial) + (heartbeat is not None) + (name == "deribit")
        )


@VENUES
def test_a_refusal(name: str) -> None:
    first, second = NAMES[name][:2]
    with (
        VenueServer(name, refuse={first: "not to be had"}) as server,
        connected(name, server) as client,
    ):
        client.ask(first)
        answers = client.answers(Outcome.REFUSED)
        client.ask(second)
        server.wait_for(second)
        assert name == "deribit" or "not to be had" in answers[0].reason
        server.refuse.clear()
        client.ask(first)
        server.wait_for(first, second)
        assert server.violations == []


def test_silence_and_a_cut() -> None:
    with VenueServer("okx", silent=["trades:A-B"]) as server:
        with connected("okx", server) as client:
            client.ask("trades:A-B")
            client.ask("trades:C-D")
            assert client.answers(Outcome.SUBSCRIBED)[0].names == ("trades:C-D",)
            server.drop()
            assert (server.subscribed, server.living) == (set(), 0)
            with pytest.raises(ConnectionClosed):
                client.receive()
        with connected("okx", server) as client:
            client.ask("trades:C-D")
            server.wait_for("trades:C-D")
        eventually(lambda: server.living == 0, "the client's leaving is noticed")
        assert server.connections == 2
        assert [said.connection for said in server.requests("subscribe")] == [1, 1, 2]


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("okx", ["pong"], "not understood"),
        ("okx", ['{"op":"subscribe","args":[],"id":"1","more":1}'], "not understood"),
        ("binance", ["[]"], "not understood"),
        ("binance", ['{"method":"UNSUBSCRIBE","params":["a@b"],"id":1}'], "not subscribed: a@b"),
        ("binance", ['{"method":"SUBSCRIBE","params":["a@b"],"id":1}'] * 2, "subscribed twice"),
        ("binance", ['{"method":"SUBSCRIBE","params":[],"id":1}'] * 6, "6 messages in 48 s"),
        (
            "binance",
            ['{"method":"SUBSCRIBE","params":["' + "x" * 4096 + '"],"id":1}'],
            " bytes",
        ),
        ("bybit", [json.dumps({"op": "subscribe", "args": [*"abcdefghijk"], "req_id": "1"})], "11"),
        ("bitfinex", ['{"event":"unsubscribe","chanId":5}'], "no such channel"),
    ],
)
def test_violations_are_noticed(name: str, texts: list[str], expected: str) -> None:
    with VenueServer(name, rate=(5, 60.0)) as server, connect(server.url) as socket:
        for text in texts:
            socket.send(text)
        eventually(lambda: len(server.log) == len(texts), "all has come")
        assert any(expected in violation for violation in server.violations), server.violations


def test_pings_count_where_the_exchange_says_so() -> None:
    for name, is_counted in (("binance", True), ("okx", False)):
        with VenueServer(name, rate=(5, 60.0)) as server, connect(server.url) as socket:
            for number in range(7):  # when the seventh is answered, the sixth has been counted
                assert socket.ping(str(number)).wait(DEADLINE)
            assert bool(server.violations) == is_counted


def test_two_clients_get_only_theirs() -> None:
    with (
        VenueServer("binance") as server,
        connected("binance", server) as one,
        connected("binance", server) as two,
    ):
        one.ask("a@trade", "b@trade")
        two.ask("b@trade")
        one.answers(Outcome.SUBSCRIBED)
        two.answers(Outcome.SUBSCRIBED)
        assert (server.publish("a@trade"), server.publish("b@trade")) == (1, 2)
        while len(one.topics) < 2:
            one.receive()
        two.receive()
        assert (one.topics, two.topics) == (["a@trade", "b@trade"], ["b@trade"])
