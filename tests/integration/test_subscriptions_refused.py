"""Subscriptions that can't be had, or not yet: refusals, silence, limits, bad names."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import Feed, SubscriptionRefused, attach, shm
from tests.conftest import DEADLINE, eventually

from .manager import listen, running, url_of
from .subscribers import TOPICS, config_of, reasons, states, venue_file
from .venues import VenueServer

WORDS: Final = "we don't have that"
BAD_NAME: Final = "can't name|has no name|surrogates"
LEFT_OUT: Final = {"deribit": "the server's answer leaves it out"}
"""Venues that do not say why."""


@contextmanager
def background(call: Callable[[], Any]) -> Iterator[list[BaseException | None]]:
    """A call in a thread, which has ended when the block has; what it raised, or None."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield outcome
    thread.join(DEADLINE)
    assert not thread.is_alive()


def subscribe_refused(feed: Feed, *topics: str) -> dict[str, str]:
    """Subscribe, which is refused; why, by topic."""
    with pytest.raises(SubscriptionRefused) as caught:
        feed.subscribe(*topics, timeout=DEADLINE)
    return caught.value.reasons


@pytest.mark.parametrize("venue", TOPICS)
def test_a_refused_topic_raises_where_it_was_asked_for_and_others_go_on(
    venue: str, name: str
) -> None:
    first, *good, bad = TOPICS[venue]
    with (
        VenueServer(venue, refuse={bad: WORDS}) as server,
        running(config_of(server.url, name, venue)),
        attach(name, topics=[first], timeout=DEADLINE) as one,
        attach(name, topics=[]) as another,
    ):
        if venue == "bitstamp":  # its refusals name nothing: several at once take their time
            another.subscribe(*good[:3], timeout=DEADLINE)
            refused = subscribe_refused(another, bad)
        else:
            refused = subscribe_refused(another, good[0], good[1], bad, good[2])
        assert list(refused) == [bad]
        assert LEFT_OUT.get(venue, WORDS) in refused[bad]
        assert reasons(one) == refused
        server.wait_for(first, *good[:3])
        for topic in (first, good[0]):
            server.publish(topic)
        for feed, topic in ((one, first), (another, good[0])):
            message = feed.read(DEADLINE)
            assert message is not None
            assert message.topic_name == topic
        # The next wish asks again, whoever has it.
        server.refuse.clear()
        one.subscribe(bad, timeout=DEADLINE)
        assert states(another)[bad] == "subscribed"
        assert not server.violations


def test_only_the_refused_ones_of_a_large_batch_are_refused(name: str) -> None:
    topics = [f"p{number}usdt@trade" for number in range(16)]
    bad = {topics[11]}
    with (
        VenueServer("binance-usdm", refuse=dict.fromkeys(bad, WORDS)) as server,
        running(config_of(server.url, name, "binance-usdm")),
        attach(name, topics=[]) as feed,
    ):
        assert set(subscribe_refused(feed, *topics)) == bad
        assert server.subscribed == {*topics} - bad
        assert not server.violations


@pytest.mark.parametrize("venue", ["okx", "coinbase"])
def test_a_server_that_says_nothing(venue: str, name: str, tmp_path: Path) -> None:
    first, silent = TOPICS[venue][:2]
    limits = ("[limits]", "[limits]\nanswer_timeout = 0.25")
    with VenueServer(venue, silent=[silent]) as server:
        config = config_of(server.url, name, venue_file(tmp_path, venue, limits))
        with running(config), attach(name, topics=[first], timeout=DEADLINE) as feed:
            with pytest.raises(TimeoutError, match="the wish stands"):
                feed.subscribe(silent, timeout=0.01)
            assert feed.subscriptions == (first, silent)
            assert subscribe_refused(feed, silent) == {silent: "no answer"}
            assert reasons(feed) == {silent: "no answer"}
            assert sum(silent in said.names for said in server.requests("subscribe")) >= 2
            server.silent.clear()
            feed.subscribe(silent, timeout=DEADLINE)
            server.wait_for(first, silent)


