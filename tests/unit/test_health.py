"""How failing components are reported and logged. The test controls the clock."""

import pytest
from structlog.testing import capture_logs

from worker.observe.health import Health


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_required_components_are_problems_until_they_report() -> None:
    health = Health("queue", "table")
    assert set(health.problems) == {"queue", "table"}
    health.recovered("queue")
    health.recovered("table")
    assert not health.problems


def test_a_failing_component_is_logged_once_and_then_once_per_minute_with_a_sum(clock: Clock) -> None:
    health = Health(clock=clock)
    with capture_logs() as logs:
        for _ in range(150):
            health.failed("table", "ThrottlingException")
            clock.now += 1
            health.poll()
    assert [(entry["event"], entry["failures"]) for entry in logs] == [
        ("dependency.failing", 1),
        ("dependency.failing", 60),
        ("dependency.failing", 60),
    ]
    assert health.failures["table"] == 150
    assert health.problems == {"table": "ThrottlingException"}


def test_a_problem_that_is_not_reported_any_more_ends(clock: Clock) -> None:
    """The task that called that component has been cancelled, and no other task calls it."""
    health = Health("queue", clock=clock)
    health.failed("lease", "TimeoutError")
    clock.now += 39
    assert health.problems == {"queue": "has not responded yet", "lease": "TimeoutError"}
    clock.now += 1
    assert health.problems == {"queue": "has not responded yet"}


def test_a_component_that_fails_and_recovers_in_turn_is_logged_as_failing(clock: Clock) -> None:
    health = Health(clock=clock)
    with capture_logs() as logs:
        for _ in range(20):
            health.failed("table", "TimeoutError")
            health.recovered("table")
            clock.now += 1
            health.poll()
        clock.now += 10
        health.poll()
        health.poll()
    assert [(entry["event"], entry["failures"]) for entry in logs] == [("dependency.failing", 1), ("dependency.ok", 19)]


def test_a_registered_check_is_polled(clock: Clock) -> None:
    health = Health(clock=clock)
    problem: str | None = "every post fails: status 403"
    health.register_check("connections", lambda: problem)
    assert health.problems == {"connections": "every post fails: status 403"}
    with capture_logs() as logs:
        health.poll()
        problem = None
        assert not health.problems
        clock.now += 6
        health.poll()
    assert [entry["event"] for entry in logs] == ["dependency.failing", "dependency.ok"]
