"""What each response means: 410 and 429 are ambiguous, and a 403 on every connection is no connection's own failure."""

import pytest

from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.outcome import History, Outcome, Retry, StatusClass, classify, decide

NOW = 1_000.0


def endpoint_with_success(at: float = NOW) -> EndpointHealth:
    endpoint = EndpointHealth()
    endpoint.succeeded(at)
    return endpoint


def decided(
    status: int,
    *,
    attempts: int = 1,
    counted_attempts: int = 1,
    rejections: int = 1,
    first_attempt_at: float = NOW - 1,
    age: float | None = 3600,
    endpoint: EndpointHealth | None = None,
) -> Outcome | Retry:
    return decide(
        status,
        History(attempts, counted_attempts, rejections, first_attempt_at, age),
        endpoint=endpoint or endpoint_with_success(),
        now=NOW,
        jitter=0.5,
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, StatusClass.DELIVERED),
        (204, StatusClass.DELIVERED),
        (301, StatusClass.REJECTED),
        (400, StatusClass.REJECTED),
        (403, StatusClass.REJECTED),
        (404, StatusClass.REJECTED),
        (408, StatusClass.FAILED),
        (410, StatusClass.GONE),
        (413, StatusClass.TOO_LARGE),
        (429, StatusClass.THROTTLED),
        (500, StatusClass.FAILED),
        (503, StatusClass.FAILED),
        (0, StatusClass.FAILED),
    ],
)
def test_the_status_decides(status: int, expected: StatusClass) -> None:
    assert classify(status) is expected


def test_delivered_and_too_large_are_final() -> None:
    assert decided(200) is Outcome.DELIVERED
    assert decided(413) is Outcome.REJECTED


def test_410_is_trusted_for_an_old_membership_and_without_a_membership() -> None:
    assert decided(410) is Outcome.GONE
    assert decided(410, age=None) is Outcome.GONE


def test_410_for_a_young_membership_is_retried_until_it_is_old() -> None:
    assert decided(410, age=2) == Retry(1.0, counted=False)
    assert isinstance(decided(410, age=9.99), Retry)
    assert decided(410, age=10.01) is Outcome.GONE


def test_clock_skew_does_not_keep_a_membership_young_for_ever() -> None:
    assert isinstance(decided(410, age=-500, first_attempt_at=NOW - 9), Retry)
    assert decided(410, age=-500, first_attempt_at=NOW - 10) is Outcome.GONE


@pytest.mark.parametrize("status", [500, 0])
def test_a_failing_connection_has_eight_attempts_and_thirty_seconds(status: int) -> None:
    long_ago = NOW - 30
    assert isinstance(decided(status, attempts=7, counted_attempts=7, first_attempt_at=long_ago), Retry)
    assert isinstance(decided(status, attempts=8, counted_attempts=8, first_attempt_at=NOW - 29.9), Retry)
    assert decided(status, attempts=8, counted_attempts=8, first_attempt_at=long_ago) is Outcome.UNDELIVERED


@pytest.mark.parametrize("status", [500, 0])
def test_no_attempt_counts_while_no_other_post_succeeds(status: int) -> None:
    before = endpoint_with_success(NOW - 31)
    verdict = decided(status, attempts=99, counted_attempts=99, first_attempt_at=NOW - 30, endpoint=before)
    assert isinstance(verdict, Retry)
    assert not verdict.counted


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_rejection_is_retried_once_and_then_final_while_others_succeed(status: int) -> None:
    assert isinstance(decided(status), Retry)
    assert decided(status, attempts=2, rejections=2) is Outcome.REJECTED


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_rejection_after_other_failures_counts_as_the_first(status: int) -> None:
    assert isinstance(decided(status, attempts=5, counted_attempts=5, rejections=1), Retry)


def test_a_rejection_of_every_post_is_never_final() -> None:
    endpoint = endpoint_with_success()
    for _ in range(FAILURES_BEFORE_HOLDING):
        endpoint.failed("status 403", NOW, first_attempt=True)
    assert endpoint.holding
    assert isinstance(decided(403, attempts=9, rejections=9, endpoint=endpoint), Retry)
    endpoint.succeeded(NOW)
    assert not endpoint.holding
    assert decided(403, attempts=9, rejections=9, endpoint=endpoint) is Outcome.REJECTED


def test_a_410_is_not_trusted_if_the_endpoint_delivers_nothing() -> None:
    assert not EndpointHealth().recently_delivered(NOW)
    assert endpoint_with_success(NOW - 600).recently_delivered(NOW)
    assert not endpoint_with_success(NOW - 601).recently_delivered(NOW)
