"""One connection's failure or the endpoint's: what a proof by a made-up connection adds to the successes of others."""

import pytest

from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.outcome import History, Outcome, Retry, judge

NOW = 1_000.0


def failing(*rejected: bool, at: float = NOW) -> EndpointHealth:
    """First attempts on as many connections have failed: by a status such as 403, or otherwise."""
    endpoint = EndpointHealth()
    for each in rejected:
        endpoint.failed("status 403" if each else "status 503", at, first_attempt=True, rejected=each)
    return endpoint


def decide(status: int, endpoint: EndpointHealth, *, attempts: int = 1) -> Outcome | Retry:
    history = History(tries=8, refusals=2, attempts=attempts, first_tried_at=NOW, age_seconds=None)
    return judge(status, history, endpoint=endpoint, now=NOW + 60, jitter=0.5)


def test_in_a_quiet_system_one_wrong_id_is_rejected_once_there_is_proof() -> None:
    endpoint = failing(True)
    assert isinstance(decide(403, endpoint), Retry)
    endpoint.proved(NOW + 1)
    assert decide(403, endpoint) is Outcome.REJECTED


def test_one_that_fails_in_another_way_is_given_up_once_there_is_proof() -> None:
    endpoint = failing(False)
    assert isinstance(decide(503, endpoint, attempts=8), Retry)
    endpoint.proved(NOW + 1)
    assert decide(503, endpoint, attempts=8) is Outcome.UNDELIVERED


def test_a_proof_from_before_the_first_post_says_nothing() -> None:
    endpoint = EndpointHealth()
    endpoint.proved(NOW - 1)
    endpoint.failed("status 403", NOW, first_attempt=True, rejected=True)
    assert not endpoint.others_succeed(NOW, rejected=True)


def test_server_errors_of_several_connections_are_not_explained_by_a_proof() -> None:
    """The service behind the endpoint may fail for those that there are."""
    endpoint = failing(False, False)
    endpoint.proved(NOW + 1)
    assert not endpoint.others_succeed(NOW, rejected=False)
    assert endpoint.wants_proof
    assert isinstance(decide(503, endpoint, attempts=8), Retry)
    endpoint.succeeded(NOW + 2)
    assert decide(503, endpoint, attempts=8) is Outcome.UNDELIVERED


def test_proof_is_wanted_while_posts_fail_and_nothing_else_tells() -> None:
    assert not EndpointHealth().wants_proof
    for tell in (EndpointHealth.answered, lambda each: each.succeeded(NOW), lambda each: each.proved(NOW)):
        endpoint = failing(True)
        assert endpoint.wants_proof
        tell(endpoint)
        assert not endpoint.wants_proof
        endpoint.failed("status 403", NOW + 1, first_attempt=False, rejected=True)
        assert endpoint.wants_proof


def test_one_client_that_fails_is_no_trouble() -> None:
    endpoint = failing(True)
    for second in range(60):
        endpoint.failed("status 403", NOW + second, first_attempt=False, rejected=True)
        assert endpoint.problem(NOW + second) is None


def test_several_that_fail_are_trouble_after_a_while_unless_there_is_proof() -> None:
    endpoint = failing(False, False)
    endpoint.failed("status 503", NOW + 3.5, first_attempt=False)
    assert endpoint.problem(NOW + 3) is None
    assert endpoint.problem(NOW + 3.5) == "every post fails: status 503"
    endpoint.proved(NOW + 3.5)
    assert endpoint.problem(NOW + 3.5) is None
    assert endpoint.problem(NOW + 7) == "every post fails: status 503"
    assert endpoint.problem(NOW + 20) is None, "nothing has failed any more"


@pytest.mark.parametrize("server_errors", [0, 1])
def test_a_proof_ends_holding_if_all_were_rejected(server_errors: int) -> None:
    endpoint = failing(*[True] * (FAILURES_BEFORE_HOLDING - server_errors), *[False] * server_errors)
    assert endpoint.holding
    endpoint.proved(NOW)
    assert endpoint.holding == bool(server_errors)
    endpoint.succeeded(NOW)
    assert not endpoint.holding


def test_a_new_stretch_of_failures_forgets_what_failed_in_the_one_before() -> None:
    endpoint = failing(False, True)
    endpoint.answered()
    for _ in range(FAILURES_BEFORE_HOLDING):
        endpoint.failed("status 403", NOW, first_attempt=True, rejected=True)
    endpoint.proved(NOW)
    assert not endpoint.holding
