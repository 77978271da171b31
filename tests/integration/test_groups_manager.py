"""Work groups behind a manager: slow members and groups, what is announced, topics, the end."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from typer.testing import CliRunner, Result

from ringcast import GroupFeed, attach, shm
from ringcast.broker.cli import app
from ringcast.shm import group
from tests.conftest import DEADLINE, Processes, eventually

from .flood import SMALL, Flood, number_of
from .manager import describe, listen, quick, running, sending, serving, url_of, watching
from .subscribers import config_of
from .venues import VenueServer

LIMIT = 0.2
"""Seconds of the waits that a test lets run out."""
LIMITS = {"demote_after": LIMIT, "evict_after": LIMIT, **SMALL}


def stop_with_one(name: str, balance: group.Balance, pipe: Connection) -> None:
    """A process: a member that is stopped by a signal while it has a message in hand."""
    with attach(name, label="stopped", group="g", balance=balance, auto_ack=False) as feed:
        pipe.send_bytes(b"attached")
        message = feed.read(DEADLINE)
        assert message is not None
        pipe.send(message.sequence)
        os.kill(os.getpid(), signal.SIGSTOP)
        for _ in range(2):
            try:
                message.ack()
            except shm.Evicted:
                pipe.send_bytes(b"evicted")


def take(feed: GroupFeed, upto: int) -> list[tuple[int, int]]:
    """Numbers and deliveries of messages, until number `upto` was there."""
    taken: list[tuple[int, int]] = []
    while not taken or taken[-1][0] != upto:
        message = feed.read(DEADLINE)
        assert message is not None
        taken.append((number_of(describe(message)), message.deliveries))
    return taken


@pytest.mark.parametrize("balance", ["any", "key"])
def test_a_stopped_member_alone_is_evicted_and_its_work_goes_to_others(
    balance: group.Balance, name: str, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """At flood: the ring fills behind the held message; then the bounds apply to that member."""
    flood = Flood()
    listener = listen()
    with running(quick(name, url_of(listener), **LIMITS)):
        ours, theirs = Pipe()
        worker = processes.start(stop_with_one, name, balance, theirs)
        assert ours.poll(DEADLINE)
        assert ours.recv_bytes() == b"attached"
        with serving(flood, listener=listener):
            assert ours.poll(DEADLINE)
            held = ours.recv()
            with attach(name, group="g", balance=balance) as feed:
                first = feed.read(DEADLINE)
                deliveries = {}
                while first is not None and held not in deliveries:
                    deliveries[first.sequence] = first.deliveries
                    first = feed.read(DEADLINE)
                assert deliveries[held] == 2
                assert feed.lost == 0
                take(feed, number_of(describe(first)) + 100 if first is not None else 0)
                status = shm.status(name)
                assert [r.state for r in status.readers if r.label == "stopped"] == ["evicted"]
                assert status.groups[0].members == (feed.slot,)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGCONT)
            assert ours.poll(DEADLINE)
            assert ours.recv_bytes() == b"evicted"
            processes.join(worker)
    assert "label='stopped'" in caplog.text
    assert "group demoted" not in caplog.text


def test_a_group_without_members_that_fills_the_ring_is_demoted_and_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    flood = Flood()
    listener = listen()
    with running(quick(name, url_of(listener), **LIMITS)):
        attach(name, group="g").close()
        with serving(flood, listener=listener):
            eventually(lambda: group.list_groups(name)[0].state == "demoted", "it is demoted")
            held = flood.sent
            eventually(lambda: flood.sent > held + 2 * SMALL["slots"], "the server goes on")
            with attach(name, group="g") as feed:
                message = feed.read(DEADLINE)
                assert message is not None
                assert message.gap == feed.lost > 0
                assert group.list_groups(name)[0].state == "active"
                follower = feed.read(DEADLINE)
                assert follower is not None
                assert follower.gap == 0
    assert "group demoted" in caplog.text


def test_what_is_delivered_too_often_is_set_aside_and_announced(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(sending("good", "bad", "fine")) as server:
        config = quick(name, server.url)
        with watching(config) as watch:
            done = []
            with attach(name, group="g", start="oldest", max_deliveries=3) as feed:
                while group.list_groups(name)[0].set_aside == 0:
                    message = feed.read(0.01)
                    if message is None:
                        continue
                    if bytes(message) == b"bad":
                        assert message.deliveries <= 3
                        message.nack()
                    else:
                        done.append(bytes(message))
            assert done == [b"good", b"fine"]
            watch.until("set aside")
            event = watch.event("set aside")
            assert (event["group"], event["deliveries"]) == ("g", 3)
            assert event["pids"] == [os.getpid()] * 3
            (record,) = group.list_groups(name)[0].newest_set_aside
            assert record.sequence == event["sequence"]
    assert "set aside" in caplog.text


def test_topics_of_a_group_are_wanted_upstream_as_long_as_it_exists(name: str) -> None:
    """With and without members, and not any more when it is removed."""
    with (
        VenueServer("binance") as server,
        running(config_of(server.url, name, "binance")),
    ):
        topic = "btcusdt@trade"
        with attach(name, group="g", balance="key", topics=[topic], timeout=DEADLINE) as feed:
            server.publish(topic)
            message = feed.read(DEADLINE)
            assert message is not None
            assert message.topic_name == topic
            with pytest.raises(shm.RingError, match="fixed"):
                feed.subscribe("ethusdt@trade")
        server.publish(topic, 5)
        eventually(lambda: group.list_groups(name)[0].lag == 6, "its messages come still")
        assert server.subscribed == {topic}
        group.remove(name, "g")
        eventually(
            lambda: all(t.wanted_by == 0 and t.state == 0 for t in shm.list_topics(name)),
            "it is unsubscribed",
        )
        eventually(lambda: not server.subscribed, "upstream, too")


def test_an_orderly_end_lets_members_finish(name: str) -> None:
    """The manager waits for a member at work, up to drain_timeout."""
    texts = [f"m{n}" for n in range(50)]
    with serving(sending(*texts)) as server:
        config = quick(name, server.url, drain_timeout=DEADLINE)
        with watching(config) as watch:
            feed = attach(name, group="g", start="oldest")
            watch.until("text m49")
            watch.manager.stop()
            got = [message.text() for message in feed]
            watch.rest()
            feed.close()
    assert got == texts


def test_arguments_of_attach(name: str) -> None:
    with serving(sending()) as server, running(quick(name, server.url)):
        with pytest.raises(ValueError, match="name it"):
            attach(name, balance="key")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="no policy"):
            attach(name, group="g", policy="lossy")  # type: ignore[call-overload]
        with attach(name, group="g", balance="key") as feed:
            assert (feed.group, feed.balance, feed.policy) == ("g", "key", "group")
            assert feed.state.phase
            with pytest.raises(ValueError, match="balance 'key', not 'any'"):
                attach(name, group="g")


# ---- the command -------------------------------------------------------------------------------


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_the_command_lists_and_removes_groups(name: str) -> None:
    with serving(sending("a", "b")) as server, running(quick(name, server.url)):
        found = command("group", name)
        assert "no work groups" in found.output
        with attach(name, group="g", start="oldest", auto_ack=False, label="me") as feed:
            message = feed.read(DEADLINE)
            (listed,) = json.loads(command("group", name, "--json").stdout)
            assert (listed["name"], listed["balance"], listed["in_flight"]) == ("g", "any", 1)
            assert listed["members"] == [feed.slot]
            inspected = json.loads(command("inspect", name, "--json").stdout)
            assert inspected["groups"][0]["holder"] == feed.slot
            assert inspected["readers"][0]["group"] == "g"
            shown = command("group", name).stdout
            assert "me" in shown
            refused = command("group", name, "g", "--remove")
            assert refused.exit_code == 1
            assert "living members" in str(refused.exception)
            assert message is not None
            message.ack()
        assert command("group", name, "--remove").exit_code == 2
        assert command("group", name, "h", "--remove").exit_code == 1
        assert command("group", name, "g", "--remove").exit_code == 0
        assert json.loads(command("group", name, "--json").stdout) == []
