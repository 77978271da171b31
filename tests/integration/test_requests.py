"""Requests over a shared connection: each worker gets its own answers, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from ringcast import Answer, Config, Feed, Manager, attach, shm
from tests.conftest import DEADLINE, Processes, eventually
from tests.unit.conftest import Background

from .askers import Rpc, rpc_config
from .manager import kill, running, serving
from .venues import VenueServer

NOTHING: Final = {"jsonrpc": "2.0", "method": "nothing", "params": []}


@contextlib.contextmanager
def asking(name: str, **options: Any) -> Iterator[Rpc]:
    """A server, and a manager that is connected to it."""
    rpc = Rpc()
    with serving(rpc) as server, running(rpc_config(name, server.url, **options)):
        rpc.wait_for_connections(1)
        yield rpc


def request(feed: Feed, number: Any, params: Any = (), **options: Any) -> Background:
    """A request with this id, in a thread of its own; `result` is its answer."""
    payload = {"jsonrpc": "2.0", "id": number, "method": "echo", "params": params}
    return Background(lambda: feed.request(payload, **{"timeout": DEADLINE, **options}))


def texts(feed: Feed) -> list[str]:
    return [message.text() for message in feed.read_available()]


# ---- one worker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 0, -7, 2**60, "a", "", 'é"\\', "x" * 64])
def test_the_answer_has_the_id_of_the_request(number: Any, name: str) -> None:
    with asking(name) as rpc, attach(name) as feed:
        asked = request(feed, number, ["p"])
        (sent,) = rpc.requests(1)
        assert type(sent["id"]) is type(number)
        assert len(str(sent["id"])) == 16
        assert {**sent, "id": number} == {
            "jsonrpc": "2.0",
            "id": number,
            "method": "echo",
            "params": ["p"],
        }
        rpc.answer(sent)
        answer = asked.result()
        assert isinstance(answer, Answer)
        assert answer.json() == {"jsonrpc": "2.0", "id": number, "result": ["p"]}
        assert (bytes(answer).decode(), len(answer)) == (answer.text(), len(answer.payload))
        assert answer.kind is shm.Kind.TEXT
        assert answer.sequence < shm.status(name).sequence
        assert answer.time_ns > 0
        assert (feed.state.answers_dropped, feed.answers_dropped) == (0, 0)


def test_all_but_the_id_stays_byte_for_byte(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed:
        text = '{ "params":[1.0, "\\u00e9"],\t"id" : 5,"x":"é" }'
        asked = Background(lambda: feed.request(text.encode(), timeout=DEADLINE))
        (sent,) = rpc.requests(1)
        assert rpc.heard == [text.replace(" 5", f" {sent['id']}")]
        rpc.say(text.replace(" 5", f' "{sent["id"]}"'))
        assert asked.result().text() == text


def test_a_request_without_an_id_gets_one(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed:
        asked = Background(lambda: feed.request(NOTHING, timeout=DEADLINE))
        (sent,) = rpc.requests(1)
        assert type(sent["id"]) is int
        rpc.answer(sent)
        assert asked.result().json()["id"] == sent["id"]


def test_an_answer_that_is_an_error_is_returned(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed:
        asked = request(feed, 1)
        rpc.answer(rpc.requests(1)[0], error={"code": -32601, "message": "no such method"})
        assert asked.result().json()["error"]["code"] == -32601


def test_reading_goes_on_while_a_request_waits(name: str) -> None:
    """Of one feed, in other threads and after it; by one that chooses, too."""
    with asking(name) as rpc, attach(name) as feed, attach(name, topics=["b"]) as chooser:
        reading = Background(lambda: [feed.read(DEADLINE) for _ in range(2)])
        asked, chosen = request(feed, 1), request(chooser, 1)
        sent, also = rpc.requests(2)
        rpc.notice(1, "a")
        rpc.notice(2, "b")
        assert ['"n": 1' in m.text() for m in reading.result()] == [True, False]
        rpc.answer(sent)
        rpc.notice(3, "b")
        rpc.answer(also)
        rpc.notice(4, "a")
        assert asked.result().json()["id"] == chosen.result().json()["id"] == 1
        eventually(lambda: feed.lag >= 4, "all is published")
        assert [json.loads(text)["n"] for text in texts(feed)] == [3, 4]
        assert [json.loads(text)["n"] for text in texts(chooser)] == [2, 3]
        assert feed.latest("b") is not None


def test_many_requests_of_one_feed_at_once(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed:
        asked = [request(feed, 1, i) for i in range(16)]
        sent = rpc.requests(16)
        assert len({one["id"] for one in sent}) == 16
        for one in reversed(sent):
            rpc.answer(one)
        assert [one.result().json() for one in asked] == [
            {"jsonrpc": "2.0", "id": 1, "result": i} for i in range(16)
        ]
        assert len(shm.status(name).readers) == 2  # one slot is for all answers


def test_messages_that_are_nobodys_answer_come_to_everyone(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed, attach(name, topics=["notice"]) as chooser:
        asked = request(feed, 1)
        (sent,) = rpc.requests(1)
        others = [
            {"id": 1, "topic": "notice"},
            {"id": "x", "topic": "notice"},
            {"id": sent["id"] ^ 1, "topic": "notice"},
            {"data": {"id": sent["id"]}, "topic": "notice"},
        ]
        rpc.say(*others)
        rpc.answer(sent)
        asked.result()
        assert [json.loads(text) for text in texts(feed)] == others
        assert [json.loads(text) for text in texts(chooser)] == others


# ---- several workers -----------------------------------------------------------------------------


def ask_many(name: str, worker: int, count: int) -> None:
    """A worker's process: requests with the same ids as everybody's, several at once; it reads what
    comes meanwhile."""
    with attach(name, label=f"worker {worker}") as feed:

        def ask(thread: int) -> None:
            for i in range(count):
                number: int | str = i if thread % 2 else f"r{i}"
                params = [worker, thread, i]
                answer = feed.request(
                    {"id": number, "method": "echo", "params": params}, timeout=DEADLINE
                ).json()
                assert answer == {"jsonrpc": "2.0", "id": number, "result": params}

        threads = [Background(lambda t=t: ask(t)) for t in range(3)]  # type: ignore[misc]
        for thread in threads:
            thread.result()
        seen = texts(feed)
        assert all("result" not in text for text in seen), seen
        assert feed.answers_dropped == 0


def test_four_workers_with_clashing_ids(name: str, processes: Processes) -> None:
    count, workers, threads = 30, 4, 3
    with asking(name) as rpc, attach(name) as listener:
        for worker in range(workers):
            processes.start(ask_many, name, worker, count, method="spawn")
        answered = 0
        while answered < count * workers * threads:
            sent = rpc.requests(answered + 1)
            sent = [json.loads(text) for text in rpc.heard[answered:]]
            answered += len(sent)
            for one in reversed(sent):
                rpc.answer(one)
                rpc.notice(answered)
        processes.join()
        assert len({json.loads(text)["id"] for text in rpc.heard}) == answered
        seen = texts(listener)
        assert seen
        assert all("result" not in text for text in seen)
        assert listener.state.answers_dropped == 0


def ask_once(name: str, number: int) -> None:
    with attach(name) as feed:
        feed.request({"id": number, "method": "echo", "params": []}, timeout=DEADLINE)


def test_the_next_in_the_slot_does_not_get_a_dead_workers_answer(
    name: str, processes: Processes
) -> None:
    with asking(name) as rpc, attach(name) as watcher:
        victim = processes.start(ask_once, name, 1, method="spawn")
        (sent,) = rpc.requests(1)
        before = {r.slot: r.label for r in shm.status(name).readers if r.slot != watcher.slot}
        assert len(before) == 2
        processes.kill(victim)
        with contextlib.ExitStack() as stack:
            heirs = [stack.enter_context(attach(name, start="oldest")) for _ in range(2)]
            assert {heir.slot for heir in heirs} == {*before}
            asked = [request(heir, 1) for heir in heirs]
            for one in rpc.requests(3)[1:]:
                rpc.answer(sent)
                rpc.answer(one)
            for each in asked:
                assert each.result().json() == {"jsonrpc": "2.0", "id": 1, "result": []}
            rpc.notice(1)
            for feed in (watcher, *heirs):
                message = feed.read(DEADLINE)
                assert message is not None
                assert '"n": 1' in message.text()
                assert feed.answers_dropped == 0
            eventually(lambda: watcher.state.answers_dropped == 2, "they are counted")


def test_an_answer_after_the_timeout_is_dropped_and_counted(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed, attach(name) as other:
        with pytest.raises(TimeoutError, match=r"no answer within .* s; one that comes"):
            feed.request({"id": 1, "params": []}, timeout=0.01)
        asked = request(feed, 1, ["next"])
        late, sent = rpc.requests(2)
        rpc.answer(late)
        rpc.answer(sent)
        assert asked.result().json()["result"] == ["next"]
        assert (feed.answers_dropped, other.answers_dropped) == (1, 0)
        feed.close()
        rpc.answer(late)
        eventually(lambda: other.state.answers_dropped == 1, "it is counted")
        assert texts(other) == []


# ---- the manager ---------------------------------------------------------------------------------


def test_a_manager_that_resumes_routes_what_it_has_not_seen(name: str) -> None:
    rpc = Rpc()
    with serving(rpc) as server:
        config = rpc_config(name, server.url)
        with Manager(config) as first, attach(name) as feed, attach(name) as other:
            asked, also = request(feed, 1, ["a"]), request(other, 1, ["b"])
            sent = rpc.requests(2)
            kill(first)
            with running(config):
                rpc.wait_for_connections(2)
                for one in sent:
                    rpc.answer(one)
                assert asked.result().json()["result"] == ["a"]
                assert also.result().json()["result"] == ["b"]
                eventually(lambda: feed.state.epoch == 2, "another manager")
                assert texts(feed) == texts(other) == []


def test_requests_wait_for_a_manager_that_is_gone(name: str) -> None:
    rpc = Rpc()
    with serving(rpc) as server:
        config = rpc_config(name, server.url)
        with Manager(config) as first, attach(name) as feed:
            rpc.wait_for_connections(1)
            kill(first)
            asked = request(feed, 1, ["later"])
            with running(config):
                rpc.answer(rpc.requests(1)[0])
                assert asked.result().json()["result"] == ["later"]


def test_the_end_of_the_ring_ends_requests(name: str) -> None:
    rpc = Rpc()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(rpc))
        feed = None
        with running(rpc_config(name, server.url, drain_timeout=0)):
            feed = stack.enter_context(attach(name))
            asked = request(feed, 1)
            rpc.requests(1)
        with pytest.raises(shm.RingClosed):
            asked.result()
        with pytest.raises(shm.RingClosed):
            feed.request(NOTHING)


def test_closing_a_feed_ends_its_requests(name: str) -> None:
    with asking(name) as rpc, attach(name) as other:
        feed = attach(name)
        asked = request(feed, 1)
        rpc.requests(1)
        feed.close()
        with pytest.raises(shm.RingClosed):
            asked.result()
        with pytest.raises(shm.RingClosed):
            feed.request(NOTHING)
        eventually(lambda: len(shm.status(name).readers) == 1, "its slots are free")
        eventually(lambda: not listeners(), "its thread has ended")
        assert not other.closed


def test_a_feed_that_is_given_up_leaves_nothing(name: str) -> None:
    with asking(name) as rpc:
        feed = attach(name)
        asked = request(feed, 1)
        rpc.answer(rpc.requests(1)[0])
        asked.result()
        assert listeners()
        del feed, asked
        eventually(lambda: not listeners(), "its thread has ended")
        eventually(lambda: not shm.status(name).readers, "its slots are free")


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ringcast-answers"]


# ---- what is refused -----------------------------------------------------------------------------


def test_a_manager_without_request_id_is_not_asked(name: str) -> None:
    rpc = Rpc()
    with (
        serving(rpc) as server,
        running(rpc_config(name, server.url, request_id=None)),
        attach(name) as feed,
    ):
        with pytest.raises(ValueError, match='request_id, such as request_id = "/id"'):
            feed.request(NOTHING)
        assert len(shm.status(name).readers) == 1


@pytest.mark.parametrize("payload", ["ping", "[1]", b"\xff", '{"id":null}', {"id": float("nan")}])
def test_payloads_that_are_no_requests(payload: Any, name: str) -> None:
    with asking(name) as rpc, attach(name) as feed:
        with pytest.raises(ValueError, match=r"JSON|codec|whole number"):
            feed.request(payload)
        with pytest.raises(ValueError, match="timeout is seconds"):
            feed.request(NOTHING, timeout=-1)
        assert rpc.heard == []


def test_a_request_is_rejected_as_a_message_is(name: str) -> None:
    rpc = Rpc()
    config = rpc_config(name, "ws://127.0.0.1:1/", offline_sends="reject")
    with running(config), attach(name) as feed, pytest.raises(shm.SendRejected):
        feed.request(NOTHING)
    assert rpc.heard == []


def test_no_slot_for_answers(name: str) -> None:
    with asking(name, max_readers=1), attach(name) as feed, pytest.raises(shm.TooManyReaders):
        feed.request(NOTHING)


def test_work_groups_ask_too(name: str) -> None:
    with asking(name) as rpc, attach(name, group="workers") as feed:
        asked = Background(lambda: feed.request({"id": 1, "params": ["g"]}, timeout=DEADLINE))
        rpc.answer(rpc.requests(1)[0])
        assert asked.result().json() == {"jsonrpc": "2.0", "id": 1, "result": ["g"]}
        rpc.notice(1)
        message = feed.read(DEADLINE)
        assert message is not None
        assert '"n": 1' in message.text()


# ---- asyncio -------------------------------------------------------------------------------------


def test_asyncio_tasks_ask_at_the_same_time(name: str) -> None:
    async def main(rpc: Rpc, feed: Feed) -> None:
        async with asyncio.timeout(DEADLINE):
            tasks = [
                asyncio.create_task(feed.arequest({"id": 1, "params": i}, timeout=DEADLINE))
                for i in range(8)
            ]
            sent = await asyncio.to_thread(rpc.requests, 8)
            for one in reversed(sent):
                rpc.answer(one)
            answers = [answer.json() for answer in await asyncio.gather(*tasks)]
            assert answers == [{"jsonrpc": "2.0", "id": 1, "result": i} for i in range(8)]
            with pytest.raises(TimeoutError, match="no answer within"):
                await feed.arequest({"id": 1, "params": []}, timeout=0.01)
            cancelled = asyncio.create_task(feed.arequest({"id": 1, "params": []}))
            late = (await asyncio.to_thread(rpc.requests, 10))[8:]
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            for one in late:
                rpc.answer(one)
            last = asyncio.create_task(feed.arequest({"id": 2, "params": []}, timeout=DEADLINE))
            rpc.answer((await asyncio.to_thread(rpc.requests, 11))[10])
            assert (await last).json()["id"] == 2
            assert feed.answers_dropped == 2
            with pytest.raises(ValueError, match="no JSON"):
                await feed.arequest("ping")

    with asking(name) as rpc, attach(name) as feed:
        asyncio.run(main(rpc, feed))


# ---- all that bear one id ------------------------------------------------------------------------

SUBSCRIBE: Final = {"id": "s", "type": "subscribe", "params": []}


def test_all_messages_with_the_id_come_until_it_is_closed(name: str) -> None:
    with asking(name) as rpc, attach(name) as feed, attach(name) as other:
        with feed.follow(SUBSCRIBE) as following, other.follow(SUBSCRIBE) as others:
            sent, also = rpc.requests(2)
            for i in range(5):
                rpc.answer(sent, result=i)
                rpc.answer(also, result=-i)
            got = [next(following) for _ in range(5)]
            assert [one.json() for one in got] == [
                {"jsonrpc": "2.0", "id": "s", "result": i} for i in range(5)
            ]
            assert [next(others).json()["result"] for _ in range(5)] == [0, -1, -2, -3, -4]
            assert [one.gap for one in got] == [0] * 5
            assert following.read(timeout=0) is None
            feed.flush(following.send({"id": "s", "type": "complete"}))
            assert json.loads(eventually(lambda: rpc.heard[2:], "it is ended")[0]) == {
                "id": sent["id"],
                "type": "complete",
            }
        assert list(following) == []
        with pytest.raises(shm.RingClosed):
            following.read()
        with pytest.raises(shm.RingClosed):
            following.send(SUBSCRIBE)
        rpc.answer(sent)
        eventually(lambda: feed.answers_dropped == 1, "what comes later is dropped")
        assert texts(feed) == texts(other) == []


def test_what_nobody_takes_is_bounded_and_counted(name: str) -> None:
    count, kept = 5000, 4096
    with asking(name) as rpc, attach(name) as feed, feed.follow(SUBSCRIBE) as following:
        (sent,) = rpc.requests(1)
        asked = request(feed, 1)
        last = rpc.requests(2)[1]
        for i in range(count):
            rpc.answer(sent, result=i)
        rpc.answer(last)
        asked.result()
        got = [answer for _ in range(kept) if (answer := following.read(0)) is not None]
        assert [one.json()["result"] for one in got] == [*range(count - kept, count)]
        assert [one.gap for one in got] == [count - kept] + [0] * (kept - 1)
        assert following.read(0) is None


def test_following_ends_with_the_feed(name: str) -> None:
    with asking(name) as rpc:
        with attach(name) as feed:
            following = feed.follow(SUBSCRIBE)
            taking = Background(lambda: [one.json() for one in following])
            rpc.answer(rpc.requests(1)[0])
            eventually(lambda: feed.answers_dropped == 0, "it is open")
        assert [one["id"] for one in taking.result()] in ([], ["s"])
        with pytest.raises(shm.RingClosed):
            feed.follow(SUBSCRIBE)


def test_following_with_asyncio(name: str) -> None:
    async def main(rpc: Rpc, feed: Feed) -> None:
        async with asyncio.timeout(DEADLINE):
            following = await feed.afollow(SUBSCRIBE)
            (sent,) = await asyncio.to_thread(rpc.requests, 1)
            taken = []
            for i in range(3):
                taking = asyncio.ensure_future(anext(following))
                await asyncio.sleep(0)
                rpc.answer(sent, result=i)
                taken.append((await taking).json()["result"])
            assert taken == [0, 1, 2]
            ended = asyncio.ensure_future(anext(following, None))
            await asyncio.sleep(0)
            following.close()
            assert await ended is None

    with asking(name) as rpc, attach(name) as feed:
        asyncio.run(main(rpc, feed))


# ---- venues --------------------------------------------------------------------------------------


def test_a_venues_own_answers_are_its_own(name: str) -> None:
    """The manager's requests for topics have ids, too."""
    with (
        VenueServer("deribit") as server,
        running(Config(name=name, venue="deribit", url=server.url)),
        attach(name, topics=["trades.BTC-PERPETUAL.100ms"], timeout=DEADLINE) as feed,
        attach(name) as everything,
    ):
        payload = {"jsonrpc": "2.0", "id": 1, "method": "public/test", "params": {}}
        answer = feed.request(payload, timeout=DEADLINE).json()
        assert (answer["id"], "version" in answer["result"]) == (1, True)
        feed.subscribe("trades.ETH-PERPETUAL.100ms", timeout=DEADLINE)
        server.publish("trades.ETH-PERPETUAL.100ms")
        message = feed.read(DEADLINE)
        assert message is not None
        assert message.topic_name == "trades.ETH-PERPETUAL.100ms"
        eventually(lambda: everything.lag >= 2, "it is published")
        assert not any('"version"' in text for text in texts(everything))
        assert not server.violations


@pytest.mark.parametrize(("venue", "pointer"), [("okx", "id"), ("bybit", "req_id")])
def test_a_venue_that_has_ids_as_text(venue: str, pointer: str, name: str) -> None:
    with (
        VenueServer(venue) as server,
        running(Config(name=name, venue=venue, url=server.url)),
        attach(name) as feed,
    ):
        eventually(lambda: server.living, "it is connected")
        asked = Background(lambda: feed.request({"op": "login"}, timeout=DEADLINE))
        eventually(lambda: [one for one in list(server.log) if "login" in one.text], "it is asked")
        (said,) = [json.loads(one.text) for one in list(server.log) if "login" in one.text]
        assert said[pointer].isdecimal()
        server.say(json.dumps({"op": "login", "event": "login", pointer: said[pointer]}))
        assert asked.result().json()[pointer] == said[pointer]
