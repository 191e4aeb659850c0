"""The token bucket: permits at the limit, and a gentle start for a rate that has not been used lately."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.decisions.token_bucket import TokenBucket


@given(st.floats(1, 1e6), st.lists(st.floats(0, 0.2), min_size=1, max_size=200))
def test_permits_exceed_the_limit_by_a_small_burst_at_most(limit: float, pauses: list[float]) -> None:
    bucket, now, spent = TokenBucket(), 0.0, 0
    bucket.permits(limit, now)
    for pause in pauses:
        now += pause
        permits = bucket.permits(limit, now)
        bucket.spend(permits)
        spent += permits
    assert spent <= limit * now + max(1.0, limit * 0.05) + 1


def spend_all(bucket: TokenBucket, limit: float, since: float, seconds: float) -> int:
    """The number of posts that start if there is always something to post and a tick takes a millisecond."""
    spent = 0
    for tick in range(round(seconds * 1_000)):
        permits = bucket.permits(limit, since + tick / 1_000)
        bucket.spend(permits)
        spent += permits
    return spent


def test_permits_add_up_over_short_ticks() -> None:
    bucket = TokenBucket()
    spend_all(bucket, 300, 0, 2)
    assert 299 <= spend_all(bucket, 300, 2, 1) <= 301


def test_an_unused_rate_is_approached_by_doubling() -> None:
    bucket = TokenBucket()
    quarters = [spend_all(bucket, 16_000, quarter / 4, 0.25) for quarter in range(5)]
    assert quarters[0] < 500
    for earlier, later in itertools.pairwise(quarters[:4]):
        assert later == pytest.approx(2 * earlier, rel=0.1)
    assert quarters[4] == pytest.approx(4_000, rel=0.05)


def test_a_rate_in_use_is_remembered_for_a_while() -> None:
    bucket = TokenBucket()
    spend_all(bucket, 16_000, 0, 2)
    assert spend_all(bucket, 16_000, 3, 0.25) > 3_500
    assert spend_all(bucket, 16_000, 600, 0.25) < 1_000


def test_unused_permits_do_not_raise_the_rate() -> None:
    bucket = TokenBucket()
    for tick in range(10_000):
        bucket.permits(16_000, tick / 1_000)
        bucket.spend(tick % 10 == 0)
    assert spend_all(bucket, 16_000, 10, 0.25) < 500


def test_a_small_limit_is_available_at_once() -> None:
    assert 49 <= spend_all(TokenBucket(), 50, 0, 1) <= 51
