"""A WebSocket server that plays an exchange's part: subscriptions, acknowledgements, refusals,
heartbeats, limits.

    with VenueServer("okx", refuse={"trades:NO-PAIR": "doesn't exist"}) as server:
        config = Config(name=name, venue="okx", url=server.url)
        ...
        server.publish("trades:BTC-USDT", 3)
        assert server.subscribed == {"trades:BTC-USDT"}
        assert not server.violations

What each exchange wants to hear and says is written here as the exchange documents it, without a
look at the venue files: that both agree is what the tests show. Topics have the names that the
venue files give them.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.conftest import DEADLINE, eventually
from tests.integration.rawserver import TEXT, frame

__all__ = ["Exchange", "Said", "VenueServer", "exchange"]

_READ: Final = 1 << 16
_SLACK: Final = 0.8
"""Of a limit's time is looked at: the machine may deliver in bursts what was sent evenly."""
_RESET: Final = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER: on, 0 s. Closing then resets the connection."""


class Said(NamedTuple):
    """A message of a client's.

    Attributes:
        time: when it came, s, on the monotonic clock.
        connection: its number, from 1.
        op: "subscribe", "unsubscribe" or "other".
        names: the topics it is about.
        text: the message.
    """

    time: float
    connection: int
    op: str
    names: tuple[str, ...]
    text: str


class Violation(Exception):
    """A request that the exchange does not understand."""


# ---- what exchanges want and say ---------------------------------------------------------------


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


# ---- the server ----------------------------------------------------------------------------------


class _Connection:
    """A client's connection; one thread reads it, any may send."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.client = Client(number)
        self.times: list[float] = []
        self._sock = sock
        self._protocol = ServerProtocol(max_size=None)
        self._lock = threading.Lock()

    def events(self) -> list[Request | Frame]:
        """What comes next; none at the end of the stream."""
        data = self._sock.recv(_READ)
        with self._lock:
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            events: list[Any] = self._protocol.events_received()
            for event in events:
                if isinstance(event, Request):
                    self._protocol.send_response(self._protocol.accept(event))
            with suppress(OSError):  # it may have gone after it sent that
                for piece in self._protocol.data_to_send():
                    if piece:
                        self._sock.sendall(piece)
                    else:  # both have said that they close
                        self._sock.shutdown(socket.SHUT_WR)
        if not data and not events:
            raise EOFError
        return events

    def send(self, *texts: str) -> None:
        """Send messages in one write; without effect once the client has gone."""
        with self._lock, suppress(OSError):
            self._sock.sendall(b"".join(frame(TEXT, text.encode()) for text in texts))

    def cut(self) -> None:
        """End it as a machine does that has forgotten it."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._sock.close()


class VenueServer:
    """Plays an exchange on 127.0.0.1 until the block ends.

    Args:
        venue: which one, by the name of its venue file.
        refuse: topics that are not to be had, and what the exchange says of them. Can be changed
            at any time.
        silent: topics that are asked for in vain: requests with one of them get no answer and have
            no effect. Can be changed at any time.
        listener: a bound socket, whose backlog may have clients already; None for one of its own.

    Attributes:
        url: where to connect, `ws://`.
        log: everything that clients have sent, in order, as `Said`.
        violations: what the exchange would not have accepted, in words: requests that it doesn't
            understand, more messages, topics or bytes than its limits, a topic that is subscribed
            twice on one connection, an unsubscription of what is not subscribed.
        connections: how many there have been.
    """

    def __init__(
        self,
        venue: str,
        refuse: Mapping[str, str] | None = None,
        silent: Iterable[str] = (),
        *,
        listener: socket.socket | None = None,
    ) -> None:
        self.refuse = dict(refuse or {})
        self.silent = {*silent}
        self.log: list[Said] = []
        self.violations: list[str] = []
        self.connections = 0
        self._exchange = exchange(venue)
        self._numbers: dict[str, int] = {}
        self._lock = threading.RLock()
        self._living: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._ends = False
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._start(self._accept)

    # ---- what a test looks at and does

    @property
    def subscribed(self) -> set[str]:
        """The topics that are subscribed now, on any connection."""
        with self._lock:
            return {name for each in self._living for name in each.client.subscribed}

    @property
    def living(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._living)

    @property
    def owed(self) -> int:
        """Test requests of `beat` that nobody has answered yet."""
        with self._lock:
            return sum(each.client.owed for each in self._living)

    def requests(self, op: str | None = None) -> list[Said]:
        """What asked for topics, or only the "subscribe" or "unsubscribe" among it."""
        ops = ("subscribe", "unsubscribe") if op is None else (op,)
        with self._lock:
            return [said for said in self.log if said.op in ops]

    def wait_for(self, *names: str) -> None:
        """Return when exactly these topics are subscribed."""
        eventually(lambda: self.subscribed == {*names}, f"subscribed are {names}")

    def publish(self, name: str, count: int = 1) -> int:
        """Send so many messages of a topic to each connection that has subscribed it, in one write
        each. They are numbered on, from 1, as their field `n` (Bitfinex: as their last element).

        Returns:
            How many connections got them.
        """
        with self._lock:
            first = self._numbers.get(name, 0) + 1
            self._numbers[name] = first + count - 1
            receivers = [each for each in self._living if name in each.client.subscribed]
            for each in receivers:
                data = self._exchange.data
                each.send(*(data(each.client, name, first + i) for i in range(count)))
        return len(receivers)

    def beat(self) -> None:
        """Send each connection what this exchange sends to show or to see that both are alive."""
        with self._lock:
            for each in self._living:
                each.send(*self._exchange.beat(each.client))

    def say(self, text: str) -> None:
        """Send a message to each connection, whatever it is."""
        with self._lock:
            for each in self._living:
                each.send(text)

    def drop(self) -> None:
        """Cut all connections. What was subscribed is forgotten when this returns."""
        with self._lock:
            for each in self._living:
                each.cut()
            self._living.clear()

    def close(self) -> None:
        """End the server and all connections."""
        self._ends = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a thread of the server does not end"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- connections

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ends:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                connection = _Connection(sock, self.connections)
            self._start(self._serve, connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            while True:
                for event in connection.events():
                    self._handle(connection, event)
        except (EOFError, OSError):
            pass  # clients come and go
        finally:
            with self._lock:
                if connection in self._living:
                    self._living.remove(connection)
            connection.close()

    def _handle(self, connection: _Connection, event: Request | Frame) -> None:
        with self._lock:
            if isinstance(event, Request):
                if self._ends:
                    raise EOFError
                self._living.append(connection)
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY):
                self._hear(connection, bytes(event.data).decode())
            elif event.opcode in (Opcode.PING, Opcode.PONG):
                self._count(connection, is_request=False)

    def _hear(self, connection: _Connection, text: str) -> None:
        client = connection.client
        try:
            _expect(len(text) <= self._exchange.bytes_max, f"{len(text)} bytes")
            wish = self._exchange.read(client, text)
        except (Violation, ValueError, KeyError, TypeError, AttributeError) as error:
            self.violations.append(f"not understood: {error!r} of {text!r}")
            wish = Wish("other")
        self.log.append(Said(time.monotonic(), client.number, wish.op, wish.names, text))
        self._count(connection, is_request=wish.op != "other")
        if wish.op == "other":
            connection.send(*wish.replies)
            return
        self._check(client, wish)
        if not self.silent.intersection(wish.names):
            refused = {name: self.refuse[name] for name in wish.names if name in self.refuse}
            refused = refused if wish.op == "subscribe" else {}
            connection.send(*self._exchange.answer(client, wish, refused))

    def _check(self, client: Client, wish: Wish) -> None:
        if len(wish.names) > self._exchange.names_max:
            self.violations.append(f"{len(wish.names)} topics in a request")
        is_there = client.subscribed.intersection(wish.names)
        if wish.op == "subscribe":
            self.violations += [f"subscribed twice: {name}" for name in sorted(is_there)]
            most = self._exchange.topics_max
            if most is not None and len(client.subscribed.union(wish.names)) > most:
                self.violations.append(f"more than {most} topics on a connection")
        else:
            missing = sorted({*wish.names} - is_there)
            self.violations += [f"not subscribed: {name}" for name in missing]

    def _count(self, connection: _Connection, *, is_request: bool) -> None:
        rate = self._exchange.rate
        if rate is None or (self._exchange.rate_counts == "requests" and not is_request):
            return
        most, seconds = rate
        now = time.monotonic()
        connection.times.append(now)
        recent = [each for each in connection.times if now - each < seconds * _SLACK]
        connection.times = recent
        if len(recent) > most:
            self.violations.append(f"{len(recent)} messages in {seconds * _SLACK:g} s")
