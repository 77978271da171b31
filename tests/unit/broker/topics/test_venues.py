"""Each venue there and back: a topic's name to a request, the server's messages to the name.

What the servers say is `tests.integration.exchanges`, written from the exchanges' documentation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ringcast.broker.exchange.captures import read
from ringcast.broker.topics.venue import Answer, Confirmation, Outcome, Request, Venue
from ringcast.broker.topics.venue_file import list_venues, load_venue
from tests.integration.exchanges import Client, Exchange, exchange
from tests.unit.broker.topics import oracle

NAMES = {
    "binance": ["btcusdt@trade", "ethusdt@depth@100ms", "!miniTicker@arr"],
    "binance-usdm": ["btcusdt@aggTrade", "!markPrice@arr@1s"],
    "coinbase": ["level2:BTC-USD", "matches:ETH-USD", "ticker:BTC-USD", "heartbeat:BTC-USD"],
    "kraken": ["trade:BTC/USD", "book-100:BTC/USD", "book:ETH/USD", "ohlc-5:BTC/USD", "instrument"],
    "okx": ["trades:BTC-USDT", "books:BTC-USDT", "instruments:SPOT", "opt-summary:BTC-USD"],
    "bybit": ["publicTrade.BTCUSDT", "orderbook.50.ETHUSDT", "kline.1.BTCUSDT"],
    "bitstamp": ["live_trades_btcusd", "diff_order_book_ethusd"],
    "deribit": ["trades.BTC-PERPETUAL.100ms", "book.ETH-PERPETUAL.raw", "platform_state"],
    "bitfinex": ["trades:tBTCUSD", "book-P0-F0-100:tETHUSD", "candles:trade:1m:tBTCUSD"],
}

VENUES = pytest.mark.parametrize("name", NAMES)


class Talk:
    """A venue and its exchange, which talk without a connection."""

    def __init__(self, name: str) -> None:
        self.venue = load_venue(name)
        self.exchange: Exchange = exchange(name)
        self.client = Client(1)
        self.ids = itertools.count(1)
        self.refused: dict[str, str] = {}
        self.data: list[str] = []

    def ask(self, names: Sequence[str], *, subscribing: bool = True) -> list[Request]:
        return self.venue.requests(names, subscribing=subscribing, ids=self.ids)

    def answers_to(self, request: Request) -> list[Answer]:
        """What the venue makes of the exchange's messages; its data is kept."""
        wish = self.exchange.read(self.client, request.text)
        assert (wish.op == "subscribe") == request.subscribing
        assert {*wish.names} == {*request.names}
        refused = {name: self.refused[name] for name in wish.names if name in self.refused}
        found: list[Answer] = []
        for text in self.exchange.answer(self.client, wish, refused):
            if oracle.is_control(self.venue.control, text.encode()):
                found += self.venue.answers(text.encode())
            else:
                self.data.append(text)
        return found

    def topic_of(self, text: str) -> str | None:
        return oracle.topic_name(self.venue, text.encode())

    def subscribe(self, *names: str) -> list[Answer]:
        return [answer for request in self.ask(names) for answer in self.answers_to(request)]

    def unsubscribe(self, *names: str) -> list[Answer]:
        requests = self.ask(names, subscribing=False)
        return [answer for request in requests for answer in self.answers_to(request)]


def concerned(answers: Iterable[Answer], requests: Iterable[Request]) -> set[str]:
    """The topics that answers are about, by name or else by the request's id."""
    by_id = {request.id: request.names for request in requests}
    return {name for a in answers for name in (a.names or by_id.get(a.id, ()))}


def test_there_are_nine() -> None:
    assert list_venues() == sorted(NAMES)


