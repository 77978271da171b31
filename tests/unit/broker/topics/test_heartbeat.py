"""Heartbeats and replies of a venue, by a clock that the test turns."""

from __future__ import annotations

from ringcast.broker.topics.heartbeat import REPLIES_MAX, Heartbeats
from ringcast.broker.topics.venue import Heartbeat

from .play import PlayVenue


def test_a_heartbeat_goes_out_in_each_interval_of_a_connection() -> None:
    heartbeats = Heartbeats(PlayVenue(heartbeat=Heartbeat("ping", 20.0)).as_venue())
    assert heartbeats.deadline is None
    assert heartbeats.take(0.0) == []
    heartbeats.connected(100.0)
    assert heartbeats.deadline == 120.0
    assert heartbeats.take(119.9) == []
    assert heartbeats.take(120.5) == ["ping"]
    assert heartbeats.take(120.5) == []
    assert heartbeats.deadline == 140.5


def test_missed_heartbeats_are_not_made_up_for() -> None:
    heartbeats = Heartbeats(PlayVenue(heartbeat=Heartbeat("ping", 20.0)).as_venue())
    heartbeats.connected(0.0)
    assert heartbeats.take(1000.0) == ["ping"]
    assert heartbeats.take(1019.0) == []


def test_nothing_is_sent_without_a_connection() -> None:
    heartbeats = Heartbeats(PlayVenue(heartbeat=Heartbeat("ping", 20.0)).as_venue())
    heartbeats.connected(0.0)
    heartbeats.heard(b'{"test": 1}')
    heartbeats.disconnected()
    assert heartbeats.deadline is None
    assert heartbeats.take(100.0) == []


def test_a_reply_is_there_at_once() -> None:
    heartbeats = Heartbeats(PlayVenue().as_venue())
    heartbeats.connected(0.0)
    assert heartbeats.deadline is None
    heartbeats.heard(b'{"test": 1}')
    heartbeats.heard(b'{"other": 1}')
    assert heartbeats.take(0.0) == ["answer 1"]
    assert heartbeats.take(0.0) == []


def test_a_server_that_asks_and_asks_does_not_fill_the_memory() -> None:
    heartbeats = Heartbeats(PlayVenue().as_venue())
    heartbeats.connected(0.0)
    for _ in range(10 * REPLIES_MAX):
        heartbeats.heard(b'{"test": 1}')
    assert len(heartbeats.take(0.0)) == REPLIES_MAX
