"""Clients of a gateway that ask for much, at the wrong moment, or in two ways at once: they are
answered, and others do not suffer."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Final

from ringcast import Manager, shm
from ringcast.broker.gateway.server import GatewayOptions, OnLoss
from ringcast.broker.worker.wire import Record, RecordType, encode, records
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, eventually
from tests.frames import BINARY, PING, PONG, TEXT, masked

from .askers import Rpc, rpc_config
from .gateway import Client, client_of, gateway_of
from .gateways import serving
from .manager import kill, running
from .manager import serving as server_of
from .subscribers import TOPICS, config_of, venue_file
from .venues import VenueServer

RECORDS: Final = "Sec-WebSocket-Protocol: ringcast.1\r\n"
OKX: Final = TOPICS["okx"]
REQUESTS_MAX: Final = 256
"""Of one client that wait for the server at once."""


RESTART: Final = 1012
PER_REQUEST: Final = "topics_per_request = 100"
"""Of the venue file of OKX."""
ROUNDS: Final = 30
KEEP: Final = GatewayOptions(on_loss=OnLoss.KEEP)


def client_of_ready(folder: Path, server: VenueServer, target: str = "/") -> Client:
    """A client, once the manager is connected."""
    eventually(lambda: server.living, "the manager is connected")
    return client_of(folder / "g", target)


def okx_request(*names: str, op: str = "subscribe") -> str:
    args = [dict(zip(("channel", "instId"), name.split(":"), strict=True)) for name in names]
    return json.dumps({"op": op, "args": args}, separators=(",", ":"))


def test_one_that_asks_faster_than_it_reads_is_read_again(name: str, tmp_path: Path) -> None:
    """Over TCP a socket may take all answers at once, so it is never full."""
    asked = [encode(Record(RecordType.SUBSCRIBE, b"a", key=1 + n)) for n in range(900)]
    requests = masked(BINARY, b"".join(asked)) * 4
    rounds = 20
    with Writer.create(name), gateway_of(name, tmp_path) as gateway:
        gateway.attached()
        client = gateway.connect_tcp()
        client.shake_hands("/", host=gateway.host, more=RECORDS)

        def ask() -> None:
            for _ in range(rounds):
                client.sock.sendall(requests)

        sender = threading.Thread(target=ask)
        sender.start()
        refused = 0
        while refused < rounds * 4 * len(asked):
            message = client.message()
            assert isinstance(message, bytes)
            refused += sum(each.type == RecordType.REFUSED for each in records(message))
        sender.join(DEADLINE)
        client.close()


def test_one_that_has_patterns_of_its_own(name: str, tmp_path: Path) -> None:
    """Of an exchange that answers with all topics; a pattern is none of its."""
    topic, later = TOPICS["coinbase"][:2]
    with (
        VenueServer("coinbase") as server,
        running(config_of(server.url, name, "coinbase")),
        serving(name, f"unix:{tmp_path}/g"),
        client_of_ready(tmp_path, server, "/?topics=status*") as client,
    ):
        for number, each in enumerate((topic, later), 1):
            product = each.partition(":")[2]
            request = {"type": "subscribe", "product_ids": [product], "channels": ["ticker"]}
            client.send(json.dumps(request))
            answer = json.loads(client.message())
            assert answer["type"] == "subscriptions"
            assert len(answer["channels"][0]["product_ids"]) == number
            assert "status" not in str(answer)


def test_one_of_whose_requests_many_wait_for_the_server(name: str, tmp_path: Path) -> None:
    """It is read again once the server has answered; until then what it says next waits, too, and
    another client is served."""
    silent, other = OKX[:2]
    with (
        VenueServer("okx", silent=[silent]) as server,
        running(config_of(server.url, name, "okx")),
        serving(name, f"unix:{tmp_path}/g", options=KEEP),
        client_of_ready(tmp_path, server) as client,
        client_of(tmp_path / "g") as second,
    ):
        asked = masked(TEXT, okx_request(silent).encode()) * (REQUESTS_MAX + 1)
        client.sock.sendall(asked + masked(TEXT, b"ping") + masked(PING, b"read"))
        assert client.frame() == (PONG, b"read")
        second.send(okx_request(other))
        assert json.loads(second.message())["event"] == "subscribe"
        server.silent.clear()
        server.drop()
        answers = client.messages(REQUESTS_MAX + 2)
        assert answers.count("pong") == 1
        events = [json.loads(each)["event"] for each in answers if each != "pong"]
        assert events == ["subscribe"] * (REQUESTS_MAX + 1)
        assert answers.index("pong") >= REQUESTS_MAX


def test_one_that_waits_for_the_server_while_the_venue_changes(name: str, tmp_path: Path) -> None:
    """A part of its request is answered, and comes, though the rest is never answered. Once it has
    gone nothing is left."""
    topic, silent = OKX[:2]
    singly = venue_file(tmp_path, "okx", (PER_REQUEST, "topics_per_request = 1"))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(VenueServer("okx", silent=[topic, silent]))
        manager = stack.enter_context(Manager(config_of(server.url, name, "okx")))
        stack.enter_context(serving(name, f"unix:{tmp_path}/g", options=KEEP))
        client = stack.enter_context(client_of_ready(tmp_path, server))
        client.send(okx_request(topic, silent))
        eventually(server.requests, "the server is asked")
        kill(manager)
        eventually(lambda: shm.status(name).state != "open", "its lock is released")
        server.silent.discard(topic)
        stack.enter_context(Manager(config_of(server.url, name, singly)))
        server.wait_for(topic)
        client_of(tmp_path / "g").close()  # for each that comes the gateway looks at the venue
        server.publish(topic)
        answer, message = (json.loads(each) for each in client.messages(2))
        assert answer["event"] == "subscribe"
        assert message["data"] == [{"n": 1}]
        client.close()
        server.wait_for()


def test_a_new_one_hides_no_loss_from_the_others(name: str, tmp_path: Path) -> None:
    """A client that comes looks into the ring, too. Nothing goes out behind an event that ends a
    plain client, or in front of its answers."""
    event = json.dumps({"event": "disconnected"})
    with (
        Writer.create(name, slots=1024, capacity=1 << 20) as writer,
        gateway_of(name, tmp_path) as g,
    ):
        g.attached()
        ends = threading.Event()

        def come() -> None:
            while not ends.is_set():
                g.client().close()

        thread = threading.Thread(target=come)
        thread.start()
        try:
            for _ in range(ROUNDS):
                with g.client() as client:
                    for _ in range(64):  # so many that the gateway pauses
                        writer.publish(b"before", kind=shm.Kind.TEXT)
                    writer.publish(event.encode(), kind=shm.Kind.EVENT)
                    writer.publish(b"behind", kind=shm.Kind.TEXT)
                    got, closed = client.end()
                    assert set(got) <= {b"before"}
                    assert closed.code == RESTART
        finally:
            ends.set()
            thread.join(DEADLINE)


def test_requests_of_one_that_does_not_number_them(name: str, tmp_path: Path) -> None:
    """It is answered all the same, and as a client with records is."""
    rpc = Rpc()
    with (
        server_of(rpc) as server,
        running(rpc_config(name, server.url)),
        serving(name, f"unix:{tmp_path}/g"),
    ):
        rpc.wait_for_connections(1)
        with client_of(tmp_path / "g", more=RECORDS) as client:
            payload = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "echo"}).encode()
            client.send(encode(Record(RecordType.REQUEST, payload, kind=shm.Kind.TEXT)))
            rpc.answer(*rpc.requests(1), result="a")
            found: list[Record] = []
            while not found:
                message = client.message()
                assert isinstance(message, bytes)
                found += [each for each in records(message) if each.type == RecordType.ANSWER]
            assert json.loads(bytes(found[0].payload))["id"] == 5