@VENUES
def test_there_and_back(name: str) -> None:
    talk = Talk(name)
    names = NAMES[name]
    for each in names:
        talk.venue.check_name(each)
    requests = talk.ask(names)
    answers = [answer for request in requests for answer in talk.answers_to(request)]
    assert talk.client.subscribed == {*names}
    assert concerned(answers, requests) == {*names}
    acknowledged = Outcome.LISTED if name == "coinbase" else Outcome.SUBSCRIBED
    assert {answer.outcome for answer in answers} == {acknowledged}
    assert {talk.topic_of(text) for text in talk.data} <= {*names}
    for number, each in enumerate(names, 1):
        assert talk.topic_of(talk.exchange.data(talk.client, each, number)) == each
    requests = talk.ask(names, subscribing=False)
    answers = [answer for request in requests for answer in talk.answers_to(request)]
    assert talk.client.subscribed == set()
    if name == "coinbase":
        assert answers[-1] == Answer(Outcome.LISTED)
    else:
        assert {answer.outcome for answer in answers} == {Outcome.UNSUBSCRIBED}
        assert concerned(answers, requests) == {*names}


@VENUES
def test_many_topics_are_few_requests(name: str) -> None:
    talk = Talk(name)
    example = NAMES[name][0]
    letters = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    upper = talk.venue.name not in ("binance", "binance-usdm", "bitstamp")
    names = [
        example.lower().replace("btc", letter)
        if not upper
        else example.replace("BTC", letter.upper())
        for letter in letters
    ]
    assert len({*names}) == len(names)
    requests = talk.ask(names)
    most = talk.venue.topics_per_request or (1 if name == "bitstamp" else 100)
    assert len(requests) == len(names) // most
    assert [each for request in requests for each in request.names] == names
    assert all(len(request.names) <= talk.exchange.names_max for request in requests)
    assert all(len(request.text) <= talk.exchange.bytes_max for request in requests)
    ids = [request.id for request in requests if request.id is not None]
    assert len({*ids}) == len(ids)
    for request in requests:
        talk.answers_to(request)
    assert talk.client.subscribed == {*names}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bitstamp", "coinbase")])
def test_a_refused_topic_is_told_by_id_or_name(name: str) -> None:
    talk = Talk(name)
    first, second = NAMES[name][:2]
    talk.refused = {first: "there is no such thing"}
    requests = talk.ask([first, second])
    answers = [answer for request in requests for answer in talk.answers_to(request)]
    (refusal,) = [answer for answer in answers if answer.outcome is Outcome.REFUSED]
    assert refusal.id == requests[0].id
    assert refusal.id is not None
    if refusal.names:
        assert refusal.names == (first,)
    else:
        assert first in requests[0].names
    if name == "deribit":
        assert refusal.reason == "the server's answer leaves it out"
    else:
        assert "there is no such thing" in refusal.reason
    if name in ("kraken", "okx", "deribit", "bitfinex"):  # the other topic is acknowledged
        done = [answer for answer in answers if answer.outcome is Outcome.SUBSCRIBED]
        assert [answer.names for answer in done] == [(second,)]


@pytest.mark.parametrize("name", ["bitstamp", "coinbase"])
def test_a_refusal_that_names_nothing(name: str) -> None:
    talk = Talk(name)
    (first, *_) = NAMES[name]
    talk.refused = {first: "there is no such thing"}
    (refusal,) = talk.subscribe(first)
    assert (refusal.outcome, refusal.id, refusal.names) == (Outcome.REFUSED, None, ())
    assert "there is no such thing" in refusal.reason


def test_ways_to_confirm() -> None:
    ways = {name: load_venue(name).confirmation for name in NAMES}
    assert {n for n, way in ways.items() if way is Confirmation.ID} == {
        *("binance", "binance-usdm", "bybit")
    }
    assert ways["coinbase"] is Confirmation.LIST


@VENUES
def test_answers_to_others_requests_are_left_alone(name: str) -> None:
    """A worker may have sent a request of its own, with an id of its own."""
    talk, other = Talk(name), Talk(name)
    other.ids = itertools.count(1000)
    for request in other.ask(NAMES[name]):
        wish = other.exchange.read(other.client, request.text)
        for text in other.exchange.answer(other.client, wish, {}):
            answers = talk.venue.answers(text.encode())
            assert answers == [] or request.id is None