def test_an_answer_that_comes_late_fulfils_the_wish(name: str) -> None:
    (topic,) = TOPICS["bybit"][:1]
    with (
        VenueServer("bybit", silent=[topic]) as server,
        running(config_of(server.url, name, "bybit")),
        attach(name, topics=[]) as feed,
    ):
        with pytest.raises(TimeoutError):
            feed.subscribe(topic, timeout=0.01)
        eventually(lambda: states(feed) == {topic: "pending"}, "it was asked for")
        eventually(lambda: server.requests("subscribe"), "the request comes")
        server.silent.clear()
        server.drop()
        eventually(lambda: states(feed) == {topic: "subscribed"}, "the wish is fulfilled")
        server.publish(topic)
        assert feed.read(DEADLINE) is not None


def test_wishes_made_before_there_is_a_connection(name: str) -> None:
    first, second = TOPICS["kraken"][:2]
    listener = listen()
    with (
        running(config_of(url_of(listener), name, "kraken")),
        attach(name, topics=[first]) as feed,
    ):
        feed.subscribe(second, wait=False)
        eventually(
            lambda: states(feed) == dict.fromkeys([first, second], "wanted"), "the wishes are read"
        )
        with pytest.raises(TimeoutError):
            feed.subscribe(second, timeout=0.01)
        with (
            background(lambda: feed.subscribe(first, timeout=DEADLINE)) as outcome,
            VenueServer("kraken", listener=listener) as server,
        ):
            server.wait_for(first, second)
            assert len(server.requests()) == 1
            eventually(lambda: outcome == [None], "the answer is seen")
            assert not server.violations


# ---- what the manager itself refuses -----------------------------------------------------------


def test_topics_that_are_not_allowed(name: str) -> None:
    allowed, own, other = TOPICS["okx"][:3]
    with (
        VenueServer("okx") as server,
        running(config_of(server.url, name, "okx", allow=[f"{allowed[:10]}*"], subscribe=[own])),
        attach(name, topics=[]) as feed,
    ):
        refused = subscribe_refused(feed, allowed, own, other)
        assert refused == {
            topic: f"{topic!r} is not among the topics that this manager allows"
            for topic in (own, other)
        }
        server.wait_for(allowed, own)
        feed.subscribe("*", timeout=DEADLINE)  # only selects among what there is
        assert feed.subscriptions == (allowed, own, other, "*")


def test_a_topic_that_is_there_and_not_allowed_is_refused_however_many_are(name: str) -> None:
    """Answers have room for a few names; the others are refused, too, and nobody waits for ever."""
    topics = [f"trades:{'X' * 80}{number}" for number in range(20)]
    with VenueServer("okx") as server, running(config_of(server.url, name, "okx", allow=[])):
        with attach(name, topics=[], others=True) as feed:
            eventually(lambda: server.living, "there is a connection")
            for topic in topics:  # what a worker's own request has brought
                server.say(f'{{"arg":{{"channel":"trades","instId":"{topic[7:]}"}},"data":[1]}}')
            eventually(lambda: len(feed.topics) == len(topics), "the topics appear")
            assert subscribe_refused(feed, *topics).keys() == {*topics}
        assert not server.requests()


def test_more_topics_than_the_venue_allows(name: str) -> None:
    topics = [f"trades:tP{number:02}USD" for number in range(26)]
    with (
        VenueServer("bitfinex") as server,
        running(config_of(server.url, name, "bitfinex")),
        attach(name, topics=[]) as feed,
    ):
        refused = subscribe_refused(feed, *topics)
        assert refused == {topics[25]: "bitfinex allows 25 topics per connection"}
        assert len(server.subscribed) == 25
        feed.unsubscribe(topics[0])
        feed.subscribe(topics[25], timeout=DEADLINE)
        server.wait_for(*topics[1:])
        assert not server.violations


def test_names_that_the_venue_can_not_have(name: str) -> None:
    good, *_ = TOPICS["okx"]
    with (
        VenueServer("okx") as server,
        running(config_of(server.url, name, "okx")),
        attach(name, topics=[]) as feed,
    ):
        refused = subscribe_refused(feed, "nonsense", "trades:btc-usdt", good)
        assert refused.keys() == {"nonsense", "trades:btc-usdt"}
        assert "write it as {channel}:{instId:upper} (trades:BTC-USDT)" in refused["nonsense"]
        assert server.subscribed == {good}


