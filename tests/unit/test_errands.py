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
from worker.delivery.errands import MAX_PACED_IN_FLIGHT, PACED_SHARE, REFERENCES_PER_SECOND, Closing, Errand, Errands
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
            self.errands.close_slow_client(StalledConnection(name, 0.0, self.slow.references))


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


# Paced closings


class Ended:
    """Records how closings ended, by connection."""

    def __init__(self) -> None:
        self.statuses: list[tuple[str, int]] = []

    def closing(self, name: str, farewell: bytes = b"", *, paced: bool = True) -> Closing:
        return Closing(name, lambda status, _now, _failure: self.statuses.append((name, status)), farewell, paced)


@pytest.mark.parametrize("limit", [10_000, 1_000, 100, 10])
@pytest.mark.parametrize("farewell", [b"", b"bye"])
def test_paced_closings_take_a_small_share_of_the_rate(limit: float, farewell: bytes) -> None:
    harness, ended = Harness(), Ended()
    harness.rate.limit = limit
    for number in range(5_000):
        harness.errands.close(ended.closing(f"c{number}", farewell), harness.now)
    requests = len(harness.sent(10, lambda _: 200))
    assert 0.5 * PACED_SHARE * limit * 10 <= requests <= PACED_SHARE * limit * 10 + 2
    assert len(ended.statuses) == (requests // 2 if farewell else requests), "each is closed right after its farewell"


def test_few_paced_closings_are_in_flight_if_the_endpoint_does_not_respond() -> None:
    harness, ended = Harness(), Ended()
    in_flight: list[Errand] = []
    for number in range(100):
        harness.errands.close(ended.closing(f"c{number}"), harness.now)
    assert len(harness.sent(60, in_flight.append)) == MAX_PACED_IN_FLIGHT
    assert harness.errands.due_at() == math.inf
    in_flight.pop().on_end(204, harness.now, None)
    assert len(harness.sent(60, in_flight.append)) == 1


def test_urgent_closings_and_references_precede_paced_closings() -> None:
    harness, ended = Harness(), Ended()
    harness.slow.undecided = True
    harness.errands.close(ended.closing("paced"), harness.now)
    harness.close("urgent")
    errands = [errand for errand in (harness.errands.next(harness.now) for _ in range(4)) if errand is not None]
    assert [each.method for each in errands] == ["DELETE", "POST", "DELETE"]
    assert [errands[0].connection_id, errands[2].connection_id] == ["urgent", "paced"]


def test_a_farewell_is_posted_before_the_connection_is_closed() -> None:
    harness, ended = Harness(), Ended()
    sent: list[tuple[str, bytes]] = []

    def respond(errand: Errand) -> int:
        sent.append((errand.method, errand.payload))
        return 200 if errand.method == "POST" else 204

    harness.errands.close(ended.closing("a", b"bye"), harness.now)
    harness.sent(1, respond)
    assert sent == [("POST", b"bye"), ("DELETE", b"")]
    assert ended.statuses == [("a", 204)]


@pytest.mark.parametrize(("status", "requests"), [(410, 1), (404, 2), (403, 2), (413, 2), (429, 9), (500, 9), (0, 9)])
def test_a_connection_is_closed_even_if_its_farewell_fails_but_not_if_it_is_gone(status: int, requests: int) -> None:
    harness, ended = Harness(), Ended()
    harness.errands.close(ended.closing("a", b"bye"), harness.now)
    at = harness.sent(120, lambda errand: status if errand.method == "POST" else 204)
    assert len(at) == requests
    assert ended.statuses == [("a", 410 if status == 410 else 204)]


@pytest.mark.parametrize("status", [429, 500, 0])
def test_a_paced_closing_is_retried_with_backoff_and_fails_in_the_end(status: int) -> None:
    harness, ended = Harness(), Ended()
    harness.errands.close(ended.closing("a"), harness.now)
    assert len(harness.sent(120, lambda _: status)) == ATTEMPTS_BEFORE_GIVING_UP
    assert ended.statuses == [("a", status)]
    assert harness.errands.due_at() == math.inf


def test_a_retried_closing_waits_for_no_later_one() -> None:
    harness, ended = Harness(), Ended()
    harness.rate.limit = 100
    for number in range(1_000):
        harness.errands.close(ended.closing(f"c{number}"), harness.now + number)
    responses = iter((500,))
    harness.sent(60, lambda _: next(responses, 204))
    assert "c0" in [name for name, _ in ended.statuses[:20]]


def test_paced_closings_wait_while_the_endpoint_fails_for_all() -> None:
    harness, ended = Harness(), Ended()
    for _ in range(FAILURES_BEFORE_HOLDING):
        harness.endpoint.failed("status 503", harness.now, first_attempt=True)
    harness.errands.close(ended.closing("a"), harness.now)
    assert harness.errands.due_at() == math.inf
    harness.sent(60, lambda errand: 204 if errand.method == "DELETE" else 503)
    assert ended.statuses == []
    harness.endpoint.succeeded(harness.now)
    harness.sent(1, lambda errand: 204 if errand.method == "DELETE" else 503)
    assert ended.statuses == [("a", 204)]