@VENUES
def test_heartbeats(name: str) -> None:
    talk = Talk(name)
    talk.subscribe(*NAMES[name])
    heartbeat = talk.venue.heartbeat
    for said in (*talk.venue.initial, *([heartbeat.send] if heartbeat is not None else [])):
        wish = talk.exchange.read(talk.client, said)
        assert (wish.op, bool(wish.replies)) == ("other", True)
        for text in wish.replies:
            assert talk.topic_of(text) is None
            assert talk.venue.answers(text.encode()) == []
            assert talk.venue.replies(text.encode()) == []
    for text in talk.exchange.beat(talk.client):
        assert oracle.is_control(talk.venue.control, text.encode())
        assert talk.venue.answers(text.encode()) == []
        for reply in talk.venue.replies(text.encode()):
            assert talk.exchange.read(talk.client, reply).op == "other"
    assert talk.client.owed == 0


def test_heartbeats_are_often_enough() -> None:
    within = {"okx": 30, "bybit": 20, "kraken": 60}
    for name, seconds in within.items():
        heartbeat = load_venue(name).heartbeat
        assert heartbeat is not None
        assert heartbeat.every <= seconds


@VENUES
def test_limits_are_kept(name: str) -> None:
    venue, rate = load_venue(name), exchange(name).rate
    if rate is not None:
        most, seconds = rate
        assert venue.messages_per_second is not None
        assert venue.burst + venue.messages_per_second * seconds <= most
        assert venue.counts_everything or exchange(name).rate_counts == "requests" or most >= 10
    most_topics = exchange(name).topics_max
    assert most_topics is None or venue.topics_per_connection == most_topics


def test_what_snapshots_there_are() -> None:
    kinds = {
        ("kraken", "book:BTC/USD"): "resubscribe",
        ("kraken", "trade:BTC/USD"): "none",
        ("okx", "books:BTC-USDT"): "resubscribe",
        ("okx", "books5:BTC-USDT"): "none",
        ("bybit", "orderbook.50.BTCUSDT"): "resubscribe",
        ("deribit", "book.BTC-PERPETUAL.raw"): "resubscribe",
        ("deribit", "book.BTC-PERPETUAL.none.10.100ms"): "none",
        ("coinbase", "level2:BTC-USD"): "resubscribe",
        ("bitfinex", "book:tBTCUSD"): "resubscribe",
        ("binance", "btcusdt@depth"): "none",
    }
    for (name, topic), kind in kinds.items():
        snapshot = load_venue(name).snapshot(topic)
        assert (snapshot.kind, snapshot.every > 0) == (kind, kind == "resubscribe"), name


# ---- what is special --------------------------------------------------------------------------


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_coinbase_delivers_several_kinds_of_message_for_one_topic() -> None:
    talk = Talk("coinbase")
    talk.subscribe("level2:BTC-USD", "matches:BTC-USD")
    for kind in ("snapshot", "l2update"):
        assert (
            talk.topic_of(json.dumps({"type": kind, "product_id": "BTC-USD"})) == "level2:BTC-USD"
        )
    for kind in ("match", "last_match"):
        found = talk.topic_of(json.dumps({"type": kind, "product_id": "BTC-USD"}))
        assert found == "matches:BTC-USD"


def test_coinbase_messages_belong_to_the_channel_that_is_subscribed() -> None:
    talk = Talk("coinbase")
    before = talk.venue.version
    talk.subscribe("level2_batch:BTC-USD", "full:ETH-USD")
    assert talk.venue.version != before
    assert talk.topic_of('{"type":"l2update","product_id":"BTC-USD"}') == "level2_batch:BTC-USD"
    assert talk.topic_of('{"type":"match","product_id":"ETH-USD"}') == "full:ETH-USD"
    talk.subscribe("matches:ETH-USD")
    assert talk.topic_of('{"type":"match","product_id":"ETH-USD"}') == "matches:ETH-USD"
    talk.unsubscribe("matches:ETH-USD")
    assert talk.topic_of('{"type":"match","product_id":"ETH-USD"}') == "full:ETH-USD"


def test_coinbase_asks_for_all_channels_at_once() -> None:
    names = ["level2:BTC-USD", "ticker:BTC-USD", "level2:ETH-USD"]
    (request,) = Talk("coinbase").ask(names)
    assert json.loads(request.text) == {
        "type": "subscribe",
        "channels": [
            {"name": "level2", "product_ids": ["BTC-USD", "ETH-USD"]},
            {"name": "ticker", "product_ids": ["BTC-USD"]},
        ],
    }
    assert request == Request(request.text, tuple(names), subscribing=True, id=None)


