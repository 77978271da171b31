"""attach("unix:/PATH"): requests, whose answers come to who asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringcast import Answer, shm
from ringcast.broker.worker.socket_feed import SocketFeed
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import Background

from .askers import Rpc, rpc_config
from .gateways import Command, attach, serving
from .manager import quick, running
from .manager import serving as server


@contextlib.contextmanager
def asking(name: str, folder: Path) -> Iterator[tuple[Rpc, str]]:
    """A server that answers when it is told to, a manager, and a gateway; what attaches to it."""
    rpc = Rpc()
    with server(rpc) as there, running(rpc_config(name, there.url)):
        rpc.wait_for_connections(1)
        with serving(name, f"unix:{folder}/g") as url:
            yield rpc, url


def rpc_request(number: Any, params: Any = ()) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "echo", "params": params}


def ask(feed: SocketFeed, number: Any, params: Any = ()) -> Background:
    return Background(lambda: feed.request(rpc_request(number, params), timeout=DEADLINE))


def test_a_request_and_its_answer(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, url), attach(url) as feed, attach(url) as other:
        asked = ask(feed, "mine", ["p"])
        (sent,) = rpc.requests(1)
        assert sent["id"] != "mine"
        rpc.notice(0)
        rpc.answer(sent)
        answer = asked.result()
        assert isinstance(answer, Answer)
        assert answer.json() == {"jsonrpc": "2.0", "id": "mine", "result": ["p"]}
        assert answer.kind is shm.Kind.TEXT
        assert answer.time_ns > 0
        rpc.notice(1)
        for each in (feed, other):
            got = [each.read(DEADLINE) for _ in range(2)]
            assert [json.loads(bytes(m))["n"] for m in got if m is not None] == [0, 1]
            assert got[1] is not None
            assert answer.sequence < got[1].sequence


def test_threads_and_tasks_ask_at_once(name: str, tmp_path: Path) -> None:
    async def ask_all(feed: SocketFeed) -> list[Any]:
        answers = await asyncio.gather(
            *(feed.arequest(rpc_request(1, number), timeout=DEADLINE) for number in range(20))
        )
        return [answer.json()["result"] for answer in answers]

    with asking(name, tmp_path) as (rpc, url), attach(url) as feed:
        threads = [ask(feed, 1, number) for number in range(8)]
        tasks = Background(lambda: asyncio.run(ask_all(feed)))
        for request in reversed(rpc.requests(28)):
            rpc.answer(request)
        assert [asked.result().json()["result"] for asked in threads] == [*range(8)]
        assert tasks.result() == [*range(20)]


def test_following(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, url), attach(url) as feed:
        with feed.follow(rpc_request("s"), timeout=DEADLINE) as following:
            (request,) = rpc.requests(1)
            for number in range(3):
                rpc.answer(request, result=number)
            assert [following.read(DEADLINE).json()["result"] for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
            following.send({"id": "s", "op": "complete"})
            feed.flush(timeout=DEADLINE)
            assert rpc.requests(2)[1] == {"id": request["id"], "op": "complete"}
            assert following.read(0) is None
        rpc.answer(request, result="late")
        rpc.notice(7)
        message = feed.read(DEADLINE)
        assert message is not None
        assert json.loads(bytes(message))["n"] == 7
        with pytest.raises(shm.RingClosed):
            following.read(0)


def test_following_in_tasks(name: str, tmp_path: Path) -> None:
    async def take(feed: SocketFeed) -> list[Any]:
        found: list[Any] = []
        with await feed.afollow(rpc_request(1), timeout=DEADLINE) as following:
            async for answer in following:
                found.append(answer.json()["result"])
                if len(found) == 3:
                    return found
        return found

    with asking(name, tmp_path) as (rpc, url), attach(url) as feed:
        taken = Background(lambda: asyncio.run(take(feed)))
        (request,) = rpc.requests(1)
        for number in range(3):
            rpc.answer(request, result=number)
        assert taken.result() == [0, 1, 2]


def test_no_answer_in_time(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, url), attach(url) as feed:
        with pytest.raises(TimeoutError, match="no answer within"):
            feed.request(rpc_request(1), timeout=0.05)
        (request,) = rpc.requests(1)
        asked = ask(feed, 1)
        rpc.answer(rpc.requests(2)[1], result="mine")
        assert asked.result().json()["result"] == "mine"
        rpc.answer(request, result="late")
        rpc.notice(1)
        assert feed.read(DEADLINE) is not None


def test_what_is_no_request(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (_rpc, url), attach(url) as feed:
        with pytest.raises(shm.SendRejected, match="JSON"):
            feed.request("no request", timeout=DEADLINE)
        with pytest.raises(shm.MessageTooLarge):
            feed.request({"id": "x" * (feed.max_message + 1)})


def test_a_manager_that_knows_no_ids(name: str, tmp_path: Path) -> None:
    rpc = Rpc()
    with (
        server(rpc) as there,
        running(quick(name, there.url)),
        serving(name, f"unix:{tmp_path}/g") as url,
        attach(url) as feed,
        pytest.raises(shm.SendRejected, match="request_id"),
    ):
        feed.request(rpc_request(1), timeout=DEADLINE)


def test_a_gateway_that_dies(name: str, tmp_path: Path) -> None:
    rpc = Rpc()
    path = f"unix:{tmp_path}/g"
    with server(rpc) as there, running(rpc_config(name, there.url)):
        gateway = Command(name, path)
        with attach(path) as feed:
            asked = ask(feed, 1)
            following = feed.follow(rpc_request(2), timeout=DEADLINE)
            first = rpc.requests(2)
            gateway.kill()
            again = Command(name, path)
            try:
                with pytest.raises(shm.SendUnconfirmed):
                    asked.result()
                with pytest.raises(shm.SendUnconfirmed):
                    following.read(DEADLINE)
                asked = ask(feed, 1)
                request = rpc.requests(3)[2]
                for old in first:
                    rpc.answer(old, result="nobody's")
                rpc.answer(request, result="mine")
                assert asked.result().json()["result"] == "mine"
                eventually(lambda: feed.state.answers_dropped == 2, "the others are dropped")
            finally:
                again.kill()


def test_a_member_of_a_group_asks(name: str, tmp_path: Path) -> None:
    with asking(name, tmp_path) as (rpc, url), attach(url, group="work") as member:
        asked = ask(member, 1)
        (request,) = rpc.requests(1)
        rpc.notice(5)
        rpc.answer(request, result="mine")
        assert asked.result().json()["result"] == "mine"
        message = member.read(DEADLINE)
        assert message is not None
        assert json.loads(bytes(message))["n"] == 5