@pytest.mark.parametrize("bad", ["x" * 128, "\N{EURO SIGN}" * 43, "", "a\0b", "\ud800"])
def test_names_that_no_topic_can_have_change_nothing(name: str, bad: str) -> None:
    good, other = TOPICS["okx"][:2]
    with (
        VenueServer("okx") as server,
        running(config_of(server.url, name, "okx")),
        attach(name, topics=[good], timeout=DEADLINE) as feed,
    ):
        with pytest.raises(ValueError, match=BAD_NAME):
            feed.subscribe(other, bad, timeout=DEADLINE)
        assert feed.subscriptions == (good,)
        with pytest.raises(ValueError, match=BAD_NAME):
            attach(name, topics=[bad])
        assert len(server.requests()) == 1


def test_more_topics_than_the_table_has(name: str) -> None:
    topics = TOPICS["kraken"]
    with (
        VenueServer("kraken") as server,
        running(config_of(server.url, name, "kraken", max_topics=4)),
        attach(name, topics=topics[:2], timeout=DEADLINE) as feed,
    ):
        refused = subscribe_refused(feed, *topics[2:])
        assert refused == dict.fromkeys(topics[4:], "the topic table is full: configure max_topics")
        server.wait_for(*topics[:4])
        assert not server.violations


def test_a_list_that_is_too_long(name: str) -> None:
    good, *_ = TOPICS["okx"]
    with (
        VenueServer("okx") as server,
        running(config_of(server.url, name, "okx")),
        attach(name, topics=[good], timeout=DEADLINE) as feed,
    ):
        with pytest.raises(ValueError, match="no room for topic"):
            feed.subscribe(*(f"{number:0>120}*" for number in range(300)))
        assert feed.subscriptions == (good,)


# ---- while somebody waits ----------------------------------------------------------------------


@pytest.fixture
def waiting(name: str) -> Iterator[tuple[VenueServer, Feed, list[BaseException | None]]]:
    """A worker of which a thread waits for an answer that does not come."""
    (topic,) = TOPICS["okx"][:1]
    with VenueServer("okx", silent=[topic]) as server, running(config_of(server.url, name, "okx")):
        feed = attach(name, topics=[])
        with background(lambda: feed.subscribe(topic)) as outcome:
            eventually(lambda: server.requests("subscribe"), "it is asked for")
            yield server, feed, outcome
            eventually(lambda: outcome, "the wait ends")
        if not feed.closed:
            feed.close()


Waiting = tuple[VenueServer, Feed, list[BaseException | None]]


def test_unsubscribed_by_another_thread(waiting: Waiting) -> None:
    _, feed, outcome = waiting
    feed.unsubscribe(*feed.subscriptions)
    eventually(lambda: outcome, "the wait ends")
    assert outcome == [None]


def test_closed_by_another_thread(waiting: Waiting) -> None:
    _, feed, outcome = waiting
    feed.close()
    eventually(lambda: outcome, "the wait ends")
    assert isinstance(outcome[0], shm.RingClosed)


def test_the_manager_stops(name: str) -> None:
    (topic,) = TOPICS["okx"][:1]
    with VenueServer("okx", silent=[topic]) as server, ExitStack() as stack:
        with running(config_of(server.url, name, "okx")):
            feed = stack.enter_context(attach(name, topics=[]))
            outcome = stack.enter_context(background(lambda: feed.subscribe(topic)))
            eventually(lambda: server.requests("subscribe"), "it is asked for")
        eventually(lambda: outcome, "the wait ends")
        assert isinstance(outcome[0], shm.RingClosed)


def test_a_refusal_at_attaching_leaves_no_reader(name: str) -> None:
    good, bad = TOPICS["okx"][:2]
    with (
        VenueServer("okx", refuse={bad: WORDS}) as server,
        running(config_of(server.url, name, "okx")),
    ):
        with pytest.raises(SubscriptionRefused) as caught:
            attach(name, topics=[good, bad], timeout=DEADLINE)
        assert not shm.status(name).readers
        server.wait_for()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert isinstance(again, SubscriptionRefused)
    assert (str(again), again.reasons) == (str(caught.value), caught.value.reasons)
    assert str(again) == f"{bad!r} refused: {caught.value.reasons[bad]}"
