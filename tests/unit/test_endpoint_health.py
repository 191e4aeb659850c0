"""Whether one connection fails or the endpoint: what a reference post proves in addition to other posts' successes."""

import pytest

from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.outcome import History, Outcome, Retry, decide

NOW = 1_000.0


def failing(*rejected: bool, at: float = NOW) -> EndpointHealth:
    """Health after failed first attempts, one per connection: True for a status such as 403, False for a 503."""
    endpoint = EndpointHealth()
    for each in rejected:
        endpoint.failed("status 403" if each else "status 503", at, first_attempt=True, rejected=each)
    return endpoint


def decided(status: int, endpoint: EndpointHealth, *, counted_attempts: int = 1) -> Outcome | Retry:
    history = History(
        attempts=8, rejections=2, counted_attempts=counted_attempts, first_attempt_at=NOW, age_seconds=None
    )
    return decide(status, history, endpoint=endpoint, now=NOW + 60, jitter=0.5)


def test_in_a_quiet_system_one_wrong_id_is_rejected_once_the_endpoint_is_proved() -> None:
    endpoint = failing(True)
    assert isinstance(decided(403, endpoint), Retry)
    endpoint.proved(NOW + 1)
    assert decided(403, endpoint) is Outcome.REJECTED


def test_a_connection_with_server_errors_is_given_up_once_the_endpoint_is_proved() -> None:
    endpoint = failing(False)
    assert isinstance(decided(503, endpoint, counted_attempts=8), Retry)
    endpoint.proved(NOW + 1)
    assert decided(503, endpoint, counted_attempts=8) is Outcome.UNDELIVERED


def test_a_proof_from_before_the_first_post_does_not_count() -> None:
    endpoint = EndpointHealth()
    endpoint.proved(NOW - 1)
    endpoint.failed("status 403", NOW, first_attempt=True, rejected=True)
    assert not endpoint.others_succeed(NOW, rejected=True)


def test_a_proof_does_not_excuse_server_errors_of_several_connections() -> None:
    """The service behind the endpoint may fail for real connections only."""
    endpoint = failing(False, False)
    endpoint.proved(NOW + 1)
    assert not endpoint.others_succeed(NOW, rejected=False)
    assert endpoint.needs_proof
    assert isinstance(decided(503, endpoint, counted_attempts=8), Retry)
    endpoint.succeeded(NOW + 2)
    assert decided(503, endpoint, counted_attempts=8) is Outcome.UNDELIVERED


def test_proof_is_wanted_while_posts_fail_and_no_other_post_gives_evidence() -> None:
    assert not EndpointHealth().needs_proof
    for give_evidence in (EndpointHealth.responded, lambda each: each.succeeded(NOW), lambda each: each.proved(NOW)):
        endpoint = failing(True)
        assert endpoint.needs_proof
        give_evidence(endpoint)
        assert not endpoint.needs_proof
        endpoint.failed("status 403", NOW + 1, first_attempt=False, rejected=True)
        assert endpoint.needs_proof


def test_one_failing_client_is_no_problem() -> None:
    endpoint = failing(True)
    for second in range(60):
        endpoint.failed("status 403", NOW + second, first_attempt=False, rejected=True)
        assert endpoint.problem(NOW + second) is None


def test_several_failing_connections_are_a_problem_after_a_while_unless_there_is_proof() -> None:
    endpoint = failing(False, False)
    endpoint.failed("status 503", NOW + 3.5, first_attempt=False)
    assert endpoint.problem(NOW + 3) is None
    assert endpoint.problem(NOW + 3.5) == "every post fails: status 503"
    endpoint.proved(NOW + 3.5)
    assert endpoint.problem(NOW + 3.5) is None
    assert endpoint.problem(NOW + 7) == "every post fails: status 503"
    assert endpoint.problem(NOW + 20) is None, "nothing fails any longer"


@pytest.mark.parametrize("server_errors", [0, 1])
def test_a_proof_ends_holding_if_all_failures_were_rejections(server_errors: int) -> None:
    endpoint = failing(*[True] * (FAILURES_BEFORE_HOLDING - server_errors), *[False] * server_errors)
    assert endpoint.holding
    endpoint.proved(NOW)
    assert endpoint.holding == bool(server_errors)
    endpoint.succeeded(NOW)
    assert not endpoint.holding


def test_a_new_streak_of_failures_counts_from_zero() -> None:
    endpoint = failing(False, True)
    endpoint.responded()
    for _ in range(FAILURES_BEFORE_HOLDING):
        endpoint.failed("status 403", NOW, first_attempt=True, rejected=True)
    endpoint.proved(NOW)
    assert not endpoint.holding
