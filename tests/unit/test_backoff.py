"""Backoff before a retry, and giving up."""

from hypothesis import given
from hypothesis import strategies as st

from worker.decisions.backoff import backoff_seconds, given_up


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_jittered_and_bounded(attempts: int, jitter: float) -> None:
    assert 0 <= backoff_seconds(attempts, jitter) <= 8
    assert backoff_seconds(attempts, jitter, max_seconds=1) <= 1
    assert backoff_seconds(attempts, 0) == 0


def test_giving_up_takes_attempts_and_time() -> None:
    assert not given_up(7, 1_000)
    assert not given_up(1_000, 29.9)
    assert given_up(8, 30)
