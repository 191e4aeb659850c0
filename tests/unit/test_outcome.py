"""What each answer means: 410 and 429 each mean two things, and a 403 for all is nobody's own."""

import pytest

from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.outcome import History, Meaning, Outcome, Retry, judge, meaning

NOW = 1_000.0


def endpoint_with_success(at: float = NOW) -> EndpointHealth:
    endpoint = EndpointHealth()
    endpoint.succeeded(at)
    return endpoint


def decide(
    status: int,
    *,
    tries: int = 1,
    attempts: int = 1,
    refusals: int = 1,
    first_tried_at: float = NOW - 1,
    age: float | None = 3600,
    endpoint: EndpointHealth | None = None,
) -> Outcome | Retry:
    return judge(
        status,
        History(tries, attempts, refusals, first_tried_at, age),
        endpoint=endpoint or endpoint_with_success(),
        now=NOW,
        jitter=0.5,
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Meaning.DELIVERED),
        (204, Meaning.DELIVERED),
        (301, Meaning.REFUSED),
        (400, Meaning.REFUSED),
        (403, Meaning.REFUSED),
        (404, Meaning.REFUSED),
        (408, Meaning.FAILED),
        (410, Meaning.GONE),
        (413, Meaning.TOO_LARGE),
        (429, Meaning.THROTTLED),
        (500, Meaning.FAILED),
        (503, Meaning.FAILED),
        (0, Meaning.FAILED),
    ],
)
def test_the_status_decides(status: int, expected: Meaning) -> None:
    assert meaning(status) is expected


def test_delivered_and_too_large_are_final() -> None:
    assert decide(200) is Outcome.DELIVERED
    assert decide(413) is Outcome.REJECTED


def test_410_is_believed_of_an_old_membership_and_of_one_that_is_none() -> None:
    assert decide(410) is Outcome.GONE
    assert decide(410, age=None) is Outcome.GONE


def test_410_of_a_young_membership_is_asked_again_until_it_is_old() -> None:
    assert decide(410, age=2) == Retry(1.0, counted=False)
    assert isinstance(decide(410, age=9.99), Retry)
    assert decide(410, age=10.01) is Outcome.GONE


def test_a_wrong_clock_makes_no_membership_young_for_ever() -> None:
    assert isinstance(decide(410, age=-500, first_tried_at=NOW - 9), Retry)
    assert decide(410, age=-500, first_tried_at=NOW - 10) is Outcome.GONE


@pytest.mark.parametrize("status", [500, 0])
def test_a_failing_connection_has_eight_attempts_and_thirty_seconds(status: int) -> None:
    long_ago = NOW - 30
    assert isinstance(decide(status, tries=7, attempts=7, first_tried_at=long_ago), Retry)
    assert isinstance(decide(status, tries=8, attempts=8, first_tried_at=NOW - 29.9), Retry)
    assert decide(status, tries=8, attempts=8, first_tried_at=long_ago) is Outcome.UNDELIVERED


@pytest.mark.parametrize("status", [500, 0])
def test_nothing_counts_while_no_other_post_succeeds(status: int) -> None:
    before = endpoint_with_success(NOW - 31)
    verdict = decide(status, tries=99, attempts=99, first_tried_at=NOW - 30, endpoint=before)
    assert isinstance(verdict, Retry)
    assert not verdict.counted


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refusal_is_asked_again_and_then_final_while_others_succeed(status: int) -> None:
    assert isinstance(decide(status), Retry)
    assert decide(status, tries=2, refusals=2) is Outcome.REJECTED


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refusal_after_failures_of_another_kind_is_the_first_one(status: int) -> None:
    assert isinstance(decide(status, tries=5, attempts=5, refusals=1), Retry)


def test_a_refusal_of_all_is_never_final() -> None:
    endpoint = endpoint_with_success()
    for _ in range(FAILURES_BEFORE_HOLDING):
        endpoint.failed("status 403", NOW, first_attempt=True)
    assert endpoint.holding
    assert isinstance(decide(403, tries=9, refusals=9, endpoint=endpoint), Retry)
    endpoint.succeeded(NOW)
    assert not endpoint.holding
    assert decide(403, tries=9, refusals=9, endpoint=endpoint) is Outcome.REJECTED


def test_a_410_proves_nothing_of_an_endpoint_that_delivers_nothing() -> None:
    assert not EndpointHealth().proves_gone(NOW)
    assert endpoint_with_success(NOW - 600).proves_gone(NOW)
    assert not endpoint_with_success(NOW - 601).proves_gone(NOW)