def test_coinbase_lists_what_is_subscribed() -> None:
    channels = [
        {"name": "level2", "product_ids": ["BTC-USD", "ETH-USD"], "account_ids": None},
        {"name": "status", "product_ids": []},
        {"name": "level3", "product_ids": None},
    ]
    (answer,) = load_venue("coinbase").answers(
        dumped({"type": "subscriptions", "channels": channels})
    )
    assert answer == Answer(Outcome.LISTED, names=("level2:BTC-USD", "level2:ETH-USD", "status"))


def test_kraken_asks_by_channel_and_parameters() -> None:
    talk = Talk("kraken")
    names = ["trade:BTC/USD", "book-100:BTC/USD", "trade:ETH/USD", "book-10:ETH/USD", "book:X/USD"]
    requests = talk.ask(names)
    assert [json.loads(request.text)["params"] for request in requests] == [
        {"channel": "trade", "symbol": ["BTC/USD", "ETH/USD"]},
        {"channel": "book", "depth": 100, "symbol": ["BTC/USD"]},
        {"channel": "book", "depth": 10, "symbol": ["ETH/USD"]},
        {"channel": "book", "symbol": ["X/USD"]},
    ]


def test_kraken_forgets_a_book_of_another_depth() -> None:
    talk = Talk("kraken")
    talk.subscribe("book-100:BTC/USD")
    assert talk.topic_of('{"channel":"book","data":[{"symbol":"BTC/USD"}]}') == "book-100:BTC/USD"
    talk.unsubscribe("book-100:BTC/USD")
    talk.subscribe("book-10:BTC/USD")
    assert talk.topic_of('{"channel":"book","data":[{"symbol":"BTC/USD"}]}') == "book-10:BTC/USD"


@pytest.mark.parametrize("name", ["kraken", "bybit"])
def test_already_subscribed_is_no_refusal(name: str) -> None:
    """It is what a second request meets when the answer to the first one got lost."""
    talk = Talk(name)
    talk.subscribe(NAMES[name][0])
    (answer,) = talk.subscribe(NAMES[name][0])
    assert (answer.outcome, answer.names) == (Outcome.SUBSCRIBED, (NAMES[name][0],))


def test_bitfinex_numbers_become_topics() -> None:
    talk = Talk("bitfinex")
    assert talk.topic_of('[17470,"te",[1,2,3,4]]') is None
    talk.subscribe("trades:tBTCUSD", "ticker:tETHUSD")
    assert talk.venue.topic_of("17470") == "trades:tBTCUSD"
    assert talk.topic_of("[17471,[1,2,3],357]") == "ticker:tETHUSD"
    version = talk.venue.version
    (request,) = talk.ask(["trades:tBTCUSD"], subscribing=False)
    assert json.loads(request.text) == {"event": "unsubscribe", "chanId": 17470}
    assert talk.answers_to(request) == [Answer(Outcome.UNSUBSCRIBED, names=("trades:tBTCUSD",))]
    assert talk.venue.version != version
    assert talk.venue.topic_of("17470") is None
    assert talk.ask(["trades:tBTCUSD"], subscribing=False) == []
    talk.venue.reconnected()
    assert talk.venue.topic_of("17471") is None


def test_bitfinex_gives_a_topic_a_new_number() -> None:
    venue = load_venue("bitfinex")
    ids = itertools.count(1)
    for number in (5, 6):
        (request,) = venue.requests(["trades:tBTCUSD"], subscribing=True, ids=ids)
        said = {"event": "subscribed", "channel": "trades", "chanId": number, "subId": request.id}
        assert venue.answers(dumped(said))[0].names == ("trades:tBTCUSD",)
    assert (venue.topic_of("5"), venue.topic_of("6")) == (None, "trades:tBTCUSD")


