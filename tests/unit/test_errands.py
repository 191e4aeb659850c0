"""What the engine sends besides deliveries: reference posts while they are needed, and closes until they succeed."""

import math
from base64 import b64decode
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest
from structlog.testing import capture_logs

from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP
from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.failure import FailedResponse
from worker.decisions.rate import RateController
from worker.decisions.stall import References, StalledConnection
from worker.delivery.errands import REFERENCES_PER_SECOND, Errand, Errands
from worker.delivery.fanout import Delivery
from worker.delivery.slow_clients import SlowClients


class Rate:
    def __init__(self) -> None:
        self.limit = 10_000.0
        self.needs_reference = False
        self.reported: list[str] = []

    def passed(self, _firsts: int) -> None:
        self.reported.append("passed")

    def throttled(self, *, retry: bool) -> None:
        assert not retry
        self.reported.append("throttled")


class Slow:
    def __init__(self) -> None:
        self.references = References()
        self.undecided = False
        self.ended: list[tuple[str, bool]] = []

    def closed(self, record: StalledConnection[Delivery], _now: float, *, succeeded: bool) -> None:
        self.ended.append((record.connection_id, succeeded))


class Harness:
    """Errands, polled once per millisecond like by the engine, in virtual time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.rate, self.slow, self.endpoint = Rate(), Slow(), EndpointHealth()
        self.errands = Errands(rate=cast(RateController, self.rate), endpoint=self.endpoint)
        self.errands.slow = cast(SlowClients, self.slow)

    def sent(self, seconds: float, respond: Callable[[Errand], int | None] = lambda _: None) -> list[float]:
        """The times at which something was sent. `respond` gives the status of the response; None: no response."""
        at = []
        for _ in range(round(seconds * 1_000)):
            self.now += 0.001
            while (errand := self.errands.next(self.now)) is not None:
                at.append(self.now)
                status = respond(errand)
                if status is not None:
                    errand.on_end(status, self.now, f"status {status}" if status else "timeout")
        return at

    def reference(self) -> Errand:
        """The next reference post, within a second."""
        found: list[Errand] = []
        while not found:
            assert self.sent(1, found.append)
        return found[0]

    def close(self, *names: str) -> None:
        for name in names:
            self.errands.close(StalledConnection(name, 0.0, self.slow.references))


# References


def test_nothing_is_sent_while_everything_is_decided() -> None:
    harness = Harness()
    assert not harness.sent(60)
    assert harness.errands.references == 0
    assert harness.errands.due_at() == math.inf


@pytest.mark.parametrize("wanted_by", ["slow", "rate"])
def test_references_are_sent_while_something_is_undecided(wanted_by: str) -> None:
    harness = Harness()
    harness.slow.undecided, harness.rate.needs_reference = wanted_by == "slow", wanted_by == "rate"
    assert harness.sent(1)
    harness.slow.undecided = harness.rate.needs_reference = False
    assert not harness.sent(1)


@pytest.mark.parametrize("respond", [lambda _: 410, lambda _: 429, lambda _: None], ids=["410", "429", "none yet"])
@pytest.mark.parametrize(
    ("limit", "max_per_second"), [(10_000, REFERENCES_PER_SECOND), (500, 0.02 * 500), (50, 1), (1, 1)]
)
def test_references_are_limited_to_twenty_per_second_and_two_percent_of_the_rate(
    limit: float, max_per_second: float, respond: Callable[[Errand], int | None]
) -> None:
    harness = Harness()
    harness.rate.limit, harness.slow.undecided = limit, True
    at = harness.sent(60, respond)
    assert 60 * max_per_second / 3 <= len(at) <= 60 * max_per_second + 1
    assert all(later - earlier >= 1 / max_per_second - 1e-6 for earlier, later in pairwise(at))
    assert harness.errands.references == len(at)


def test_no_reference_is_sent_while_other_posts_give_evidence() -> None:
    harness = Harness()
    harness.slow.undecided = True
    sent = 0
    for _ in range(600):
        harness.slow.references.passed += 1
        sent += len(harness.sent(0.04))
    assert sent == 0


def test_a_reference_is_sent_to_a_random_connection_id() -> None:
    harness = Harness()
    harness.slow.undecided = True
    references = [harness.reference() for _ in range(20)]
    assert {(each.method, each.payload) for each in references} == {("POST", b"{}")}
    assert len({each.connection_id for each in references}) == 20
    for each in references:
        assert len(b64decode(each.connection_id, validate=True)) == 11


@pytest.mark.parametrize(
    ("status", "reported", "passed", "throttled"),
    [(410, ["passed"], 1, 0), (403, ["passed"], 1, 0), (429, ["throttled"], 0, 1), (503, [], 0, 0), (0, [], 0, 0)],
)
def test_the_evidence_of_a_reference(status: int, reported: list[str], passed: int, throttled: int) -> None:
    harness = Harness()
    harness.slow.undecided = True
    harness.reference().on_end(status, harness.now, "its reason")
    assert harness.rate.reported == reported
    assert harness.slow.references == References(passed, throttled)
    assert (harness.endpoint.proved_at == harness.now) == (status == 410)


# Proof of the endpoint


def test_proof_is_requested_once_per_second_until_it_arrives() -> None:
    harness = Harness()
    harness.endpoint.failed("status 400", harness.now, first_attempt=True, rejected=True)
    at = harness.sent(30.5)
    assert len(at) == 31
    assert all(later - earlier >= 1 - 1e-6 for earlier, later in pairwise(at))
    assert harness.sent(5, lambda _: 410)[1:] == []
    assert harness.endpoint.others_succeed(harness.now - 5, rejected=True)
    assert not harness.endpoint.needs_proof


@pytest.mark.parametrize("status", [403, 503, 0])
def test_a_proof_that_fails_is_a_failure_of_another_connection(status: int) -> None:
    harness = Harness()
    harness.endpoint.failed("status 403", harness.now, first_attempt=True, rejected=True)
    at = harness.sent(FAILURES_BEFORE_HOLDING, lambda _: status)
    assert len(at) == FAILURES_BEFORE_HOLDING
    assert harness.endpoint.holding
    reason = f"status {status}" if status else "timeout"
    assert harness.endpoint.problem(harness.now) == f"every post fails: {reason}"


@pytest.mark.parametrize("status", [429, 200, 204])
def test_a_throttled_or_accepted_reference_is_no_evidence_about_the_endpoint(status: int) -> None:
    """Some test doubles accept any connection id."""
    harness = Harness()
    harness.endpoint.failed("status 403", harness.now, first_attempt=True, rejected=True)
    assert harness.sent(30, lambda _: status)
    assert harness.endpoint.problem(harness.now) is None
    assert harness.endpoint.needs_proof


# Closing


def test_closes_are_sent_at_once_and_before_references() -> None:
    harness = Harness()
    harness.slow.undecided = True
    harness.close("a", "b")
    assert harness.errands.due_at() == -math.inf
    closings = [harness.errands.next(harness.now) for _ in range(2)]
    assert [(each.method, each.connection_id, each.payload) for each in closings if each] == [
        ("DELETE", "a", b""),
        ("DELETE", "b", b""),
    ]
    assert harness.errands.due_at() == math.inf
    assert harness.errands.references == 0


@pytest.mark.parametrize("status", [200, 204, 404, 410])
def test_a_close_succeeds_if_the_connection_is_closed_or_gone(status: int) -> None:
    harness = Harness()
    harness.close("a")
    assert len(harness.sent(60, lambda _: status)) == 1
    assert harness.slow.ended == [("a", True)]


@pytest.mark.parametrize("status", [400, 403])
def test_a_rejected_close_has_failed(status: int) -> None:
    harness = Harness()
    harness.close("a")
    assert len(harness.sent(60, lambda _: status)) == 1
    assert harness.slow.ended == [("a", False)]


def test_the_log_says_why_a_close_was_rejected() -> None:
    harness = Harness()
    harness.close("a")
    [errand] = [each for each in [harness.errands.next(harness.now)] if each]
    headers = {b"x-amzn-errortype": b"AccessDeniedException"}
    with capture_logs() as logs:
        errand.on_end(403, harness.now, FailedResponse(403, headers, b'{"Message":"User: x is not authorized"}'))
    assert [(each["event"], each["status"], each["reason"]) for each in logs] == [
        ("slow_client.not_closed", 403, "status 403 (AccessDeniedException): User: x is not authorized")
    ]


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_close_is_retried_with_backoff_and_fails_in_the_end(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.delivery.errands.random.random", lambda: 0.5)
    harness = Harness()
    harness.close("a")
    at = harness.sent(120, lambda _: status)
    assert len(at) == ATTEMPTS_BEFORE_GIVING_UP
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2
    assert harness.slow.ended == [("a", False)]
    assert harness.errands.due_at() == math.inf


def test_a_close_may_succeed_on_a_retry() -> None:
    harness = Harness()
    harness.close("a")
    statuses = iter((429, 0, 503, 204))
    assert len(harness.sent(60, lambda _: next(statuses))) == 4
    assert harness.slow.ended == [("a", True)]
