"""Pauses between attempts to connect."""

from __future__ import annotations

from ringcast import Config
from ringcast.broker.backoff import Backoff


def backoff_of(config: Config) -> Backoff:
    """As a manager makes it."""
    return Backoff(config.reconnect_delay, config.reconnect_delay_max, config.reconnect_reset_after)


def test_pauses_grow_with_full_jitter_up_to_their_bound() -> None:
    config = Config(name="x", url="ws://x/", reconnect_delay=1.0, reconnect_delay_max=10.0)
    rounds = [backoff_of(config) for _ in range(300)]
    for bound in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        pauses = [backoff.pause(None) for backoff in rounds]
        assert 0 <= min(pauses) < bound * 0.1
        assert bound * 0.9 < max(pauses) <= bound
        assert bound * 0.3 < sum(pauses) / len(pauses) < bound * 0.7  # evenly: 12 sigma
    assert {backoff.attempts for backoff in rounds} == {6}


def test_pauses_start_anew_after_a_stable_connection_only() -> None:
    config = Config(name="x", url="ws://x/", reconnect_reset_after=60.0)
    backoff = backoff_of(config)
    for _ in range(2000):  # a long outage: the doubling stays finite
        assert 0 <= backoff.pause(None) <= config.reconnect_delay_max
    backoff.connected_for(59.0)
    assert backoff.attempts == 2000
    backoff.connected_for(60.0)
    assert backoff.attempts == 0
    assert backoff.pause(None) <= config.reconnect_delay


def test_a_pause_is_at_least_what_the_server_asked_for() -> None:
    backoff = backoff_of(Config(name="x", url="ws://x/"))
    assert all(backoff.pause(100.0) == 100.0 for _ in range(10))
