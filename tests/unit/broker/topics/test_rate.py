"""The token bucket, by a clock that the test turns."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from ringcast.broker.topics.rate import TokenBucket


def test_without_a_rate_there_is_no_limit() -> None:
    bucket = TokenBucket(None, 1)
    bucket.spend(1_000_000, 0.0)
    assert bucket.whole_tokens(0.0) == sys.maxsize
    assert bucket.ready_in(0.0) == 0.0


def test_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(4.0, 3)
    assert bucket.whole_tokens(0.0) == 3
    bucket.spend(3, 0.0)
    assert bucket.whole_tokens(0.0) == 0
    assert bucket.ready_in(0.0) == 0.25
    assert bucket.whole_tokens(0.25) == 1
    assert bucket.ready_in(0.25, 2) == 0.25
    assert bucket.whole_tokens(100.0) == 3


def test_what_could_not_wait_is_paid_for_later() -> None:
    bucket = TokenBucket(1.0, 2)
    bucket.spend(3, 0.0)
    assert bucket.ready_in(0.0) == 2.0
    bucket.spend(1_000, 0.0)
    assert bucket.ready_in(0.0) == 3.0  # but not for ever


def test_a_clock_that_stands_or_goes_back_fills_nothing() -> None:
    bucket = TokenBucket(1.0, 1)
    bucket.spend(1, 10.0)
    assert bucket.whole_tokens(9.0) == 0
    assert bucket.whole_tokens(10.0) == 0


@given(
    st.floats(0.01, 1000.0),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 5)), max_size=30),
)
def test_when_it_says_it_is_ready_it_is(
    rate: float, burst: int, spendings: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate, burst)
    now = 1e6
    for pause, count in spendings:
        now += pause
        bucket.spend(count, now)
        ready = now + bucket.ready_in(now)
        assert TokenBucket.whole_tokens(bucket, ready) >= 1
        now = ready
