"""Programs behind a gateway that subscribe as they would at the exchange: they are answered as it
would answer, and it sees each subscription once."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

import pytest

from ringcast import Config, attach
from ringcast.broker.gateway.access import AccessRules
from ringcast.broker.gateway.server import GatewayOptions
from ringcast.broker.topics.venue_file import load_venue
from ringcast.broker.worker.subscribing import SubscriptionRefused
from tests.conftest import DEADLINE, eventually

from .exchanges import Client as Connection
from .exchanges import exchange
from .gateway import client_of
from .gateways import attach as attach_to
from .gateways import serving
from .manager import running
from .subscribers import TOPICS, config_of
from .venues import VenueServer

PLAYED: Final = sorted({*TOPICS} - {"bitfinex"})
"""The venues whose answers can be given by others."""
NOT_COMPARED: Final = {"usDiff", "connId", "conn_id", "ret_msg", "snapshot", "time_in"}
"""Members of answers that only the server can know, or that it does not always have."""


class Program:
    """A client that speaks as a program for the exchange does.

    Args:
        venue: the exchange's.
        path: of the gateway's socket.
    """

    def __init__(self, venue: str, path: Path, target: str = "/") -> None:
        self._venue = load_venue(venue)
        self._ids = count(1)
        self._exchange = exchange(venue)
        self._connection = Connection(1)
        self.client = client_of(path, target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()

    def ask(
        self, *names: str, subscribing: bool = True, refused: Mapping[str, str] | None = None
    ) -> list[Any]:
        """Send a request. Returns what the exchange would answer."""
        expected = []
        for request in self._venue.requests(names, subscribing=subscribing, ids=self._ids):
            self.client.send(request.text)
            wish = self._exchange.read(self._connection, request.text)
            mine = {name: why for name, why in (refused or {}).items() if name in wish.names}
            expected += self._exchange.answer(self._connection, wish, mine)
        return [known(json.loads(text)) for text in expected]

    def answers(self, number: int) -> list[Any]:
        """The next messages, which are to be answers."""
        return [known(json.loads(message)) for message in self.client.messages(number)]

    def subscribe(self, *names: str) -> None:
        """And get the answers that the exchange would give."""
        expected = self.ask(*names)
        assert self.answers(len(expected)) == expected

    def unsubscribe(self, *names: str) -> None:
        """Likewise."""
        expected = self.ask(*names, subscribing=False)
        assert self.answers(len(expected)) == expected


def known(answer: Any) -> Any:
    """What is compared of an answer."""
    if not isinstance(answer, dict):
        return answer
    return {key: known(value) for key, value in answer.items() if key not in NOT_COMPARED}


@contextlib.contextmanager
def behind(
    name: str, folder: Path, venue: str, *, config: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[tuple[VenueServer, Path]]:
    """A stand-in exchange, a manager, and a gateway; where that listens."""
    with (
        VenueServer(venue, options.pop("refuse", None)) as server,
        running(config_of(server.url, name, venue, **(config or {}))),
        serving(name, f"unix:{folder}/g", **options),
    ):
        eventually(lambda: server.living, "the manager is connected")
        yield server, folder / "g"


@pytest.mark.parametrize("venue", PLAYED)
def test_two_programs_share_subscriptions(venue: str, name: str, tmp_path: Path) -> None:
    first, both, second = TOPICS[venue][:3]
    with behind(name, tmp_path, venue) as (server, path):
        one, two = Program(venue, path), Program(venue, path)
        one.subscribe(first, both)
        server.wait_for(first, both)
        two.subscribe(both, second)
        server.wait_for(first, both, second)
        for topic in (first, both, second):
            assert server.publish(topic) == 1
        of_topic = {topic: _data(venue, topic, 1) for topic in (first, both, second)}
        assert [json.loads(m) for m in one.client.messages(2)] == [of_topic[first], of_topic[both]]
        assert [json.loads(m) for m in two.client.messages(2)] == [of_topic[both], of_topic[second]]
        one.unsubscribe(both)
        two.ask(both)  # once more, though it has it; some exchanges would mind
        two.client.message()
        assert server.publish(both) == 1
        assert json.loads(two.client.message()) == _data(venue, both, 2)
        two.unsubscribe(both)
        server.wait_for(first, second)
        two.client.close()
        server.wait_for(first)
        server.publish(first)
        assert json.loads(one.client.message()) == _data(venue, first, 2)
        one.client.close()
        server.wait_for()
        assert not server.violations


def _data(venue: str, topic: str, number: int) -> Any:
    return json.loads(exchange(venue).data(Connection(1), topic, number))


@pytest.mark.parametrize("venue", PLAYED)
def test_what_the_exchange_refuses(venue: str, name: str, tmp_path: Path) -> None:
    good, bad = TOPICS[venue][:2]
    with (
        behind(name, tmp_path, venue, refuse={bad: "not to be had"}) as (server, path),
        Program(venue, path) as one,
    ):
        one.ask(bad, refused={bad: "not to be had"})
        answer = one.client.message()
        assert "not to be had" in str(answer) or venue == "deribit"
        one.subscribe(good)
        server.publish(good)
        assert json.loads(one.client.message()) == _data(venue, good, 1)


def test_four_programs_with_clashing_ids(name: str, tmp_path: Path) -> None:
    """Each subscribes to some of the same topics, and asks in between; all number from 1 on."""
    venue, topics = "deribit", TOPICS["deribit"]
    failures: list[BaseException] = []

    def work(path: Path, seed: int) -> None:
        dice = random.Random(seed)
        try:
            program = Program(venue, path)
            mine: set[str] = set()
            for number in range(30):
                what = dice.randrange(3)
                topic = dice.choice(topics)
                if what == 0:
                    program.subscribe(topic)
                    mine.add(topic)
                elif what == 1 and mine:
                    program.unsubscribe(topic := dice.choice(sorted(mine)))
                    mine.discard(topic)
                else:
                    request = {"jsonrpc": "2.0", "id": number, "method": "public/test"}
                    program.client.send(json.dumps({**request, "params": {}}))
                    answer = json.loads(program.client.message())
                    assert answer == {
                        "jsonrpc": "2.0",
                        "id": number,
                        "result": {"version": "1.2.26"},
                    }
            program.client.close()
        except BaseException as error:
            failures.append(error)

    with behind(name, tmp_path, venue, config={"linger": 5.0}) as (server, path):
        threads = [threading.Thread(target=work, args=(path, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        assert failures == []
        assert [each for each in server.violations if "messages in" not in each] == []


def test_data_comes_after_the_answer(name: str, tmp_path: Path) -> None:
    """Though the topic is subscribed already, and its messages come all the time."""
    venue, (topic, other, *_) = "okx", TOPICS["okx"]
    with behind(name, tmp_path, venue) as (server, path), attach(name, topics=[topic]) as feed:
        server.wait_for(topic)
        ends = threading.Event()

        def publish() -> None:
            while not ends.wait(0.0005):
                server.publish(topic)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            for _ in range(20):
                with Program(venue, path, "/?topics=") as program:
                    expected = program.ask(topic, other)
                    got: list[Any] = []
                    while sum("event" in each for each in got) < len(expected):
                        got.append(json.loads(program.client.message()))
                    assert "event" in got[0]
                    assert got[0]["arg"]["instId"] in topic
        finally:
            ends.set()
            thread.join(DEADLINE)
        assert feed.lost == 0
        assert not server.violations


def test_who_joins_late_gets_the_book(name: str, tmp_path: Path) -> None:
    """The server is asked for it anew, and sends it to everybody."""
    book = "books:BTC-USDT"
    with behind(name, tmp_path, "okx") as (server, path), Program("okx", path) as one:
        one.subscribe(book)
        server.publish(book)
        assert json.loads(one.client.message()) == _data("okx", book, 1)
        with Program("okx", path) as two:
            two.subscribe(book)
            eventually(lambda: len(server.requests("subscribe")) == 2, "it is asked for again")
            server.wait_for(book)
            server.publish(book)
            for program in (one, two):
                assert json.loads(program.client.message()) == _data("okx", book, 2)
        assert [said.op for said in server.requests()] == ["subscribe", "unsubscribe", "subscribe"]
        assert not server.violations


def test_topics_of_the_managers_own(name: str, tmp_path: Path) -> None:
    """They are found by its patterns, so the venue's names mean nothing: requests go up."""
    topic = TOPICS["okx"][0]
    with (
        behind(name, tmp_path, "okx", config={"topic": ["{/arg/instId}"]}) as (server, path),
        Program("okx", path) as one,
    ):
        expected = one.ask(topic)
        server.wait_for(topic)
        assert one.answers(1) == expected


