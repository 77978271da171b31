"""What each exchange wants to hear and says about subscriptions, without a connection.

It is written as the exchange documents it, without a look at the venue files: that both agree is
what the tests show. Topics have the names that the venue files give them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

__all__ = ["Client", "Exchange", "Violation", "Wish", "exchange"]


class Violation(Exception):
    """A request that the exchange does not understand."""


@dataclass
class Client:
    """What an exchange knows of a connection."""

    number: int
    subscribed: set[str] = field(default_factory=set)
    channels: dict[str, int] = field(default_factory=dict)  # Bitfinex's numbers
    owed: int = 0  # answers to test requests

    def name_of(self, number: int) -> str | None:
        return next((name for name, n in self.channels.items() if n == number), None)


class Wish(NamedTuple):
    """What a request asks for.

    Attributes:
        op: "subscribe", "unsubscribe" or "other".
        names: of topics.
        id: of the request, as it was written.
        replies: what is said to other requests.
    """

    op: str
    names: tuple[str, ...] = ()
    id: Any = None
    replies: tuple[str, ...] = ()


class Exchange:
    """One exchange's part of the conversation.

    Attributes:
        topics_max: of one connection; None: no limit.
        names_max: of one request.
        bytes_max: of one message.
        rate: messages in so many seconds; None: no limit.
        rate_counts: "all" with pings and pongs, or "requests".
    """

    topics_max: int | None = None
    names_max: int = 100
    bytes_max: int = 64 << 10
    rate: tuple[int, float] | None = None
    rate_counts: str = "all"

    def read(self, client: Client, text: str) -> Wish:
        """Understand a client's message.

        Raises:
            Violation: the exchange would not.
        """
        raise NotImplementedError

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        """Do what is asked, and say so; the `refused` topics of the request are not to be had."""
        raise NotImplementedError

    def data(self, client: Client, name: str, number: int) -> str:
        """A message of a topic. Each has the number as `"n": number`, or as its last element."""
        raise NotImplementedError

    def beat(self, client: Client) -> list[str]:
        """What the server sends to show or see that both are alive."""
        del client
        return []


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _apply(client: Client, wish: Wish, names: Iterable[str] | None = None) -> None:
    changed = wish.names if names is None else names
    if wish.op == "subscribe":
        client.subscribed.update(changed)
    else:
        client.subscribed.difference_update(changed)


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise Violation(what)


def _object(text: str, *keys: str) -> dict[str, Any]:
    """A JSON object that has these keys and no others."""
    try:
        value = json.loads(text)
    except ValueError:
        raise Violation(f"not JSON: {text!r}") from None
    _expect(isinstance(value, dict) and value.keys() == {*keys}, f"not {keys}: {text}")
    assert isinstance(value, dict)
    return value


class Binance(Exchange):
    topics_max = 1024
    bytes_max = 4096
    rate = (5, 1.0)

    def read(self, client: Client, text: str) -> Wish:
        del client
        asked = _object(text, "method", "params", "id")
        _expect(isinstance(asked["id"], int), f"the id is no number: {text}")
        _expect(asked["method"] in ("SUBSCRIBE", "UNSUBSCRIBE"), f"unknown method: {text}")
        return Wish(asked["method"].lower(), tuple(asked["params"]), asked["id"])

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        if refused:
            reason = next(iter(refused.values()))
            return [_dump({"error": {"code": 2, "msg": reason}, "id": wish.id})]
        _apply(client, wish)
        return [_dump({"result": None, "id": wish.id})]

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        return _dump({"stream": name, "data": {"e": "trade", "s": "X", "n": number}})


class BinanceUsdm(Binance):
    rate = (10, 1.0)


class Coinbase(Exchange):
    rate = (10, 1.0)

    _KINDS: Final = {
        "level2": "l2update",
        "level2_batch": "l2update",
        "matches": "match",
        "ticker_batch": "ticker",
        "full": "open",
    }

    def read(self, client: Client, text: str) -> Wish:
        del client
        asked = _object(text, "type", "channels")
        _expect(asked["type"] in ("subscribe", "unsubscribe"), f"unknown type: {text}")
        names = []
        for channel in asked["channels"]:
            products = channel.get("product_ids")
            names += (
                [channel["name"]]
                if products is None
                else [f"{channel['name']}:{product}" for product in products]
            )
        return Wish(asked["type"], tuple(names))

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        if refused:
            reason = next(iter(refused.values()))
            error = {"type": "error", "message": "Failed to subscribe", "reason": reason}
            return [_dump(error)]
        fresh = {*wish.names} - client.subscribed
        _apply(client, wish)
        channels: dict[str, list[str]] = {}
        for name in sorted(client.subscribed):
            channel, _, product = name.partition(":")
            channels.setdefault(channel, []).extend([product] if product else [])
        listed = [{"name": name, "product_ids": ids} for name, ids in channels.items()]
        said = [_dump({"type": "subscriptions", "channels": listed})]
        for name in sorted(fresh if wish.op == "subscribe" else ()):
            channel, _, product = name.partition(":")
            if channel == "level2":
                said.append(_dump({"type": "snapshot", "product_id": product, "n": 0}))
            elif channel == "matches":
                said.append(_dump({"type": "last_match", "product_id": product, "n": 0}))
        return said

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        channel, _, product = name.partition(":")
        message: dict[str, Any] = {"type": self._KINDS.get(channel, channel)}
        if product:
            message["product_id"] = product
        return _dump({**message, "n": number})


class Kraken(Exchange):
    def read(self, client: Client, text: str) -> Wish:
        del client
        asked = json.loads(text)
        if asked == {"method": "ping"}:
            return Wish("other", replies=(_dump({"method": "pong", "time_in": "-"}),))
        asked = _object(text, "method", "params", "req_id")
        _expect(isinstance(asked["req_id"], int), f"the id is no number: {text}")
        _expect(asked["method"] in ("subscribe", "unsubscribe"), f"unknown method: {text}")
        params = asked["params"]
        channel = params["channel"]
        for key in ("depth", "interval"):
            if key in params:
                _expect(isinstance(params[key], int), f"{key} is no number: {text}")
                channel += f"-{params[key]}"
        if "symbol" not in params:
            return Wish(asked["method"], (channel,), asked["req_id"])
        names = tuple(f"{channel}:{symbol}" for symbol in params["symbol"])
        return Wish(asked["method"], names, asked["req_id"])

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        said = []
        for name in wish.names:
            whole, _, symbol = name.partition(":")
            channel, _, extra = whole.partition("-")
            common: dict[str, Any] = {"method": wish.op, "req_id": wish.id}
            if name in refused or (wish.op == "subscribe" and name in client.subscribed):
                reason = refused.get(name, "Already subscribed")
                failed = {**common, "error": reason, "success": False, "symbol": symbol}
                said.append(_dump(failed))
                continue
            result: dict[str, Any] = {"channel": channel}
            if channel == "book":
                result["depth"] = int(extra or 10)
            if channel == "ohlc":
                result["interval"] = int(extra)
            if symbol:
                result["symbol"] = symbol
            _apply(client, wish, [name])
            said.append(_dump({**common, "result": result, "success": True, "time_in": "-"}))
            if channel == "book" and wish.op == "subscribe":
                said.append(self.data(client, name, 0).replace('"update"', '"snapshot"'))
        return said

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        whole, _, symbol = name.partition(":")
        channel, _, extra = whole.partition("-")
        if not symbol:
            return _dump({"channel": channel, "type": "update", "data": {"n": number}})
        entry: dict[str, Any] = {"symbol": symbol}
        if channel == "ohlc":
            entry["interval"] = int(extra)
        return _dump({"channel": channel, "type": "update", "data": [{**entry, "n": number}]})

    def beat(self, client: Client) -> list[str]:
        return [_dump({"channel": "heartbeat"})] if client.subscribed else []


class Okx(Exchange):
    rate = (480, 3600.0)
    rate_counts = "requests"

    _TYPES: Final = ("SPOT", "MARGIN", "SWAP", "FUTURES", "OPTION", "ANY")

    def read(self, client: Client, text: str) -> Wish:
        del client
        if text == "ping":
            return Wish("other", replies=("pong",))
        asked = _object(text, "op", "id", "args")
        _expect(isinstance(asked["id"], str) and asked["id"].isalnum(), f"bad id: {text}")
        _expect(asked["op"] in ("subscribe", "unsubscribe"), f"unknown op: {text}")
        return Wish(asked["op"], tuple(map(self._name, asked["args"])), asked["id"])

    def _name(self, arg: dict[str, str]) -> str:
        rest = [value for key, value in arg.items() if key != "channel"]
        _expect(arg.keys() <= {"channel", "instId", "instType", "instFamily"}, f"bad arg: {arg}")
        return ":".join([arg["channel"], *rest])

    def _arg(self, name: str) -> dict[str, str]:
        channel, _, what = name.partition(":")
        if not what:
            return {"channel": channel}
        key = "instId"
        if what in self._TYPES:
            key = "instType"
        elif channel in ("opt-summary", "option-trades"):
            key = "instFamily"
        return {"channel": channel, key: what}

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        said = []
        for name in wish.names:
            if name in refused:
                error = {"event": "error", "code": "60018", "msg": refused[name]}
                said.append(_dump({"id": wish.id, **error, "connId": "a4d3ae55"}))
                continue
            _apply(client, wish, [name])
            done = {"id": wish.id, "event": wish.op, "arg": self._arg(name), "connId": "a4d3ae55"}
            said.append(_dump(done))
        return said

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        return _dump({"arg": self._arg(name), "data": [{"n": number}]})


class Bybit(Exchange):
    names_max = 10

    def read(self, client: Client, text: str) -> Wish:
        del client
        if json.loads(text) == {"op": "ping"}:
            pong = {"success": True, "ret_msg": "pong", "conn_id": "c", "req_id": "", "op": "ping"}
            return Wish("other", replies=(_dump(pong),))
        asked = _object(text, "op", "args", "req_id")
        _expect(isinstance(asked["req_id"], str), f"bad id: {text}")
        _expect(asked["op"] in ("subscribe", "unsubscribe"), f"unknown op: {text}")
        return Wish(asked["op"], tuple(asked["args"]), asked["req_id"])

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        reason = next(iter(refused.values()), None)
        doubled = [n for n in wish.names if wish.op == "subscribe" and n in client.subscribed]
        if reason is None and doubled:
            reason = f"error:already subscribed,topic:{doubled[0]}"
        if reason is None:
            _apply(client, wish)
        said = {
            "success": reason is None,
            "ret_msg": reason or wish.op,
            "conn_id": "c",
            "req_id": wish.id,
            "op": wish.op,
        }
        return [_dump(said)]

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        return _dump({"topic": name, "type": "delta", "ts": 1, "data": {"n": number}})


class Bitstamp(Exchange):
    names_max = 1

    def read(self, client: Client, text: str) -> Wish:
        del client
        if json.loads(text) == {"event": "bts:heartbeat"}:
            beat = {"event": "bts:heartbeat", "channel": "", "data": {"status": "success"}}
            return Wish("other", replies=(_dump(beat),))
        asked = _object(text, "event", "data")
        op = asked["event"].removeprefix("bts:")
        _expect(op in ("subscribe", "unsubscribe"), f"unknown event: {text}")
        return Wish(op, (asked["data"]["channel"],))

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        (name,) = wish.names
        if name in refused:
            data = {"code": None, "message": refused[name]}
            return [_dump({"event": "bts:error", "channel": "", "data": data})]
        _apply(client, wish)
        event = f"bts:{'' if wish.op == 'subscribe' else 'un'}subscription_succeeded"
        return [_dump({"event": event, "channel": name, "data": {}})]

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        event = "trade" if name.startswith("live_trades") else "data"
        return _dump({"data": {"n": number}, "channel": name, "event": event})


class Deribit(Exchange):
    rate = (10, 1.0)
    rate_counts = "requests"

    def read(self, client: Client, text: str) -> Wish:
        asked = _object(text, "jsonrpc", "id", "method", "params")
        method = asked["method"].removeprefix("public/")
        common = {"jsonrpc": "2.0", "id": asked["id"]}
        if method == "set_heartbeat":
            _expect(asked["params"]["interval"] >= 10, f"bad interval: {text}")
            return Wish("other", replies=(_dump({**common, "result": "ok"}),))
        if method == "test":
            client.owed -= 1
            return Wish("other", replies=(_dump({**common, "result": {"version": "1.2.26"}}),))
        _expect(method in ("subscribe", "unsubscribe"), f"unknown method: {text}")
        _expect(isinstance(asked["id"], int), f"the id is no number: {text}")
        return Wish(method, tuple(asked["params"]["channels"]), asked["id"])

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        done = [name for name in wish.names if name not in refused]
        _apply(client, wish, done)
        return [_dump({"jsonrpc": "2.0", "id": wish.id, "result": done, "usDiff": 3})]

    def data(self, client: Client, name: str, number: int) -> str:
        del client
        params = {"channel": name, "data": {"n": number}}
        return _dump({"jsonrpc": "2.0", "method": "subscription", "params": params})

    def beat(self, client: Client) -> list[str]:
        client.owed += 1
        params = {"type": "test_request"}
        return [_dump({"jsonrpc": "2.0", "method": "heartbeat", "params": params})]


class Bitfinex(Exchange):
    topics_max = 25
    names_max = 1

    def __init__(self) -> None:
        self._numbers = itertools.count(17470)

    def read(self, client: Client, text: str) -> Wish:
        asked = json.loads(text)
        if asked == {"event": "ping"}:
            return Wish("other", replies=(_dump({"event": "pong", "ts": 1}),))
        if asked["event"] == "unsubscribe":
            _object(text, "event", "chanId")
            _expect(isinstance(asked["chanId"], int), f"chanId is no number: {text}")
            name = client.name_of(asked["chanId"])
            _expect(name is not None, f"no such channel: {text}")
            assert name is not None
            return Wish("unsubscribe", (name,), asked["chanId"])
        _expect(asked["event"] == "subscribe", f"unknown event: {text}")
        channel, what = asked["channel"], asked.get("symbol", asked.get("key"))
        if "prec" in asked:
            channel += f"-{asked['prec']}-{asked['freq']}-{asked['len']}"
        return Wish("subscribe", (f"{channel}:{what}",), asked["subId"])

    def answer(self, client: Client, wish: Wish, refused: Mapping[str, str]) -> list[str]:
        (name,) = wish.names
        _apply(client, wish, () if refused else None)
        if wish.op == "unsubscribe":
            del client.channels[name]
            return [_dump({"event": "unsubscribed", "status": "OK", "chanId": wish.id})]
        whole, _, what = name.partition(":")
        channel, *extra = whole.split("-")
        about: dict[str, Any] = {"channel": channel, "subId": wish.id}
        about["key" if channel in ("candles", "status") else "symbol"] = what
        if channel == "book":
            about |= dict(zip(("prec", "freq", "len"), extra or ("P0", "F0", "25"), strict=True))
        if refused:
            return [_dump({"event": "error", "msg": refused[name], "code": 10300, **about})]
        number = client.channels[name] = next(self._numbers)
        return [
            _dump({"event": "subscribed", "chanId": number, **about, "pair": what[1:]}),
            _dump([number, [[0, 0, 0]], 0]),
        ]

    def data(self, client: Client, name: str, number: int) -> str:
        return _dump([client.channels[name], "te", [401597395, 1574694478808, 0.005], number])

    def beat(self, client: Client) -> list[str]:
        return [_dump([number, "hb"]) for number in client.channels.values()]


_EXCHANGES: Final[Mapping[str, Callable[[], Exchange]]] = {
    "binance": Binance,
    "binance-usdm": BinanceUsdm,
    "coinbase": Coinbase,
    "kraken": Kraken,
    "okx": Okx,
    "bybit": Bybit,
    "bitstamp": Bitstamp,
    "deribit": Deribit,
    "bitfinex": Bitfinex,
}


def exchange(venue: str) -> Exchange:
    """An exchange's part, without a server: for tests that only look at what is said."""
    return _EXCHANGES[venue]()
