"""Which requests share a counter, which are rejected, and what happens if a counter fails."""

import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from routes.limits import Limits
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import captured_log

START = 1_700_000_000  # a window begins


class Counters:
    """DynamoDB with the one update that `Limits` needs. If `failure` is set, the update raises it."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], dict[str, str]] = {}
        self.updates = 0
        self.failure: Exception | None = None

    def update_item(self, **update: Any) -> None:
        self.updates += 1
        if self.failure:
            raise self.failure
        assert update["UpdateExpression"] == "SET expires_at = :expires_at ADD used :one"
        assert update["ConditionExpression"] == "attribute_not_exists(used) OR used < :limit"
        values = {name: value["N"] for name, value in update["ExpressionAttributeValues"].items()}
        key = (update["Key"]["pk"]["S"], update["Key"]["sk"]["S"])
        used = int(self.items.get(key, {"used": "0"})["used"])
        if used >= int(values[":limit"]):
            raise failure("ConditionalCheckFailedException")
        self.items[key] = {"used": str(used + 1), "expires_at": values[":expires_at"]}


def failure(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "secret"}}, "UpdateItem")


def caller(user: str | None = None, connection_id: str = "L0SM9cOFvHcCIhw=", at: float = START) -> Caller:
    return Caller(connection_id=connection_id, connected_at_ms=0, requested_at_ms=int(at * 1000), user=user)


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with captured_log() as stream:
        yield stream


def limits(counters: Counters, join: int = 1, publish: int = 1) -> Limits:
    return Limits(counters, "gatecast", {"join": join, "publish": publish})


def granted(limits: Limits, attempts: int, who: Caller, action: str = "publish") -> int:
    """How many of `attempts` requests pass."""
    passed = 0
    for _ in range(attempts):
        with contextlib.suppress(RequestRejected):
            limits.count(action, who)
            passed += 1
    return passed


def test_ten_seconds_worth_of_requests_passes(counters: Counters) -> None:
    assert granted(limits(counters, publish=2), 50, caller()) == 20
    assert counters.items == {
        ("limit#connection#L0SM9cOFvHcCIhw=", f"publish#{START}"): {"used": "20", "expires_at": str(START + 70)}
    }


def test_processes_share_the_counter(counters: Counters) -> None:
    assert [granted(limits(counters), 7, caller()) for _ in range(3)] == [7, 3, 0]


def test_actions_are_counted_separately(counters: Counters) -> None:
    subject = limits(counters)
    assert granted(subject, 20, caller(), "publish") == 10
    assert granted(subject, 20, caller(), "join") == 10


def test_a_users_connections_share_its_counter_and_others_have_their_own(counters: Counters) -> None:
    subject = limits(counters)
    assert granted(subject, 7, caller("alice", "one")) == 7
    assert granted(subject, 7, caller("alice", "two")) == 3
    assert granted(subject, 7, caller("bob", "three")) == 7
    assert granted(subject, 7, caller(None, "alice")) == 7
    assert granted(subject, 7, caller(None, "user#alice")) == 7


@pytest.mark.parametrize("user", ["connection#x", "x#publish#1700000000", "#", "user#alice"])
def test_no_name_collides_with_another_counter(user: str, counters: Counters) -> None:
    subject = limits(counters)
    for who in (caller(user), caller(None, user), caller("alice"), caller(None, "x"), caller("x")):
        assert granted(subject, 11, who) == 10
    assert len(counters.items) == 5
    assert all(pk.startswith("limit#") for pk, _ in counters.items)


def test_next_window_has_its_own_counter(counters: Counters) -> None:
    subject = limits(counters)
    assert granted(subject, 20, caller(at=START + 9.999)) == 10
    assert granted(subject, 20, caller(at=START + 10)) == 10


@pytest.mark.parametrize(("at", "retry_after_seconds"), [(0, 10), (0.999, 10), (1, 9), (9.999, 1)])
def test_retry_after_is_the_end_of_the_window(at: float, retry_after_seconds: int, counters: Counters) -> None:
    subject = limits(counters)
    granted(subject, 10, caller(at=START + at))
    with pytest.raises(RequestRejected) as rejection:
        subject.count("publish", caller(at=START + at))
    assert rejection.value.code is Code.RATE_LIMITED
    assert rejection.value.retry_after_seconds == retry_after_seconds


def test_rejections_cost_one_write_per_process_and_window(counters: Counters) -> None:
    subject = limits(counters)
    granted(subject, 1_000, caller())
    assert counters.updates == 11
    granted(limits(counters), 1_000, caller())
    assert counters.updates == 12


def test_memory_of_rejected_clients_is_bounded(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routes.limits.MAX_REMEMBERED", 3)
    subject = limits(counters)
    for number in range(20):
        assert granted(subject, 11, caller(f"user-{number}")) == 10
        assert len(subject._rejected) <= 3


def test_zero_disables_the_limit_without_any_write(counters: Counters) -> None:
    assert granted(limits(counters, publish=0), 1_000, caller()) == 1_000
    assert counters.updates == 0


OVERLOADED = [
    failure("ThrottlingException"),
    failure("ProvisionedThroughputExceededException"),
    failure("RequestLimitExceeded"),
    failure("InternalServerError"),
    ReadTimeoutError(endpoint_url="https://secret"),
    ConnectTimeoutError(endpoint_url="https://secret"),
    ConnectionClosedError(endpoint_url="https://secret"),
    EndpointConnectionError(endpoint_url="https://secret", error="secret"),
]


@pytest.mark.parametrize("problem", OVERLOADED, ids=lambda each: type(each).__name__)
def test_overloaded_table_lets_requests_pass_and_is_logged(
    problem: Exception, counters: Counters, log: io.StringIO
) -> None:
    counters.failure = problem
    assert granted(limits(counters), 20, caller("alice")) == 20
    line = json.loads(log.getvalue().splitlines()[0])
    assert (line["message"], line["level"], line["action"]) == ("limit.not_counted", "WARNING", "publish")
    assert "secret" not in log.getvalue()
    assert "alice" not in log.getvalue()


@pytest.mark.usefixtures("log")
def test_rejected_client_stays_rejected_when_the_table_is_overloaded(counters: Counters) -> None:
    subject = limits(counters)
    assert granted(subject, 11, caller()) == 10
    counters.failure = failure("ThrottlingException")
    assert granted(subject, 20, caller()) == 0


BROKEN = [
    failure("AccessDeniedException"),
    failure("ResourceNotFoundException"),
    failure("ValidationException"),
    NoCredentialsError(),
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_misconfigured_counter_is_an_error(broken: Exception, counters: Counters) -> None:
    counters.failure = broken
    with pytest.raises(type(broken)):
        limits(counters).count("join", caller())