def test_pings_are_answered_here(name: str, tmp_path: Path) -> None:
    with behind(name, tmp_path, "okx") as (server, path):
        one = Program("okx", path)
        one.client.send("ping")
        assert one.client.message() == "pong"
        one.client.send('{"op":"other"}')
        eventually(lambda: server.log, "what is no ping goes up")
        assert [said.text for said in server.log] == ['{"op":"other"}']
        one.client.close()


@pytest.mark.parametrize("forwarded", [False, True], ids=["answered", "forwarded"])
def test_logins(name: str, tmp_path: Path, forwarded: bool) -> None:
    login = {"op": "login", "args": [{"apiKey": "a", "passphrase": "b"}]}
    first = json.dumps({**login, "args": [{"apiKey": "the manager's"}]})
    with behind(
        name,
        tmp_path,
        "okx",
        config={"initial_messages": [first]},
        options=GatewayOptions(forward_login=forwarded),
    ) as (server, path):
        eventually(lambda: len(server.log) == 1, "the manager logs in")
        one = Program("okx", path)
        one.client.send(json.dumps(login))
        if forwarded:
            eventually(lambda: len(server.log) == 2, "it goes up")
        else:
            answer = json.loads(one.client.message())
            assert (answer["event"], answer["code"]) == ("login", "0")
            assert len(server.log) == 1
        one.client.close()


