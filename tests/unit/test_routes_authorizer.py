"""The authorizer: which clients it admits, with which context, and how it rejects and fails."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from local.gateway.authorizer import decide
from routes import authorizer
from routes.authorizer import AuthorizerFailed, extract_token
from routes.keys import PublicKeys
from routes.tokens import MAX_TOKEN_LENGTH, InvalidToken, Verifier
from tests.routes_events import LambdaContext, captured_log, event
from tests.tokens import AUDIENCE, ISSUER, JwksEndpoint, claims, rs256, rsa_jwk, rsa_key, signed

ARN = "arn:aws:execute-api:eu-west-1:123456789012:abcdef1234/production/$connect"
PROTOCOLS = "Sec-WebSocket-Protocol"
VARIABLES = {
    "GATECAST_TOKEN_ISSUER": ISSUER,
    "GATECAST_TOKEN_AUDIENCE": AUDIENCE,
    "GATECAST_TOKEN_JWKS_URL": "https://issuer.example/jwks.json",
    "GATECAST_TOKEN_SECRET_ARN": "",
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with captured_log() as stream:
        yield stream


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> JwksEndpoint:
    endpoint = JwksEndpoint(rsa_jwk("rsa"))
    keys = PublicKeys("https://issuer.example/jwks.json", endpoint)  # type: ignore[arg-type]  # a stand-in
    verifier = Verifier(keys, issuer=ISSUER, audience=AUDIENCE)
    monkeypatch.setattr(authorizer, "_verifier", lambda: verifier)
    return endpoint


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    authorizer.clear_caches()
    yield monkeypatch
    authorizer.clear_caches()


def request(protocols: str | None = None, query: dict[str, list[str]] | None = None) -> dict[str, Any]:
    headers = {} if protocols is None else {PROTOCOLS: protocols}
    return {
        **event("$connect", headers=headers),
        "type": "REQUEST",
        "methodArn": ARN,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": {name: values[-1] for name, values in (query or {}).items()},
        "multiValueQueryStringParameters": query or {},
        "stageVariables": {},
    }


def invoke(event: dict[str, Any]) -> dict[str, Any]:
    return authorizer.handler(event, LambdaContext())


def error_text(event: dict[str, Any]) -> str:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its text, all of it, is compared by the caller
        invoke(event)
    return str(raised.value)


@pytest.mark.usefixtures("endpoint")
def test_valid_token_is_allowed_this_connect_with_its_grants() -> None:
    exp = int(time.time()) + 600
    assert invoke(request(f"gatecast.v1, {rs256(exp=exp)}")) == {
        "principalId": "alice",
        "policyDocument": {
            "Version": "2012-10-17",
            "Statement": [{"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": ARN}],
        },
        "context": {
            "user": "alice",
            "join": "lobby chat/*",
            "publish": "chat/*",
            "expiresAt": str(exp + 10),
        },
    }


@pytest.mark.usefixtures("endpoint")
def test_the_gateway_accepts_the_policies() -> None:
    allowed = decide(invoke(request(f"gatecast.v1, {rs256()}")), ARN)
    assert isinstance(allowed, dict)
    assert allowed["user"] == "alice"
    denied = decide(invoke(request(f"gatecast.v1, {rs256(sub='alice smith')}")), ARN)
    assert not isinstance(denied, dict)
    assert denied.status == 403


@pytest.mark.parametrize(
    ("protocols", "query"),
    [
        ("gatecast.v1, a.b.c", {}),
        ("gatecast.v1,a.b.c", {}),
        (None, {"token": ["a.b.c"]}),
        ("gatecast.v1", {"token": ["a.b.c"]}),
        (None, {"token": ["a.b.c"], "other": ["x", "y"]}),
    ],
)
def test_a_token_comes_as_the_second_subprotocol_or_in_the_query(
    protocols: str | None, query: dict[str, list[str]]
) -> None:
    assert extract_token(request(protocols, query)) == "a.b.c"


def test_single_value_fields_are_sufficient() -> None:
    assert extract_token({"queryStringParameters": {"token": "a.b.c"}}) == "a.b.c"
    assert extract_token({"headers": {PROTOCOLS.lower(): "gatecast.v1, a.b.c"}}) == "a.b.c"


@pytest.mark.parametrize(
    ("protocols", "query"),
    [
        (None, {}),
        ("gatecast.v1", {}),
        ("a.b.c", {}),
        ("a.b.c, gatecast.v1", {}),
        ("gatecast.v1, a.b.c, a.b.c", {}),
        ("chat, a.b.c", {}),
        ("gatecast.v2, a.b.c", {}),
        ("gatecast.v1, a.b.c", {"token": ["a.b.c"]}),
        ("chat", {"token": ["a.b.c"]}),
        ("gatecast.v1, gatecast.v1", {"token": ["a.b.c"]}),
        (None, {"token": ["a.b.c", "a.b.c"]}),
        (None, {"Token": ["a.b.c"]}),
    ],
)
def test_no_token_or_several_tokens_are_rejected(protocols: str | None, query: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidToken) as rejection:
        extract_token(request(protocols, query))
    assert (rejection.value.status, rejection.value.reason) == (401, "no token, or more than one")


@pytest.mark.usefixtures("endpoint")
def test_unproven_identity_raises_the_text_that_becomes_a_401(log: io.StringIO) -> None:
    token = signed(claims(), rsa_key("another"), "RS256", {"kid": "rsa"})
    assert error_text(request(f"gatecast.v1, {token}")) == "Unauthorized"
    line = json.loads(log.getvalue())
    assert (line["message"], line["level"]) == ("connect.rejected", "INFO")
    assert (line["status"], line["reason"]) == (401, "not signed with a key of the issuer")
    assert token not in log.getvalue()


@pytest.mark.usefixtures("endpoint")
def test_invalid_grants_are_denied(log: io.StringIO) -> None:
    denied = invoke(request(query={"token": [rs256(gatecast={"join": ["@user/bob"]})]}))
    assert denied["policyDocument"]["Statement"] == [
        {"Action": "execute-api:Invoke", "Effect": "Deny", "Resource": ARN}
    ]
    assert denied["context"] == {}
    assert json.loads(log.getvalue())["reason"] == "gatecast has an invalid grant"
    assert "bob" not in log.getvalue()


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("room", ["r", "a-room-of-some-length", '"' * 100, "\\" * 100])
def test_the_longest_tokens_context_fits_api_gateways_limit(room: str) -> None:
    def token(rooms: int) -> str:
        return rs256(gatecast={"join": [f"{room[6:]}{number}" for number in range(rooms)]})

    rooms = next(rooms for rooms in range(1_000) if len(token(rooms + 1)) > MAX_TOKEN_LENGTH)
    allowed = invoke(request(query={"token": [token(rooms)]}))
    assert allowed["context"]["join"].count(" ") == rooms - 1
    assert len(json.dumps(allowed)) < 7_500


def test_unavailable_keys_fail_closed_without_a_401(endpoint: JwksEndpoint, log: io.StringIO) -> None:
    endpoint.fail_requests()
    assert error_text(request(f"gatecast.v1, {rs256()}")) == "see authorizer.failed in the log"
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["message"], line["error"]) for line in lines] == [
        ("keys.not_fetched", "TimeoutError"),
        ("authorizer.failed", "KeysUnavailable"),
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"GATECAST_TOKEN_ISSUER": ""}, "GATECAST_TOKEN_ISSUER is not set"),
        ({"GATECAST_TOKEN_AUDIENCE": ""}, "GATECAST_TOKEN_AUDIENCE is not set"),
        ({"GATECAST_TOKEN_JWKS_URL": ""}, "exactly one of"),
        ({"GATECAST_TOKEN_SECRET_ARN": "arn:secret"}, "exactly one of"),
        ({"GATECAST_TOKEN_JWKS_URL": "http://issuer.example/jwks.json"}, "the address of the JWKS must be https://…"),
    ],
)
def test_invalid_configuration_is_logged_and_fails_closed(
    changed: dict[str, str], reason: str, variables: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    for name, value in changed.items():
        variables.setenv(name, value)
    for _ in range(2):
        with pytest.raises(AuthorizerFailed):
            invoke(request(f"gatecast.v1, {rs256()}"))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {line["message"] for line in lines} == {"authorizer.failed"}
    assert all(line["reason"].startswith(reason) for line in lines)


@pytest.mark.usefixtures("endpoint", "log")
@pytest.mark.parametrize("event", [{}, {"headers": 7}, {"multiValueQueryStringParameters": {"token": [7]}}])
def test_malformed_event_fails_closed(event: dict[str, Any]) -> None:
    assert error_text(event) in {"Unauthorized", "see authorizer.failed in the log"}


@pytest.mark.usefixtures("variables")
def test_configuration_is_read_once() -> None:
    assert authorizer._verifier() is authorizer._verifier()


@pytest.mark.usefixtures("endpoint")
def test_events_are_not_logged_even_if_the_environment_enables_it(
    monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    monkeypatch.setenv("POWERTOOLS_LOGGER_LOG_EVENT", "true")
    invoke(request(f"gatecast.v1, {rs256()}"))
    assert log.getvalue() == ""
