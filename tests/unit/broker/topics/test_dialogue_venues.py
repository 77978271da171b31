"""Each venue's side of a conversation with a program that thinks it talks to the exchange.

What programs say is what ccxt, cryptofeed and the exchanges' documentation have. What the exchange
would answer is `tests.integration.exchanges`, written from the documentation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ringcast.broker.exchange.captures import read
from ringcast.broker.topics.dialogue import Answering, Ask, Dialogue, Login, Ping
from ringcast.broker.topics.venue import Outcome
from ringcast.broker.topics.venue_file import list_venues, load_venue
from tests.integration.exchanges import Client, exchange

PLAYED = {
    "binance": Answering.WHOLE,
    "binance-usdm": Answering.WHOLE,
    "bitstamp": Answering.EACH,
    "bybit": Answering.WHOLE,
    "coinbase": Answering.WHOLE,
    "deribit": Answering.SOME,
    "kraken": Answering.EACH,
    "okx": Answering.EACH,
}

NAMES = {
    "binance": ["btcusdt@trade", "ethusdt@depth@100ms", "!miniTicker@arr"],
    "binance-usdm": ["btcusdt@aggTrade", "!markPrice@arr@1s"],
    "bitstamp": ["live_trades_btcusd", "diff_order_book_ethusd"],
    "bybit": ["publicTrade.BTCUSDT", "orderbook.50.ETHUSDT"],
    "coinbase": ["level2:BTC-USD", "level2:ETH-USD", "ticker:BTC-USD", "status"],
    "deribit": ["trades.BTC-PERPETUAL.100ms", "platform_state"],
    "kraken": ["trade:BTC/USD", "trade:ETH/USD", "book-100:BTC/USD", "book:ETH/USD", "instrument"],
    "okx": [
        "trades:BTC-USDT",
        "books:BTC-USDT",
        "instruments:SPOT",
        "opt-summary:BTC-USD",
        "status",
    ],
}

VENUES = pytest.mark.parametrize("name", PLAYED)


def dialogue(name: str) -> Dialogue:
    return Dialogue(load_venue(name))


def said(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def asked(name: str, value: Any) -> Ask | None:
    found = dialogue(name).read(said(value))
    assert found is None or isinstance(found, Ask)
    return found


def subscribed(*names: str, id: str | None = None) -> Ask:  # noqa: A002
    return Ask(names, subscribing=True, id=id)


def unsubscribed(*names: str, id: str | None = None) -> Ask:  # noqa: A002
    return Ask(names, subscribing=False, id=id)


def answers(name: str, ask: Ask, held: Sequence[str] = (), **refused: str) -> list[Any]:
    return [json.loads(text) for text in dialogue(name).answers(ask, refused, held)]


def test_which_exchanges_can_be_played() -> None:
    ways = {name: dialogue(name).answering for name in list_venues()}
    assert {name: way for name, way in ways.items() if way is not None} == PLAYED


# ---- there and back ----------------------------------------------------------------------------


@VENUES
def test_the_venues_own_requests_are_read_back(name: str) -> None:
    venue = load_venue(name)
    examples = [naming.example for naming in venue.namings]
    for names, subscribing in itertools.product((NAMES[name], examples), (True, False)):
        ids = itertools.count(7)
        for request in venue.requests(names, subscribing=subscribing, ids=ids):
            found = dialogue(name).read(request.text.encode())
            assert isinstance(found, Ask)
            assert (found.names, found.subscribing) == (request.names, subscribing)
            assert found.id in (None, request.id, f'"{request.id}"')
            assert (found.id is None) == (request.id is None)


@VENUES
@pytest.mark.parametrize("subscribing", [True, False])
def test_answers_are_what_the_manager_would_understand(name: str, *, subscribing: bool) -> None:
    venue = load_venue(name)
    requests = venue.requests(NAMES[name], subscribing=subscribing, ids=itertools.count(1))
    for request in requests:
        ask = dialogue(name).read(request.text.encode())
        assert isinstance(ask, Ask)
        held = ask.names if subscribing else ()
        texts = dialogue(name).answers(ask, {}, held)
        found = [answer for text in texts for answer in venue.answers(text.encode())]
        expected = Outcome.SUBSCRIBED if subscribing else Outcome.UNSUBSCRIBED
        wanted: set[str] = {*request.names}
        if name == "coinbase":
            expected, wanted = Outcome.LISTED, {*held}
        assert {answer.outcome for answer in found} == {expected}
        assert {each for answer in found for each in (answer.names or request.names)} >= wanted


@VENUES
def test_answers_are_those_of_the_exchange(name: str) -> None:
    """As far as they are not about time or the connection, and are in the documentation."""
    left_out = {"connId", "conn_id", "time_in", "usDiff", "ret_msg", "depth", "snapshot"}

    def plain(text: str) -> Any:
        return json.loads(text, object_hook=lambda d: {k: d[k] for k in d if k not in left_out})

    venue, server, client = load_venue(name), exchange(name), Client(1)
    for subscribing in (True, False):
        for request in venue.requests(NAMES[name], subscribing=subscribing, ids=itertools.count(1)):
            expected = server.answer(client, server.read(client, request.text), {})
            ask = dialogue(name).read(request.text.encode())
            assert isinstance(ask, Ask)
            found = dialogue(name).answers(ask, {}, sorted(client.subscribed))
            acknowledged = [plain(text) for text in expected]
            assert all(plain(text) in acknowledged for text in found)
            assert len(found) == (len(ask.names) if PLAYED[name] is Answering.EACH else 1)


@VENUES
def test_a_refusal_is_what_the_manager_would_understand(name: str) -> None:
    venue = load_venue(name)
    first, second, *_ = NAMES[name]
    for request in venue.requests([first, second], subscribing=True, ids=itertools.count(1)):
        ask = dialogue(name).read(request.text.encode())
        assert isinstance(ask, Ask)
        texts = dialogue(name).answers(ask, {first: "no such thing"}, ())
        found = [answer for text in texts for answer in venue.answers(text.encode())]
        refusals = [answer for answer in found if answer.outcome is Outcome.REFUSED]
        assert bool(refusals) == (first in request.names)
        if name != "deribit":  # its refusals have no reason as soon as one topic is accepted
            assert all("no such thing" in refusal.reason for refusal in refusals)


@pytest.mark.parametrize("name", ["bitstamp", "coinbase", "deribit", "okx"])
def test_real_requests_are_read(name: str) -> None:
    path = Path(__file__).parents[5] / "shared" / "captures" / f"{name}.tsv.gz"
    if not path.exists():
        pytest.skip("the captures are not here")
    records = [*itertools.islice(read(path), 200)]
    sent = [record.payload for record in records if record.kind == "sent"]
    assert sent
    for payload in sent:
        ask = dialogue(name).read(payload)
        assert isinstance(ask, Ask)
        assert ask.subscribing
    for record in records:
        if record.kind == "text":
            assert not isinstance(dialogue(name).read(record.payload), Ask)


# ---- what programs say -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binance", "binance-usdm"])
def test_binance(name: str) -> None:
    ask = asked(
        name, {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "!ticker@arr", "a@b"], "id": 1}
    )
    assert ask == subscribed("btcusdt@trade", "!ticker@arr", "a@b", id="1")
    assert answers(name, ask) == [{"result": None, "id": 1}]
    assert answers(name, ask, (), **{"a@b": "no"}) == [{"error": {"code": 2, "msg": "no"}, "id": 1}]
    ask = asked(name, {"id": "x9", "method": "UNSUBSCRIBE", "params": ["btcusdt@trade"]})
    assert ask == unsubscribed("btcusdt@trade", id='"x9"')
    assert answers(name, ask) == [{"result": None, "id": "x9"}]
    for without in ({}, {"id": None}):
        ask = asked(name, {"method": "SUBSCRIBE", "params": ["a@b"], **without})
        assert ask is not None
        assert answers(name, ask) == [{"result": None, "id": None}]


def test_binance_ignores_wrong_names_so_they_go_up() -> None:
    for wrong in ("ETHUSDT@trade", "", "\ud800@trade", "ethusdt"):
        asks = {"method": "SUBSCRIBE", "params": ["btcusdt@trade", wrong], "id": 1}
        assert asked("binance", asks) is None


def test_binance_properties_stay_as_they_are() -> None:
    ask = {"method": "SET_PROPERTY", "params": ["combined", True], "id": 5}
    assert dialogue("binance").read(said(ask)) == Ping('{"result":null,"id":5}')
    ask["params"] = ["combined", False]
    found = dialogue("binance").read(said(ask))
    assert isinstance(found, Ping)
    assert json.loads(found.answer)["error"]["code"] == 2


def test_binance_urls() -> None:
    spot, usdm = dialogue("binance"), dialogue("binance-usdm")
    assert spot.topics_of_url("/ws/btcusdt@trade", []) == ("btcusdt@trade",)
    assert spot.topics_of_url("/ws/btcusdt@trade/!ticker@arr", []) == (
        *("btcusdt@trade", "!ticker@arr"),
    )
    streams = [
        ("timeUnit", "MICROSECOND"),
        ("streams", "btcusdt@trade/ethusdt@depth/btcusdt@trade"),
    ]
    assert spot.topics_of_url("/stream", streams) == ("btcusdt@trade", "ethusdt@depth")
    assert spot.topics_of_url("/stream", [("streams", "BTCUSDT@trade/a@b")]) == ("a@b",)
    for path, parameters in (
        ("/", []),
        ("/ws", []),
        ("/ws/1", []),  # ccxt subscribes afterwards
        ("/ws/", [("streams", "a@b")]),
        ("/stream", [("stream", "a@b")]),
        ("/stream", [("streams", "")]),
        ("/stream/more", [("streams", "a@b")]),
        ("/market/ws/a@b", []),
    ):
        assert spot.topics_of_url(path, parameters) is None
    assert usdm.topics_of_url("/market/ws/a@b", []) == ("a@b",)
    assert usdm.topics_of_url("/public/stream", [("streams", "a@b")]) == ("a@b",)
    assert dialogue("okx").topics_of_url("/ws/v5/public", [("streams", "a@b")]) is None


def test_okx() -> None:
    args = [
        {"channel": "tickers", "instId": "BTC-USDT"},
        {"instType": "SPOT", "channel": "instruments"},
    ]
    ask = asked("okx", {"op": "subscribe", "args": [*args, {"channel": "status"}]})
    assert ask == subscribed("tickers:BTC-USDT", "instruments:SPOT", "status")
    assert answers("okx", ask) == [
        {"event": "subscribe", "arg": arg, "connId": "ringcast"}
        for arg in (*args, {"channel": "status"})
    ]
    ask = asked("okx", {"id": "1512", "op": "unsubscribe", "args": args})
    assert ask == unsubscribed("tickers:BTC-USDT", "instruments:SPOT", id='"1512"')
    assert {answer["id"] for answer in answers("okx", ask)} == {"1512"}
    assert answers("okx", subscribed("a:B", "a:C", id="9"), (), **{"a:B": "no"})[0] == {
        "id": 9,
        "event": "error",
        "code": "60018",
        "msg": "no",
        "connId": "ringcast",
    }


@pytest.mark.parametrize(
    "arg",
    [
        {"channel": "tickers", "instId": "btc-usdt"},
        {"channel": "tickers", "instId": "BTC-USDT", "instType": "SPOT"},
        {"channel": "tickers"},
        {"channel": "instruments", "instId": "SPOT"},
        {"channel": "positions", "instType": "ANY", "instFamily": "BTC-USD"},
        {"channel": ["tickers"], "instId": "BTC-USDT"},
        "tickers:BTC-USDT",
    ],
)
def test_okx_asks_that_have_no_name(arg: Any) -> None:
    good = {"channel": "tickers", "instId": "BTC-USDT"}
    assert asked("okx", {"op": "subscribe", "args": [good, arg]}) is None
    assert asked("okx", {"op": "subscribe", "args": [arg]}) is None


def test_okx_pings_and_logins() -> None:
    assert dialogue("okx").read(b"ping") == Ping("pong")
    login = {
        "op": "login",
        "args": [{"apiKey": "k", "passphrase": "p", "timestamp": "1", "sign": "s"}],
    }
    found = dialogue("okx").read(said(login))
    assert isinstance(found, Login)
    assert json.loads(found.answer) == {
        "event": "login",
        "code": "0",
        "msg": "",
        "connId": "ringcast",
    }


def test_bybit() -> None:
    ask = asked("bybit", {"req_id": "test", "op": "subscribe", "args": ["orderbook.1.BTCUSDT"]})
    assert ask == subscribed("orderbook.1.BTCUSDT", id='"test"')
    done = {"success": True, "ret_msg": "", "conn_id": "ringcast", "op": "subscribe"}
    assert answers("bybit", ask) == [{**done, "req_id": "test"}]
    ask = asked("bybit", {"op": "subscribe", "args": ["tickers.BTCUSDT"]})
    assert ask == subscribed("tickers.BTCUSDT")
    assert answers("bybit", ask) == [done]
    pong = dialogue("bybit").read(b'{"req_id":"100001","op":"ping"}')
    assert isinstance(pong, Ping)
    assert json.loads(pong.answer) == {**done, "op": "ping", "ret_msg": "pong", "req_id": "100001"}
    auth = dialogue("bybit").read(b'{"op":"auth","args":["key",1662350400000,"signature"]}')
    assert isinstance(auth, Login)
    assert json.loads(auth.answer) == {**done, "op": "auth"}


def test_kraken() -> None:
    asks: dict[str, Any] = {
        "method": "subscribe",
        "params": {"channel": "book", "symbol": ["A/B", "C/D"]},
        "req_id": 4,
    }
    ask = asked("kraken", asks)
    assert ask == subscribed("book:A/B", "book:C/D", id="4")
    asks["params"] |= {"depth": 25, "snapshot": True}
    ask = asked("kraken", asks)
    assert ask == subscribed("book-25:A/B", "book-25:C/D", id="4")
    done, refusal = answers("kraken", ask, (), **{"book-25:C/D": "Currency pair not supported"})
    result = {"channel": "book", "depth": 25, "snapshot": True, "symbol": "A/B"}
    assert done == {"method": "subscribe", "req_id": 4, "success": True, "result": result}
    assert refusal == {
        "method": "subscribe",
        "req_id": 4,
        "success": False,
        "error": "Currency pair not supported",
        "symbol": "C/D",
    }
    pong = dialogue("kraken").read(b'{"method":"ping","req_id":101}')
    assert pong == Ping('{"method":"pong","req_id":101}')
    assert dialogue("kraken").read(b'{"method": "ping"}') == Ping('{"method":"pong"}')


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"channel": "ticker", "symbol": ["A/B"], "event_trigger": "trades"}, ("ticker:A/B",)),
        ({"channel": "ticker", "symbol": ["A/B"], "event_trigger": "bbo"}, None),
        ({"channel": "ticker", "symbol": ["A/B"], "snapshot": False}, None),
        ({"channel": "trade", "symbol": ["A/B"], "snapshot": False}, ("trade:A/B",)),
        ({"channel": "trade", "symbol": ["A/B"], "snapshot": True}, None),
        ({"channel": "ohlc", "symbol": ["A/B"], "interval": 5, "snapshot": True}, ("ohlc-5:A/B",)),
        ({"channel": "ohlc", "symbol": ["A/B"], "interval": "5"}, None),
        ({"channel": "instrument", "snapshot": True}, ("instrument",)),
        ({"channel": "level3", "symbol": ["A/B"], "token": "secret"}, None),
        ({"channel": "trade", "symbol": "A/B"}, None),
        ({"channel": "trade", "symbol": []}, None),
    ],
)
def test_kraken_defaults(params: Any, names: tuple[str, ...] | None) -> None:
    ask = asked("kraken", {"method": "subscribe", "params": params})
    assert ask == (None if names is None else subscribed(*names))


def test_bitstamp() -> None:
    asks: dict[str, Any] = {"event": "bts:subscribe", "data": {"channel": "live_trades_btcusd"}}
    ask = asked("bitstamp", asks)
    assert ask == subscribed("live_trades_btcusd")
    done = {"event": "bts:subscription_succeeded", "channel": "live_trades_btcusd", "data": {}}
    assert answers("bitstamp", ask) == [done]
    asks["data"]["auth"] = "token"
    assert asked("bitstamp", asks) is None
    beat = dialogue("bitstamp").read(b'{"event":"bts:heartbeat"}')
    assert isinstance(beat, Ping)
    assert json.loads(beat.answer)["data"] == {"status": "success"}


COINBASE_OLD = ("level2:ETH-USD", "level2:ETH-EUR", "heartbeat:ETH-USD", "heartbeat:ETH-EUR")


@pytest.mark.parametrize(
    ("asks", "names"),
    [
        (
            {"product_ids": ["ETH-USD", "ETH-EUR"], "channels": ["level2", "heartbeat"]},
            COINBASE_OLD,
        ),
        (  # the documentation's first example
            {
                "product_ids": ["ETH-USD", "ETH-EUR"],
                "channels": [
                    "level2",
                    "heartbeat",
                    {"name": "ticker", "product_ids": ["ETH-BTC", "ETH-USD"]},
                ],
            },
            (*COINBASE_OLD, "ticker:ETH-BTC", "ticker:ETH-USD"),
        ),
        (  # ccxt, with a login
            {"product_ids": ["BTC-USD"], "channels": ["level2"], "timestamp": 1700000000}
            | {"key": "k", "signature": "s", "passphrase": "p"},
            ("level2:BTC-USD",),
        ),
        ({"channels": ["status"]}, ("status",)),
        ({"channels": [{"name": "status"}]}, ("status",)),
        ({"product_ids": ["A-B"], "channels": ["status", "ticker"]}, ("status", "ticker:A-B")),
        (
            {"channels": ["status", {"name": "ticker", "product_ids": ["A-B"]}]},
            ("status", "ticker:A-B"),
        ),
        ({"channels": ["ticker"]}, None),
        ({"product_ids": [], "channels": ["ticker"]}, None),
        ({"product_ids": ["a-b"], "channels": ["ticker"]}, None),
        ({"product_ids": ["A-B"], "channels": ["ticker", 5]}, None),
        ({"product_ids": ["A-B", None], "channels": ["ticker"]}, None),
        ({"product_ids": ["A-B"], "channels": ["ticker"], "profile": "x"}, None),
        ({"channels": [{"name": "ticker", "product_ids": ["A-B", 5]}]}, None),
    ],
)
def test_coinbase(asks: Any, names: tuple[str, ...] | None) -> None:
    expected = None if names is None else subscribed(*names)
    assert asked("coinbase", {"type": "subscribe", **asks}) == expected
    if names is not None:
        assert asked("coinbase", {"type": "unsubscribe", **asks}) == unsubscribed(*names)


def test_coinbase_lists_what_a_client_has() -> None:
    ask = subscribed("level2:BTC-USD")
    held = ("ticker:A-B", "status", "level2:BTC-USD", "ticker:C-D")
    assert answers("coinbase", ask, held) == [
        {
            "type": "subscriptions",
            "channels": [
                {"name": "ticker", "product_ids": ["A-B", "C-D"]},
                {"name": "status", "product_ids": []},
                {"name": "level2", "product_ids": ["BTC-USD"]},
            ],
        }
    ]
    assert answers("coinbase", unsubscribed("status")) == [
        {"type": "subscriptions", "channels": []}
    ]


def test_deribit() -> None:
    asks = {"jsonrpc": "2.0", "method": "public/subscribe", "params": {"channels": ["a.b", "c.d"]}}
    ask = asked("deribit", {**asks, "id": 42})
    assert ask == subscribed("a.b", "c.d", id="42")
    common = {"jsonrpc": "2.0", "id": 42}
    assert answers("deribit", ask) == [{**common, "result": ["a.b", "c.d"]}]
    assert answers("deribit", ask, (), **{"a.b": "no"}) == [{**common, "result": ["c.d"]}]
    (refusal,) = answers("deribit", ask, (), **{"a.b": "no", "c.d": "never"})
    assert refusal["error"]["data"] == {"reason": "no"}
    assert asked("deribit", {**asks, "method": "private/subscribe", "id": 1}) is None
    test = dialogue("deribit").read(
        b'{"jsonrpc":"2.0","id":8212,"method":"public/test","params":{}}'
    )
    assert test == Ping('{"jsonrpc":"2.0","id":8212,"result":{"version":"1.2.26"}}')
    beat = {"id": "h", "method": "public/set_heartbeat", "params": {"interval": 30}}
    assert dialogue("deribit").read(said(beat)) == Ping('{"jsonrpc":"2.0","id":"h","result":"ok"}')
    leave = dialogue("deribit").read(b'{"id":3,"method":"public/unsubscribe_all","params":{}}')
    assert isinstance(leave, Ping)
    assert json.loads(leave.answer)["error"]["code"] == -32602
    login = {"id": 1, "method": "public/auth", "params": {"grant_type": "client_credentials"}}
    assert dialogue("deribit").read(said(login)) is None  # its answer would have tokens


def test_bitfinex_pings_only() -> None:
    asks = {"event": "subscribe", "channel": "trades", "symbol": "tBTCUSD"}
    assert asked("bitfinex", asks) is None
    pong = dialogue("bitfinex").read(b'{"event":"ping","cid":1234}')
    assert pong == Ping('{"event":"pong","cid":1234}')
    assert isinstance(dialogue("bitfinex").read(b'{"event":"auth","apiKey":"k"}'), Login)
    with pytest.raises(ValueError, match="bitfinex does not say how requests are answered"):
        dialogue("bitfinex").answers(subscribed("trades:tBTCUSD"))