def test_a_login_where_nobody_has_logged_in(name: str, tmp_path: Path) -> None:
    with behind(name, tmp_path, "okx") as (server, path):
        one = Program("okx", path)
        one.client.send('{"op":"login","args":[]}')
        eventually(lambda: server.log, "it goes up")
        one.client.close()


@pytest.mark.parametrize("target", ["/ws/{}", "/stream?streams={}/{}"])
def test_topics_in_the_url(name: str, tmp_path: Path, target: str) -> None:
    first, second, third = TOPICS["binance"][:3]
    wanted = (first, second)[: target.count("{}")]
    with behind(name, tmp_path, "binance") as (server, path):
        one = Program("binance", path, target.format(*wanted))
        server.wait_for(*wanted)
        one.subscribe(third)
        for topic in (third, *wanted):
            server.publish(topic)
        got = [json.loads(message)["stream"] for message in one.client.messages(1 + len(wanted))]
        assert got == [third, *wanted]
        one.client.close()
        server.wait_for()
        assert not server.violations


def test_read_only_programs_get_what_is_subscribed(name: str, tmp_path: Path) -> None:
    there, other = TOPICS["okx"][:2]
    with (
        behind(name, tmp_path, "okx", rules=AccessRules(read_only=True)) as (server, path),
        attach(name, topics=[there], timeout=DEADLINE),
    ):
        one = Program("okx", path)
        one.ask(there, other)
        assert all("read-only" in str(message) for message in one.client.messages(2))
        one.subscribe(there)
        server.publish(there)
        assert json.loads(one.client.message()) == _data("okx", there, 1)
        one.client.close()
        assert [said.names for said in server.requests()] == [(there,)]


def test_a_feed_waits_for_the_server(name: str, tmp_path: Path) -> None:
    """One that gets records."""
    good, bad = TOPICS["binance"][:2]
    with (
        behind(name, tmp_path, "binance", refuse={bad: "not to be had"}) as (server, path),
        attach_to(f"unix:{path}", topics=[]) as feed,
    ):
        feed.subscribe(good, timeout=DEADLINE)
        assert server.subscribed == {good}
        with pytest.raises(SubscriptionRefused, match="not to be had") as refused:
            feed.subscribe(bad, timeout=DEADLINE)
        assert refused.value.reasons.keys() == {bad}


def test_a_manager_without_a_venue(name: str, tmp_path: Path) -> None:
    """What a program says goes up as it is."""
    topic = TOPICS["okx"][0]
    with (
        VenueServer("okx") as server,
        running(Config(name=name, url=server.url)),
        serving(name, f"unix:{tmp_path}/g"),
    ):
        eventually(lambda: server.living, "the manager is connected")
        one = Program("okx", tmp_path / "g")
        expected = one.ask(topic)
        server.wait_for(topic)
        assert one.answers(1) == expected
        one.client.close()
