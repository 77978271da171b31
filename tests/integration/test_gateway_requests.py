"""Requests of a gateway's clients: each gets its own answers, with its own ids, in their place
among the messages."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import attach, shm
from ringcast.broker.gateway.access import AccessRules
from ringcast.broker.worker.wire import Record, RecordType, encode, records
from ringcast.shm import mpsc
from tests.conftest import eventually

from .askers import Rpc, rpc_config
from .gateway import Client, client_of
from .gateways import serving
from .manager import running
from .manager import serving as server_of

RECORDS: Final = "Sec-WebSocket-Protocol: ringcast.1\r\n"


@contextlib.contextmanager
def asking(name: str, folder: Path, **options: Any) -> Iterator[tuple[Rpc, Path]]:
    """A server that answers when it is told to, a manager, and a gateway: where it listens."""
    rpc = Rpc()
    with server_of(rpc) as server, running(rpc_config(name, server.url)):
        rpc.wait_for_connections(1)
        with serving(name, f"unix:{folder}/g", **options):
            yield rpc, folder / "g"


def rpc_request(number: Any, params: Any = ()) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "echo", "params": params})


def result(number: Any, value: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": value}


def parsed(client: Client, count: int) -> list[Any]:
    return [json.loads(message) for message in client.messages(count)]


def test_each_gets_its_own_answer(name: str, tmp_path: Path) -> None:
    """All number their requests alike."""
    with asking(name, tmp_path) as (rpc, path), attach(name) as feed:
        ids = (7, "7", 7, -1)
        clients = [client_of(path) for _ in ids]
        for number, (client, own) in enumerate(zip(clients, ids, strict=True)):
            client.send(rpc_request(own, [number]))
        asked = rpc.requests(len(ids))
        assert len({str(request["id"]) for request in asked}) == len(ids)
        rpc.notice(0)
        for request in random.Random(1).sample(asked, len(asked)):
            rpc.answer(request)
        rpc.notice(1)
        for number, (client, own) in enumerate(zip(clients, ids, strict=True)):
            first, mine, last = parsed(client, 3)
            assert (first["n"], last["n"]) == (0, 1)
            assert mine == result(own, [number])
            assert type(mine["id"]) is type(own)
        assert [json.loads(bytes(m))["n"] for m in feed.read_available()] == [0, 1]
        for client in clients:
            client.close()


def test_answers_stand_in_their_place(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, path), client_of(path) as client:
        dice = random.Random(3)
        for number in range(50):
            client.send(rpc_request(number, number))
        said: list[Any] = []
        for request in rpc.requests(50):
            for _ in range(dice.randrange(4)):
                rpc.notice(len(said))
                said.append(len(said))
            rpc.answer(request)
            said.append(result(request["params"], request["params"]))
        rpc.notice(len(said))
        got = [each.get("n", each) for each in parsed(client, len(said) + 1)]
        assert got == [*said, len(said)]


def test_a_late_client_gets_its_answer_in_its_place(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, path), attach(name) as feed:
        for number in range(20):
            rpc.notice(number)
        for _ in range(20):
            assert feed.read(10) is not None
        with client_of(path, "/?start=oldest") as client:
            client.send(rpc_request(1))
            rpc.answer(*rpc.requests(1), result=1)
            rpc.notice(20)
            got = [each.get("n", each) for each in parsed(client, 22)]
            assert got == [*range(20), result(1, 1), 20]


def test_all_later_messages_with_the_id_go_the_same_way(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, path), client_of(path) as other:
        with client_of(path) as client:
            client.send(rpc_request("sub"))
            (request,) = rpc.requests(1)
            for number in range(5):
                rpc.answer(request, result=number)
            assert parsed(client, 5) == [result("sub", number) for number in range(5)]
        eventually(lambda: not mpsc.status(name).senders, "the client is gone")
        rpc.answer(request, result="late")
        other.send(rpc_request("sub"))
        rpc.answer(rpc.requests(2)[1], result="mine")
        assert parsed(other, 1) == [result("sub", "mine")]


def test_what_is_no_request_goes_up_as_it_is(name: str, tmp_path: Path) -> None:
    texts = [
        '{"op":"x"}',
        "[1]",
        "ping",
        '{"id":null}',
        '{"id":1.5}',
        '{"id":{}}',
        '{"id":1,"id":2}',
    ]
    with asking(name, tmp_path) as (rpc, path), client_of(path) as client:
        client.send(*texts)
        eventually(lambda: len(rpc.heard) >= len(texts), "all have come")
        assert rpc.heard == texts


def test_one_that_chose_topics_gets_its_answers(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, path), client_of(path, "/?topics=mine") as client:
        client.send(rpc_request(1))
        rpc.notice(0, "other")
        rpc.notice(1, "mine")
        rpc.answer(*rpc.requests(1), result=1)
        rpc.notice(2, "other")
        rpc.notice(3, "mine")
        got = [each.get("n", each) for each in parsed(client, 3)]
        assert got == [1, result(1, 1), 3]


def test_a_member_of_a_group_gets_its_answers(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, path), client_of(path, "/?group=work") as client:
        client.send(rpc_request(1))
        rpc.answer(*rpc.requests(1), result=1)
        rpc.notice(0)
        got = sorted(parsed(client, 2), key=str)
        assert got == sorted([result(1, 1), {"topic": "notice", "n": 0}], key=str)


def test_read_only_clients_ask_nothing(name: str, tmp_path: Path) -> None:
    with (
        asking(name, tmp_path, rules=AccessRules(read_only=True)) as (rpc, path),
        client_of(path) as client,
    ):
        client.send(rpc_request(1))
        assert client.closed().code == 1008
        assert rpc.heard == []


@pytest.mark.parametrize("own", [True, False], ids=["with-id", "without"])
def test_requests_as_records(name: str, tmp_path: Path, own: bool) -> None:
    with asking(name, tmp_path) as (rpc, path), client_of(path, "/", RECORDS) as client:
        payload = rpc_request(5) if own else '{"method":"echo"}'
        for key in (1, 2):
            record = Record(RecordType.REQUEST, payload.encode(), kind=shm.Kind.TEXT, key=key)
            client.send(encode(record))
        first, second = rpc.requests(2)
        rpc.answer(second, result="b")
        rpc.answer(first, result="a")
        answers = until(client, RecordType.ANSWER, 2)
        assert [(each.key, json.loads(bytes(each.payload))["result"]) for each in answers] == [
            (2, "b"),
            (1, "a"),
        ]
        if own:
            assert {json.loads(bytes(each.payload))["id"] for each in answers} == {5}
        client.send(encode(Record(RecordType.END_REQUEST, key=2)))
        client.send(encode(Record(RecordType.REQUEST, b"no request", key=3)))
        (refused,) = until(client, RecordType.REFUSED, 1)
        assert refused.key == 3
        assert b"JSON" in bytes(refused.payload)
        rpc.answer(second, result="nobody's")
        rpc.answer(first, result="c")
        (last,) = until(client, RecordType.ANSWER, 1)
        assert last.key == 1


def until(client: Client, kind: RecordType, count: int) -> list[Record]:
    """The next records of a type."""
    found: list[Record] = []
    while len(found) < count:
        message = client.message()
        assert isinstance(message, bytes)
        found += [record for record in records(message) if record.type == kind]
    return found
