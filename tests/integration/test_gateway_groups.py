"""Work groups through the gateway: clients of the WebSocket that are members."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, unix_connect

from ringcast import shm
from ringcast.broker.worker import wire
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, eventually, reader_status
from tests.frames import BINARY, PING, PONG, TEXT, masked

from .gateway import Client, Refused, client_of, gateway_of
from .gateways import serving

SLOTS: Final = 4096
CAPACITY: Final = 1 << 22
RECORDS: Final = "Sec-WebSocket-Protocol: ringcast.1\r\n"


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    """A ring, whose end is the fixture's."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=16) as writer:
        yield writer


@pytest.fixture
def path(ring: Writer, tmp_path: Path) -> Iterator[Path]:
    """The Unix socket of a gateway of that ring."""
    path = tmp_path / "gateway"
    with serving(ring.name, f"unix:{path}"):
        eventually(lambda: reader_status(ring.name) is not None, "the gateway is attached")
        yield path


def status(ring: Writer, name: str = "g") -> group.GroupStatus:
    return next(each for each in group.list_groups(ring.name) if each.name == name)


def number(ring: Writer, count: int, **options: int) -> list[str]:
    """Publish so many messages, which are returned."""
    texts = [str(ring.sequence + i) for i in range(count)]
    for text in texts:
        ring.publish(text.encode(), kind=shm.Kind.TEXT, **options)
    return texts


def given(client: Client, count: int) -> tuple[list[str], list[bytes]]:
    """The next messages, which come before others, and the pings that come after them."""
    texts: list[str] = []
    pings: list[bytes] = []
    while len(texts) < count or not pings:
        opcode, payload = client.frame()
        assert opcode in (TEXT, PING), (opcode, payload)
        if opcode == TEXT:
            texts.append(payload.decode())
            pings.clear()
        else:
            pings.append(payload)
    return texts, pings


