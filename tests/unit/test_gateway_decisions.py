"""The gateway's smaller decisions: routes, handlers' responses, authorizers' policies, the token bucket."""

import base64
import random
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.emulator.authorizer import Authorizer, Denied, decide, denied, has_identity
from gatecast.emulator.events import ConnectionInfo
from gatecast.emulator.integration import Failure, Route, Success, parse_response
from gatecast.emulator.limits import Limits, TokenBucket
from gatecast.emulator.routing import select_route

ARN = "arn:aws:execute-api:us-east-1:000000000000:local/local/$connect"


def handler(_event: Any, _context: Any) -> Any: ...


ROUTES = {key: Route(handler) for key in ("$connect", "$disconnect", "$default", "join")}


@pytest.mark.parametrize(
    ("body", "route"),
    [
        ('{"action":"join","room":"x"}', "join"),
        ('{"action":"unknown"}', "$default"),
        ('{"action":"$connect"}', "$default"),
        ('{"action":"$disconnect"}', "$default"),
        ('{"action":"$default"}', "$default"),
        ('{"action":null}', "$default"),
        ('{"action":["join"]}', "$default"),
        ('{"nothing":1}', "$default"),
        ('["action"]', "$default"),
        ('"action"', "$default"),
        ("3", "$default"),
        ("null", "$default"),
        ("", "$default"),
        ("no JSON", "$default"),
        ("[" * 100_000, "$default"),
    ],
)
def test_the_action_selects_the_route(body: str, route: str) -> None:
    assert select_route(body, ROUTES) == route


def test_without_a_default_route_nothing_is_selected() -> None:
    assert select_route("no JSON", {"join": Route(handler)}) is None


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"statusCode": 200}, Success(200, {}, "")),
        ({"statusCode": 200, "body": None, "headers": None}, Success(200, {}, "")),
        ({"statusCode": 403, "body": "no", "headers": {"X-A": 1}}, Success(403, {"x-a": "1"}, "no")),
        (
            {"statusCode": 200, "body": base64.b64encode("ä".encode()).decode(), "isBase64Encoded": True},
            Success(200, {}, "ä"),
        ),
    ],
)
def test_well_formed_responses(response: Any, expected: Success) -> None:
    assert parse_response(response) == expected


@pytest.mark.parametrize(
    "response",
    [
        None,
        "text",
        {},
        {"statusCode": "200"},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "headers": "x"},
        {"statusCode": 200, "body": "%", "isBase64Encoded": True},
    ],
)
def test_malformed_responses_are_failures_of_the_handler(response: Any) -> None:
    assert parse_response(response) == Failure(HTTPStatus.INTERNAL_SERVER_ERROR)


def policy(effect: str, resource: Any = ARN, **more: Any) -> dict[str, Any]:
    statement = [{"Effect": effect, "Action": "execute-api:Invoke", "Resource": resource}]
    return {"principalId": "ann", "policyDocument": {"Statement": statement}, **more}


@pytest.mark.parametrize("resource", [ARN, "*", "arn:aws:execute-api:*:local/*", [ARN, "arn:other"]])
def test_policy_allows_its_resources(resource: Any) -> None:
    assert decide(policy("Allow", resource), ARN) == {"principalId": "ann", "integrationLatency": 1}


def test_the_context_reaches_the_routes_as_strings() -> None:
    context = decide(policy("Allow", context={"text": "a", "number": 3, "yes": True}), ARN)
    assert context == {"principalId": "ann", "integrationLatency": 1, "text": "a", "number": "3", "yes": "true"}


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (policy("Deny"), HTTPStatus.FORBIDDEN),
        (policy("Allow", "arn:other"), HTTPStatus.FORBIDDEN),
        (policy("Allow", context={"nested": {"a": 1}}), HTTPStatus.INTERNAL_SERVER_ERROR),
        (policy("Allow", context={"none": None}), HTTPStatus.INTERNAL_SERVER_ERROR),
        ({"principalId": "ann"}, HTTPStatus.INTERNAL_SERVER_ERROR),
        (None, HTTPStatus.INTERNAL_SERVER_ERROR),
    ],
)
def test_any_other_policy_is_denied(response: Any, status: HTTPStatus) -> None:
    assert decide(response, ARN) == Denied(status)


def test_deny_overrides_allow() -> None:
    both = policy("Allow")
    both["policyDocument"]["Statement"].append({"Effect": "Deny", "Resource": "*"})
    assert decide(both, ARN) == Denied(HTTPStatus.FORBIDDEN)


def test_only_the_error_unauthorized_becomes_a_401() -> None:
    assert denied(Failure(HTTPStatus.INTERNAL_SERVER_ERROR, Exception("Unauthorized"))).status == 401
    assert denied(Failure(HTTPStatus.INTERNAL_SERVER_ERROR, Exception("other"))).status == 500


def test_all_identity_sources_are_required() -> None:
    origin = ConnectionInfo(
        connection_id="a=",
        domain_name="d",
        connected_at_ms=0,
        source_ip="127.0.0.1",
        user_agent=None,
        headers=(("Authorization", "x"),),
        query=(("token", "y"), ("empty", "")),
    )
    header, query = "route.request.header.authorization", "route.request.querystring.token"
    assert has_identity(Authorizer(handler), origin)
    assert has_identity(Authorizer(handler, (header, query)), origin)
    assert not has_identity(Authorizer(handler, (header, "route.request.querystring.other")), origin)
    assert not has_identity(Authorizer(handler, ("route.request.querystring.empty",)), origin)
    with pytest.raises(ValueError, match="identity source"):
        has_identity(Authorizer(handler, ("method.request.header.Auth",)), origin)


def test_the_bucket_starts_full_and_fills_with_time() -> None:
    now = 0.0
    bucket = TokenBucket(rate=10, burst=3, clock=lambda: now)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now = 0.25
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now = 1_000.0
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


@given(st.floats(0.1, 1_000), st.integers(1, 50), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_the_bucket_never_admits_more_than_burst_and_rate(rate: float, burst: int, pauses: list[float]) -> None:
    now = 0.0
    bucket = TokenBucket(rate, burst, clock=lambda: now)
    admitted = 0
    for pause in pauses:
        now += pause
        admitted += bucket.take()
    assert admitted <= burst + rate * now + 1e-6


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_bucket_without_rate_or_burst_is_rejected(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        TokenBucket(rate, burst, clock=lambda: 0.0)


def test_limits_latency_token_bucket_and_validation() -> None:
    assert Limits(latency_seconds=0.5).latency(random.Random(1)) == 0.5
    drawn = [Limits(latency_seconds=(0.1, 0.2)).latency(random.Random(seed)) for seed in range(50)]
    assert all(0.1 <= seconds <= 0.2 for seconds in drawn)
    assert len(set(drawn)) > 1
    assert Limits(requests_per_second=None).token_bucket(lambda: 0.0) is None
    with pytest.raises(ValueError, match="send_buffer_bytes"):
        Limits(send_buffer_bytes=10)
    with pytest.raises(ValueError, match="max_concurrent_messages"):
        Limits(max_concurrent_messages=0)
