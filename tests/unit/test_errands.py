"""What the engine sends beside deliveries: references only while they are needed, and closings until one succeeds."""

import math
from base64 import b64decode
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest

from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP
from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.rate import RateController
from worker.decisions.stall import References, StalledConnection
from worker.delivery.errands import REFERENCES_PER_SECOND, Errand, Errands
from worker.delivery.slow_clients import SlowClients


class Rate:
    def __init__(self) -> None:
        self.limit = 10_000.0
        self.wants_reference = False
        self.told: list[str] = []

    def passed(self, _firsts: int) -> None:
        self.told.append("passed")

    def throttled(self, *, retry: bool) -> None:
        assert not retry
        self.told.append("throttled")


class Slow:
    def __init__(self) -> None:
        self.references = References()
        self.undecided = False
        self.ended: list[tuple[str, bool]] = []

    def closed(self, record: StalledConnection, _now: float, *, succeeded: bool) -> None:
        self.ended.append((record.connection_id, succeeded))


class Scene:
    """Errands that are asked once per millisecond, as the engine does, in virtual time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.rate, self.slow, self.endpoint = Rate(), Slow(), EndpointHealth()
        self.errands = Errands(rate=cast(RateController, self.rate), endpoint=self.endpoint)
        self.errands.slow = cast(SlowClients, self.slow)

    def sent(self, seconds: float, respond: Callable[[Errand], int | None] = lambda _: None) -> list[float]:
        """When something was sent within this time. `respond` says with which status it ends at once; None: never."""
        at = []
        for _ in range(round(seconds * 1_000)):
            self.now += 0.001
            while (errand := self.errands.next(self.now)) is not None:
                at.append(self.now)
                status = respond(errand)
                if status is not None:
                    errand.ended(status, self.now)
        return at

    def reference(self) -> Errand:
        """The next one, within a second."""
        found: list[Errand] = []
        while not found:
            assert self.sent(1, found.append)
        return found[0]

    def close(self, *names: str) -> None:
        for name in names:
            self.errands.close(StalledConnection(name, 0.0, self.slow.references))


# References


def test_nothing_is_sent_while_nothing_is_undecided() -> None:
    scene = Scene()
    assert not scene.sent(60)
    assert scene.errands.references == 0
    assert scene.errands.due_at() == math.inf


@pytest.mark.parametrize("wanted_by", ["slow", "rate"])
def test_references_are_sent_while_something_is_undecided(wanted_by: str) -> None:
    scene = Scene()
    scene.slow.undecided, scene.rate.wants_reference = wanted_by == "slow", wanted_by == "rate"
    assert scene.sent(1)
    scene.slow.undecided = scene.rate.wants_reference = False
    assert not scene.sent(1)


@pytest.mark.parametrize("respond", [lambda _: 410, lambda _: 429, lambda _: None], ids=["410", "429", "none yet"])
@pytest.mark.parametrize(
    ("limit", "most_per_second"), [(10_000, REFERENCES_PER_SECOND), (500, 0.02 * 500), (50, 1), (1, 1)]
)
def test_they_are_at_most_twenty_per_second_and_two_percent_of_the_rate(
    limit: float, most_per_second: float, respond: Callable[[Errand], int | None]
) -> None:
    scene = Scene()
    scene.rate.limit, scene.slow.undecided = limit, True
    at = scene.sent(60, respond)
    assert 60 * most_per_second / 3 <= len(at) <= 60 * most_per_second + 1
    assert all(later - earlier >= 1 / most_per_second - 1e-6 for earlier, later in pairwise(at))
    assert scene.errands.references == len(at)


def test_where_other_posts_tell_none_is_sent() -> None:
    scene = Scene()
    scene.slow.undecided = True
    sent = 0
    for _ in range(600):
        scene.slow.references.passed += 1
        sent += len(scene.sent(0.04))
    assert sent == 0


def test_a_reference_reaches_nobody() -> None:
    scene = Scene()
    scene.slow.undecided = True
    references = [scene.reference() for _ in range(20)]
    assert {(each.method, each.payload) for each in references} == {("POST", b"{}")}
    assert len({each.connection_id for each in references}) == 20
    for each in references:
        assert len(b64decode(each.connection_id, validate=True)) == 11


@pytest.mark.parametrize(
    ("status", "told", "passed", "throttled"),
    [(410, ["passed"], 1, 0), (403, ["passed"], 1, 0), (429, ["throttled"], 0, 1), (503, [], 0, 0), (0, [], 0, 0)],
)
def test_what_a_reference_tells(status: int, told: list[str], passed: int, throttled: int) -> None:
    scene = Scene()
    scene.slow.undecided = True
    scene.reference().ended(status, scene.now)
    assert scene.rate.told == told
    assert scene.slow.references == References(passed, throttled)
    assert (scene.endpoint.proved_at == scene.now) == (status == 410)


# Proof of the endpoint


def test_proof_is_asked_for_at_most_once_per_second_and_until_it_is_there() -> None:
    scene = Scene()
    scene.endpoint.failed("status 400", scene.now, first_attempt=True, rejected=True)
    at = scene.sent(30.5)
    assert len(at) == 31
    assert all(later - earlier >= 1 - 1e-6 for earlier, later in pairwise(at))
    assert scene.sent(5, lambda _: 410)[1:] == []
    assert scene.endpoint.others_succeed(scene.now - 5, rejected=True)
    assert not scene.endpoint.wants_proof


@pytest.mark.parametrize("status", [403, 503, 0])
def test_a_proof_that_fails_is_a_failure_of_another_connection(status: int) -> None:
    scene = Scene()
    scene.endpoint.failed("status 403", scene.now, first_attempt=True, rejected=True)
    at = scene.sent(FAILURES_BEFORE_HOLDING, lambda _: status)
    assert len(at) == FAILURES_BEFORE_HOLDING
    assert scene.endpoint.holding
    said = f"status {status}" if status else "no response"
    assert scene.endpoint.problem(scene.now) == f"every post fails: {said}"


@pytest.mark.parametrize("status", [429, 200, 204])
def test_a_proof_that_is_throttled_or_accepted_says_nothing_of_the_endpoint(status: int) -> None:
    """Some stand-ins take any connection id."""
    scene = Scene()
    scene.endpoint.failed("status 403", scene.now, first_attempt=True, rejected=True)
    assert scene.sent(30, lambda _: status)
    assert scene.endpoint.problem(scene.now) is None
    assert scene.endpoint.wants_proof


# Closing


def test_connections_are_closed_at_once_and_before_anything_else() -> None:
    scene = Scene()
    scene.slow.undecided = True
    scene.close("a", "b")
    assert scene.errands.due_at() == -math.inf
    closings = [scene.errands.next(scene.now) for _ in range(2)]
    assert [(each.method, each.connection_id, each.payload) for each in closings if each] == [
        ("DELETE", "a", b""),
        ("DELETE", "b", b""),
    ]
    assert scene.errands.due_at() == math.inf
    assert scene.errands.references == 0


@pytest.mark.parametrize("status", [200, 204, 404, 410])
def test_what_is_closed_or_gone_is_closed(status: int) -> None:
    scene = Scene()
    scene.close("a")
    assert len(scene.sent(60, lambda _: status)) == 1
    assert scene.slow.ended == [("a", True)]


@pytest.mark.parametrize("status", [400, 403])
def test_a_closing_that_is_rejected_has_failed(status: int) -> None:
    scene = Scene()
    scene.close("a")
    assert len(scene.sent(60, lambda _: status)) == 1
    assert scene.slow.ended == [("a", False)]


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_closing_is_retried_with_growing_pauses_and_fails_in_the_end(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.delivery.errands.random.random", lambda: 0.5)
    scene = Scene()
    scene.close("a")
    at = scene.sent(120, lambda _: status)
    assert len(at) == ATTEMPTS_BEFORE_GIVING_UP
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2
    assert scene.slow.ended == [("a", False)]
    assert scene.errands.due_at() == math.inf


def test_a_closing_may_succeed_after_all() -> None:
    scene = Scene()
    scene.close("a")
    statuses = iter((429, 0, 503, 204))
    assert len(scene.sent(60, lambda _: next(statuses))) == 4
    assert scene.slow.ended == [("a", True)]