@pytest.mark.parametrize("name", ["okx", "kraken", "bitfinex"])
def test_ids_that_do_not_come_back_are_not_needed(name: str) -> None:
    """Not every server says of every answer which request it belongs to."""
    talk = Talk(name)
    names = [*NAMES[name], *(["book:tBTCUSD"] if name == "bitfinex" else [])]
    found = []
    for request in [*talk.ask(names), *talk.ask(names, subscribing=False)]:
        wish = talk.exchange.read(talk.client, request.text)
        for text in talk.exchange.answer(talk.client, wish, {}):
            said = json.loads(text)
            if isinstance(said, dict):
                for key in ("id", "req_id", "subId"):
                    said.pop(key, None)
                found += talk.venue.answers(dumped(said))
    subscribed = [a.names[0] for a in found if a.outcome is Outcome.SUBSCRIBED]
    assert {*subscribed} == {*names}
    unsubscribed = [a.names[0] for a in found if a.outcome is Outcome.UNSUBSCRIBED]
    assert name == "bitfinex" or {*unsubscribed} == {*names}


def test_deribit_refuses_all_topics_of_an_error() -> None:
    venue = load_venue("deribit")
    names = ("trades.A.raw", "trades.B.raw")
    venue.requests(names, subscribing=True, ids=itertools.count(7))
    error = {"code": -32602, "message": "Invalid params", "data": {"reason": "wrong format"}}
    assert venue.answers(dumped({"jsonrpc": "2.0", "id": 7, "error": error})) == [
        Answer(Outcome.REFUSED, "7", (), "-32602: Invalid params (wrong format)")
    ]


def test_deribit_unsubscribes_what_its_answer_leaves_out() -> None:
    venue = load_venue("deribit")
    names = ("trades.A.raw", "trades.B.raw")
    venue.requests(names, subscribing=False, ids=itertools.count(7))
    assert venue.answers(dumped({"id": 7, "result": ["trades.B.raw"]})) == [
        Answer(Outcome.UNSUBSCRIBED, "7", ("trades.B.raw", "trades.A.raw"))
    ]


def test_binance_errors_of_both_forms() -> None:
    venue = load_venue("binance")
    venue.requests(["a@trade"], subscribing=True, ids=itertools.count(1))
    for said in ({"error": {"code": 2, "msg": "m"}, "id": 1}, {"code": 2, "msg": "m", "id": "1"}):
        (answer,) = venue.answers(dumped(said))
        assert (answer.outcome, answer.id, answer.reason) == (Outcome.REFUSED, "1", "2: m")
    (answer,) = venue.answers(dumped({"error": {"code": 3, "msg": "Invalid JSON"}}))
    assert (answer.id, answer.names) == (None, ())


@VENUES
def test_a_new_connection_is_a_new_start(name: str) -> None:
    talk = Talk(name)
    (request, *_) = talk.ask(NAMES[name][:1])
    wish = talk.exchange.read(talk.client, request.text)
    said = talk.exchange.answer(talk.client, wish, {})
    talk.venue.reconnected()
    answers = [answer for text in said for answer in talk.venue.answers(text.encode())]
    assert answers == [] or request.id is None


# ---- names and hostile input ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("venue", "name", "expected"),
    [
        ("okx", "BTC-USDT", "write it as {channel}:{instId:upper} (trades:BTC-USDT)"),
        ("okx", "trades:btc-usdt", "write its instId as 'BTC-USDT'"),
        ("okx", "", "empty"),
        ("okx", "a:" + "X" * 126, "has 128 bytes; names have at most 127"),
        ("okx", "trades:" + "É" * 61, "has 129 bytes"),
        ("okx", "a:\ud800", "not valid Unicode"),
        ("okx", "a:B\nC", "can't be printed"),
        ("binance", "btcusdt", "{symbol:lower}@{stream}"),
        ("binance", "BTCUSDT@trade", "write its symbol as 'btcusdt'"),
        ("kraken", "book-x:BTC/USD", "is no topic of kraken"),
        ("kraken", "book-10:btc/usd", "write its symbol as 'BTC/USD'"),
        ("kraken", "ohlc:BTC/USD", "is no topic of kraken"),
        ("kraken", "trade", "is no topic of kraken"),
        ("bitfinex", "sell:tBTCUSD", "is no topic of bitfinex"),
        ("deribit", "trades", "is no topic of deribit"),
        ("coinbase", "level2", "is no topic of coinbase"),
        ("bitstamp", "trades", "is no topic of bitstamp"),
        ("bybit", "tickers.btcusdt", "write its symbol as 'BTCUSDT'"),
    ],
)
def test_names_that_cannot_be(venue: str, name: str, expected: str) -> None:
    with pytest.raises(ValueError, match="topic") as caught:
        load_venue(venue).check_name(name)
    assert expected in str(caught.value)
    with pytest.raises(ValueError, match="topic"):
        load_venue(venue).requests([name], subscribing=True, ids=itertools.count())


