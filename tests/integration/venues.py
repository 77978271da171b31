"""A WebSocket server that plays an exchange's part: subscriptions, acknowledgements, refusals,
heartbeats, limits.

    with VenueServer("okx", refuse={"trades:NO-PAIR": "doesn't exist"}) as server:
        config = Config(name=name, venue="okx", url=server.url)
        ...
        server.publish("trades:BTC-USDT", 3)
        assert server.subscribed == {"trades:BTC-USDT"}
        assert not server.violations

What each exchange wants to hear and says is in `exchanges`, as the exchange documents it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.conftest import DEADLINE, eventually
from tests.frames import TEXT, frame
from tests.integration.exchanges import Client, Violation, Wish, exchange

__all__ = ["Said", "VenueServer"]

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
        rate: messages in so many seconds that are allowed, in place of the exchange's own limit.
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
        rate: tuple[int, float] | None = None,
        *,
        listener: socket.socket | None = None,
    ) -> None:
        self.refuse = dict(refuse or {})
        self.silent = {*silent}
        self.log: list[Said] = []
        self.violations: list[str] = []
        self.connections = 0
        self._exchange = exchange(venue)
        self._exchange.rate = rate or self._exchange.rate
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
            if len(text) > self._exchange.bytes_max:
                raise Violation(f"{len(text)} bytes")
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