class Worker:
    """A client of `websockets` in a thread: its library answers pings."""

    def __init__(self, path: Path, target: str) -> None:
        self.texts: list[str] = []
        self._undo = contextlib.ExitStack()
        self._socket: ClientConnection = self._undo.enter_context(
            unix_connect(str(path), f"ws://localhost{target}")
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.texts.append(str(self._socket.recv()))

    def stop(self) -> None:
        self._undo.close()
        self._thread.join(DEADLINE)


@contextlib.contextmanager
def working(path: Path, *targets: str) -> Iterator[list[Worker]]:
    """Clients inside the block."""
    workers = [Worker(path, target) for target in targets]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def handled(workers: list[Worker], count: int) -> list[str]:
    """What they have got, once it is so many: their libraries acknowledge before they have it."""
    eventually(lambda: sum(len(worker.texts) for worker in workers) >= count, f"{count} came")
    return sorted(text for worker in workers for text in worker.texts)


def all_done(ring: Writer, name: str = "g") -> None:
    """Wait until the group has done everything."""
    eventually(lambda: status(ring, name).lag == 0, "the group has done everything")


# ---- plain clients -------------------------------------------------------------------------


def test_messages_are_shared_out_without_loss_or_doubling(ring: Writer, path: Path) -> None:
    with working(path, *["/?group=g"] * 3) as workers:
        sent = number(ring, 3000)
        all_done(ring)
        assert handled(workers, 3000) == sorted(sent)
        assert all(worker.texts for worker in workers)
    assert status(ring).members == ()


def test_text_is_text_and_binary_is_binary(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g") as client:
        ring.publish("ä".encode(), kind=shm.Kind.TEXT)
        ring.publish(b"\x00", kind=shm.Kind.BINARY)
        ring.publish(b"", kind=shm.Kind.TEXT)
        assert client.messages(3) == ["ä", b"\x00", ""]


def test_who_never_answers_a_ping_gets_as_many_as_it_may_have(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g&in_flight=7") as client:
        sent = number(ring, 20)
        texts, pings = given(client, 7)
        client.is_served()
        assert texts == sent[:7]
        assert status(ring).in_flight == 7
        client.sock.sendall(masked(PONG, pings[-1]))
        assert given(client, 7)[0] == sent[7:14]
        assert status(ring).floor == 7


def test_pongs_that_answer_no_ping_say_nothing(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g") as client:
        sent = number(ring, 3)
        texts, pings = given(client, 3)
        assert texts == sent
        for payload in (b"", b"rc", os.urandom(8), pings[-1][:-1], pings[-1] + b"\0"):
            client.sock.sendall(masked(PONG, payload))
        client.is_served()
        assert (status(ring).floor, status(ring).in_flight) == (0, 3)


def test_a_pong_stands_for_what_came_before_its_ping(ring: Writer, path: Path) -> None:
    pings = []
    with client_of(path, "/?group=g") as client:
        for _ in range(3):
            number(ring, 1)
            pings += given(client, 1)[1]
        client.sock.sendall(masked(PONG, pings[1]))
        client.is_served()
        assert (status(ring).floor, status(ring).in_flight) == (2, 1)
        client.sock.sendall(masked(PONG, pings[0]) + masked(PONG, pings[1]))
        client.is_served()
        assert (status(ring).floor, status(ring).in_flight) == (2, 1)
        client.sock.sendall(masked(PONG, pings[2]))
        all_done(ring)


@pytest.mark.parametrize("in_order", [True, False])
def test_what_a_client_had_goes_to_others_when_it_goes(
    ring: Writer, path: Path, *, in_order: bool
) -> None:
    client = client_of(path, "/?group=g&in_flight=5")
    sent = number(ring, 20)
    texts, _ = given(client, 5)
    assert texts == sent[:5]
    with working(path, "/?group=g") as workers:
        if in_order:
            client.sock.sendall(masked(8, b"\x03\xe8"))
        else:
            client.close()
        all_done(ring)
        assert handled(workers, 20) == sorted(sent)
    client.close()
    assert (status(ring).redelivered, status(ring).set_aside) == (5, 0)


def test_a_slow_client_keeps_few_from_the_others(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g&in_flight=65536") as slow:
        payload = bytes(61_000)  # so that a socket of 2 MiB does not take all of them
        eventually(lambda: status(ring).members, "it has joined")
        for _ in range(4):
            ring.publish(payload)
        with working(path, "/?group=g") as workers:
            for _ in range(60):
                ring.publish(payload)
            eventually(
                lambda: len(workers[0].texts) + status(ring).in_flight >= 64,
                "all is with one of the two",
            )
            assert status(ring).in_flight < 56  # its socket and one turn
        del slow


def test_messages_of_a_key_come_in_order_to_one(ring: Writer, path: Path) -> None:
    with working(path, *["/?group=g&balance=key"] * 3) as workers:
        eventually(lambda: len(status(ring).members) == 3, "all have joined")
        for i in range(2000):
            ring.publish(f"{i % 20}:{i}".encode(), kind=shm.Kind.TEXT, key=1 + i % 20)
        all_done(ring)
        assert len(handled(workers, 2000)) == 2000
        owners = defaultdict(set)
        for worker in workers:
            found = defaultdict(list)
            for text in worker.texts:
                key, _, place = text.partition(":")
                owners[key].add(worker)
                found[key].append(int(place))
            assert all(places == sorted(places) for places in found.values())
        assert len(owners) == 20


def test_in_turn(ring: Writer, path: Path) -> None:
    with working(path, *["/?group=g&balance=round-robin"] * 2) as workers:
        eventually(lambda: len(status(ring).members) == 2, "both have joined")
        number(ring, 500)
        all_done(ring)
        assert len(handled(workers, 500)) == 500
        assert [len(worker.texts) for worker in workers] == [250, 250]


def test_members_of_both_kinds(ring: Writer, path: Path) -> None:
    found: list[str] = []
    with (
        group.Member.attach(ring.name, "g") as member,
        working(path, "/?group=g&in_flight=1") as workers,
    ):
        sent = number(ring, 500)
        while status(ring).lag:
            for message in member.read_available(limit=4):
                found.append(message.text())
        assert sorted(found + handled(workers, 500 - len(found))) == sorted(sent)
        assert found
        assert workers[0].texts


def test_a_group_may_choose_topics(ring: Writer, path: Path) -> None:
    wanted = ring.topic("a")
    other = ring.topic("b")
    with client_of(path, "/?group=g&topics=a") as client:
        ring.publish(b"no", topic=other)
        ring.publish(b"yes", topic=wanted, kind=shm.Kind.TEXT)
        texts, pings = given(client, 1)
        assert texts == ["yes"]
        client.sock.sendall(masked(PONG, pings[0]))
        all_done(ring)
    with pytest.raises(Refused, match=r"(?s)400.*group 'g'"):
        client_of(path, "/?group=g&topics=b")


def test_a_lost_connection_to_the_server_is_not_a_members_affair(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g") as client:
        ring.publish(b'{"event":"disconnected"}', kind=shm.Kind.EVENT)
        number(ring, 1)
        assert client.message() == "1"
        client.is_served()


def test_the_ring_ends_once_all_is_done(name: str, tmp_path: Path) -> None:
    with serving(name, f"unix:{tmp_path}/gateway"):
        with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as ring:
            eventually(lambda: reader_status(name) is not None, "the gateway is attached")
            client = client_of(tmp_path / "gateway", "/?group=g&in_flight=1")
            number(ring, 2)
        with client:
            assert client.messages(2) == ["0", "1"]
            opcode, ping = client.frame()
            assert opcode == PING
            client.sock.sendall(masked(PONG, ping))
            closed = client.closed()
            assert (closed.code, closed.reason) == (1001, "the manager has stopped")


def test_who_can_not_join(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g&max_deliveries=3"):
        for target in ("/?group=g&balance=key", "/?group=g&max_deliveries=4", "/?group=h&start=9"):
            with pytest.raises(Refused, match=r"HTTP/1.1 400 "):
                client_of(path, target)
        with contextlib.ExitStack() as members:
            while True:
                try:
                    members.enter_context(group.Member.attach(ring.name, "other"))
                except shm.TooManyReaders:
                    break
            with pytest.raises(Refused, match=r"(?s)HTTP/1.1 503 .*reader"):
                client_of(path, "/?group=g")


def test_an_evicted_member_is_closed(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g&in_flight=1") as client:
        number(ring, 2)
        given(client, 1)
        holder = status(ring).holder
        assert holder is not None
        ring.evict(holder)
        closed = client.closed()
        assert closed.code == 1013
        assert "evicted" in closed.reason
    with client_of(path, "/?group=g") as client:
        assert client.message() == "0"


def test_the_gateway_is_killed(ring: Writer, tmp_path: Path) -> None:
    with contextlib.ExitStack() as undo:
        gateway = gateway_of(ring.name, tmp_path)
        running = gateway.__enter__()
        undo.callback(running.kill)
        running.attached()
        client = undo.enter_context(running.client("/?group=g"))
        sent = number(ring, 10)
        assert given(client, 10)[0] == sent
        running.kill()
        with group.Member.attach(ring.name, "g") as member:
            found = [member.read(DEADLINE) for _ in range(10)]
            assert [each.text() for each in found if each is not None] == sent
            assert {each.deliveries for each in found if each is not None} == {2}
            del found


# ---- clients with records ------------------------------------------------------------------


def records(client: Client, kind: wire.RecordType, count: int) -> list[wire.Record]:
    """The next ones of this type; others are passed over."""
    found: list[wire.Record] = []
    while len(found) < count:
        opcode, payload = client.frame()
        assert opcode in (BINARY, PONG), (opcode, payload)
        if opcode == BINARY:
            found += [each for each in wire.records(payload) if each.type == kind]
    return found


def say(client: Client, kind: wire.RecordType, *sequences: int) -> None:
    """In one frame."""
    client.send(b"".join(wire.encode(wire.Record(kind, sequence=each)) for each in sequences))


def test_done_says_it_of_one_message(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g&in_flight=4", RECORDS) as client:
        number(ring, 6, topic=ring.topic("a"), key=7)
        found = records(client, wire.RecordType.MESSAGE, 4)
        assert [bytes(each.payload) for each in found] == [b"0", b"1", b"2", b"3"]
        assert {(each.key, each.topic, each.deliveries) for each in found} == {(7, 1, 1)}
        say(client, wire.RecordType.DONE, 3, 1, 1, 99)
        assert [each.sequence for each in records(client, wire.RecordType.MESSAGE, 2)] == [4, 5]
        assert (status(ring).floor, status(ring).in_flight) == (0, 4)
        say(client, wire.RecordType.DONE, 0, 2, 4, 5)
        all_done(ring)


def test_names_of_topics_come_before(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g", RECORDS) as client:
        names: dict[int, str] = {}
        for name in ("a", "b"):
            ring.publish(b"x", topic=ring.topic(name))
            while True:
                _, payload = client.frame()
                for record in wire.records(payload):
                    if record.type == wire.RecordType.TOPIC:
                        names[record.topic] = bytes(record.payload).decode()
                if record.type == wire.RecordType.MESSAGE:
                    break
            assert names[record.topic] == name


def test_what_is_given_back_comes_again_and_alone(ring: Writer, path: Path) -> None:
    with client_of(path, "/?group=g", RECORDS) as client:
        number(ring, 3)
        records(client, wire.RecordType.MESSAGE, 3)
        say(client, wire.RecordType.GIVE_BACK, 1)
        client.is_served()
        say(client, wire.RecordType.DONE, 0, 2)
        number(ring, 1)
        first = records(client, wire.RecordType.MESSAGE, 1)[0]
        if first.sequence == 3:  # it came while the other had its pause
            say(client, wire.RecordType.DONE, 3)
            first = records(client, wire.RecordType.MESSAGE, 1)[0]
        assert (first.sequence, first.deliveries) == (1, 2)
        say(client, wire.RecordType.DONE, 1, 3)
        if status(ring).lag:
            say(client, wire.RecordType.DONE, 3)
        all_done(ring)


def test_a_message_that_makes_clients_fail_takes_no_others_with_it(
    ring: Writer, path: Path
) -> None:
    sent = [int(text) for text in number(ring, 20)]
    handled: list[int] = []
    while len(handled) < 19:
        with client_of(path, "/?group=g&start=oldest&max_deliveries=3", RECORDS) as client:
            while len(handled) < 19:
                found = [each.sequence for each in records(client, wire.RecordType.MESSAGE, 1)]
                if 7 in found:
                    break  # it fails
                say(client, wire.RecordType.DONE, *found)
                handled += found
            client.is_served()
    assert sorted(handled) == [each for each in sent if each != 7]
    with client_of(path, "/?group=g", RECORDS):
        all_done(ring)
    assert [each.sequence for each in status(ring).newest_set_aside] == [7]


def test_records_that_are_for_others(path: Path) -> None:
    with client_of(path, "/?group=g", RECORDS) as client:
        client.send(wire.encode(wire.Record(wire.RecordType.SUBSCRIBE, b"a", key=1)))
        refused = records(client, wire.RecordType.REFUSED, 1)[0]
        assert (refused.key, bytes(refused.payload)[:15]) == (1, b"a group's topic")
    with client_of(path, "/", RECORDS) as client:
        say(client, wire.RecordType.DONE, 0)
        assert client.closed().code == 1003