def test_the_longest_name() -> None:
    load_venue("okx").check_name("trades:" + "X" * 120)


def test_values_are_put_in_as_json() -> None:
    name = 'a"\\{id}:X"},{"op":"é'.upper()
    (request,) = load_venue("okx").requests([name], subscribing=True, ids=itertools.count(1))
    channel, _, inst = name.partition(":")
    assert json.loads(request.text)["args"] == [{"channel": channel, "instId": inst}]


HOSTILE = [
    b"",
    b"pong",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"id":' + b"9" * 10_000 + b"}",
    b'{"id":NaN,"result":null}',
    b'{"event":"error","id":{"a":1},"msg":[]}',
    b'{"event":"subscribed","chanId":null}',
    b'{"type":"subscriptions","channels":{"0":{"name":5}}}',
    b'{"type":"subscriptions","channels":[1,null,{"name":["x"],"product_ids":{}}]}',
    b'{"method":"subscribe","success":1,"req_id":1}',
    b'{"event":"subscribe","arg":{"channel":["trades"]}}',
    b'{"result":null,"id":1' + b" " * (1 << 20) + b"}",
]


@VENUES
@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_control_messages_do_nothing(name: str, payload: bytes) -> None:
    talk = Talk(name)
    talk.ask(NAMES[name])
    for answer in talk.venue.answers(payload):
        assert answer.outcome in (Outcome.REFUSED, Outcome.LISTED)
        assert answer.names == ()
    assert talk.venue.replies(payload) == []


def test_a_long_reason_is_cut() -> None:
    (answer,) = load_venue("coinbase").answers(dumped({"type": "error", "message": "x" * 10_000}))
    assert 0 < len(answer.reason) <= 500


def test_many_requests_do_not_add_up() -> None:
    venue = load_venue("binance")
    for number in range(10_000):
        venue.requests(["a@trade"], subscribing=True, ids=iter([number]))
    assert venue.answers(b'{"result":null,"id":0}') == []
    (answer,) = venue.answers(b'{"result":null,"id":9999}')
    assert answer.names == ("a@trade",)


def test_two_venues_share_nothing() -> None:
    one, two = Talk("bitfinex"), load_venue("bitfinex")
    one.subscribe("trades:tBTCUSD")
    assert isinstance(two, Venue)
    assert two.topic_of("17470") is None


# ---- what exchanges have sent ------------------------------------------------------------------

CAPTURES = Path(__file__).parents[5] / "shared" / "captures"
"""Real messages; those of the formats that are still in use."""


@pytest.mark.parametrize("name", ["binance", "okx", "coinbase", "bitstamp", "deribit"])
def test_real_messages_belong_to_what_was_asked_for(name: str) -> None:
    path = CAPTURES / f"{'binance-spot' if name == 'binance' else name}.tsv.gz"
    if not path.exists():
        pytest.skip("the captures are not here")
    records = [*itertools.islice(read(path), 4000)]
    sent = [record.payload.decode() for record in records if record.kind == "sent"]
    talk = Talk(name)
    without_topic = 0
    for record in records:
        if record.kind != "text":
            continue
        topic = talk.topic_of(record.payload.decode())
        if topic is None:
            without_topic += 1
            assert oracle.is_control(talk.venue.control, record.payload)
            continue
        talk.venue.check_name(topic)
        channel, _, what = topic.partition(":")
        assert name == "binance" or any(channel in text and what in text for text in sent), topic
    assert without_topic <= len(sent) * 100
