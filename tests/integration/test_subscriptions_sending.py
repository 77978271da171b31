"""What else goes to the server beside requests for topics: first messages, workers' messages, signs
of life. In which order, and at which rate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest

from ringcast import Phase, attach
from tests.conftest import DEADLINE, eventually

from .manager import listen, running, url_of
from .subscribers import TOPICS, config_of, venue_file
from .venues import VenueServer

NOT_KNOWN: Final = "not understood"
"""How the server's complaint of what is no request begins."""


def ops(server: VenueServer, connection: int) -> list[str]:
    """What came on a connection: operations, and what is no request itself."""
    said = [each for each in list(server.log) if each.connection == connection]
    return [each.text if each.op == "other" else each.op for each in said]


def complaints(server: VenueServer) -> list[str]:
    """What the server complains of, but for messages that are no requests."""
    return [each for each in server.violations if not each.startswith(NOT_KNOWN)]


def test_first_messages_then_subscriptions_then_what_was_held(name: str) -> None:
    """One topic in a message, so there are many."""
    topics = TOPICS["bitstamp"]
    first = ["hello", "and more"]
    listener = listen()
    config = config_of(
        url_of(listener),
        name,
        "bitstamp",
        initial_messages=first,
        offline_sends="buffer",
        reconnect_delay=0.2,
        reconnect_delay_max=0.2,
    )
    with (
        running(config),
        attach(name, topics=topics[:3]) as one,
        attach(name, topics=topics[2:]) as another,
    ):
        for number in range(3):
            one.send(f"one {number}")
            another.send(f"another {number}")
        with VenueServer("bitstamp", listener=listener) as server:
            held = [f"{who} {number}" for number in range(3) for who in ("one", "another")]
            expected = [*first, *["subscribe"] * len(topics), *held]
            eventually(lambda: len(ops(server, 1)) == len(expected), "all has come")
            assert ops(server, 1) == expected
            server.wait_for(*topics)

            server.drop()
            eventually(lambda: one.state.phase is not Phase.OPEN, "the connection is gone")
            ticket = one.send("held")
            another.subscribe(topics[0], wait=False)
            one.flush(ticket, DEADLINE)
            server.wait_for(*topics)
            assert ops(server, 2) == [*first, *["subscribe"] * len(topics), "held"]
            assert not complaints(server)


def test_sending_does_not_delay_wishes_and_takes_its_place_in_the_rate(name: str) -> None:
    topics = TOPICS["binance"]
    junk = json.dumps({"id": 7, "method": "LIST_SUBSCRIPTIONS"})
    with (
        VenueServer("binance") as server,
        running(config_of(server.url, name, "binance")),
        attach(name, topics=[]) as sender,
        attach(name, topics=[]) as worker,
    ):
        tickets = [sender.try_send(junk) for _ in range(50)]
        assert tickets[0] is not None
        before = 0
        for topic in topics[:3]:
            before = len(server.log)
            worker.subscribe(topic, timeout=DEADLINE)
            at = next(i for i, said in enumerate(server.log) if topic in said.names)
            assert at <= before + 2, ops(server, 1)
        eventually(lambda: junk in ops(server, 1), "what was sent has its turn, too")
        assert not complaints(server)


INTERVALS: Final = {
    "okx": "every = 20",
    "bybit": "every = 20",
    "kraken": "every = 30",
    "bitstamp": "every = 30",
    "bitfinex": "every = 30",
}


@pytest.mark.parametrize("venue", INTERVALS)
def test_signs_of_life(venue: str, name: str, tmp_path: Path) -> None:
    topic, other = TOPICS[venue][:2]
    file = venue_file(tmp_path, venue, (INTERVALS[venue], "every = 0.05"))
    with VenueServer(venue) as server, running(config_of(server.url, name, file)):
        with attach(name, topics=[topic], timeout=DEADLINE) as feed:
            eventually(lambda: len(server.log) >= 5, "signs of life")
            server.beat()
            server.publish(topic)
            while b'"n":1' not in bytes(message := feed.read(DEADLINE) or b"") and not re.search(
                rb",1\]$", bytes(message)
            ):
                assert message
            server.drop()
            eventually(lambda: len(ops(server, 2)) >= 4, "on the next connection, too")
            feed.subscribe(other, timeout=DEADLINE)
        assert not server.violations


def test_what_the_server_wants_to_be_answered(name: str) -> None:
    (topic,) = TOPICS["deribit"][:1]
    with (
        VenueServer("deribit") as server,
        running(config_of(server.url, name, "deribit")),
        attach(name, topics=[topic], timeout=DEADLINE) as feed,
    ):
        for _ in range(3):
            server.beat()
        eventually(lambda: server.owed == 0, "each was answered")
        server.publish(topic)
        message = feed.read(DEADLINE)
        assert message is not None
        assert message.topic_name == topic
        assert not server.violations
