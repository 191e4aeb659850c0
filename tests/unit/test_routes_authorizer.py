"""The authorizer's answers: whom it lets in, with what, and how it refuses and fails."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from local.gateway.authorizer import decide
from routes import authorizer
from routes.authorizer import AuthorizerFailed, token_of
from routes.keys import PublicKeys
from routes.tokens import MAX_TOKEN_LENGTH, RefusedToken, Verifier
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
    authorizer.reset()
    yield monkeypatch
    authorizer.reset()


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


def answer(event: dict[str, Any]) -> dict[str, Any]:
    return authorizer.handler(event, LambdaContext())


def refusal(event: dict[str, Any]) -> str:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its text, all of it, is compared by the caller
        answer(event)
    return str(raised.value)


@pytest.mark.usefixtures("endpoint")
def test_a_good_token_is_let_in_to_this_connect_alone_with_what_it_grants() -> None:
    exp = int(time.time()) + 600
    assert answer(request(f"gatecast.v1, {rs256(exp=exp)}")) == {
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
def test_the_gateway_understands_the_answers() -> None:
    allowed = decide(answer(request(f"gatecast.v1, {rs256()}")), ARN)
    assert isinstance(allowed, dict)
    assert allowed["user"] == "alice"
    denied = decide(answer(request(f"gatecast.v1, {rs256(sub='alice smith')}")), ARN)
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
    assert token_of(request(protocols, query)) == "a.b.c"


def test_an_event_with_single_values_only_will_do() -> None:
    assert token_of({"queryStringParameters": {"token": "a.b.c"}}) == "a.b.c"
    assert token_of({"headers": {PROTOCOLS.lower(): "gatecast.v1, a.b.c"}}) == "a.b.c"


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
def test_no_token_and_more_than_one_are_refused(protocols: str | None, query: dict[str, list[str]]) -> None:
    with pytest.raises(RefusedToken) as refused:
        token_of(request(protocols, query))
    assert (refused.value.status, refused.value.reason) == (401, "no token, or more than one")


@pytest.mark.usefixtures("endpoint")
def test_what_proves_nobody_is_unauthorized_in_the_word_that_makes_it_a_401(log: io.StringIO) -> None:
    token = signed(claims(), rsa_key("another"), "RS256", {"kid": "rsa"})
    assert refusal(request(f"gatecast.v1, {token}")) == "Unauthorized"
    line = json.loads(log.getvalue())
    assert (line["message"], line["level"]) == ("connect.refused", "INFO")
    assert (line["status"], line["reason"]) == (401, "signed with no key of the issuer's")
    assert token not in log.getvalue()


@pytest.mark.usefixtures("endpoint")
def test_what_nobody_can_have_is_denied(log: io.StringIO) -> None:
    denied = answer(request(query={"token": [rs256(gatecast={"join": ["@user/bob"]})]}))
    assert denied["policyDocument"]["Statement"] == [
        {"Action": "execute-api:Invoke", "Effect": "Deny", "Resource": ARN}
    ]
    assert denied["context"] == {}
    assert json.loads(log.getvalue())["reason"] == "gatecast grants what is no grant"
    assert "bob" not in log.getvalue()


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("room", ["r", "a-room-of-some-length", '"' * 100, "\\" * 100])
def test_api_gateway_carries_whatever_a_token_can_grant(room: str) -> None:
    def token(rooms: int) -> str:
        return rs256(gatecast={"join": [f"{room[6:]}{number}" for number in range(rooms)]})

    rooms = next(rooms for rooms in range(1_000) if len(token(rooms + 1)) > MAX_TOKEN_LENGTH)
    allowed = answer(request(query={"token": [token(rooms)]}))
    assert allowed["context"]["join"].count(" ") == rooms - 1
    assert len(json.dumps(allowed)) < 7_500


def test_a_source_without_keys_lets_nobody_in_and_is_no_401(endpoint: JwksEndpoint, log: io.StringIO) -> None:
    endpoint.go_down()
    assert refusal(request(f"gatecast.v1, {rs256()}")) == "see authorizer.failed in the log"
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
def test_a_wrong_configuration_is_named_and_lets_nobody_in(
    changed: dict[str, str], reason: str, variables: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    for name, value in changed.items():
        variables.setenv(name, value)
    for _ in range(2):
        with pytest.raises(AuthorizerFailed):
            answer(request(f"gatecast.v1, {rs256()}"))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {line["message"] for line in lines} == {"authorizer.failed"}
    assert all(line["reason"].startswith(reason) for line in lines)


@pytest.mark.usefixtures("endpoint", "log")
@pytest.mark.parametrize("event", [{}, {"headers": 7}, {"multiValueQueryStringParameters": {"token": [7]}}])
def test_an_event_of_another_kind_lets_nobody_in(event: dict[str, Any]) -> None:
    assert refusal(event) in {"Unauthorized", "see authorizer.failed in the log"}


@pytest.mark.usefixtures("variables")
def test_configuration_is_read_once() -> None:
    assert authorizer._verifier() is authorizer._verifier()


@pytest.mark.usefixtures("endpoint")
def test_events_are_not_logged_even_where_the_environment_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    monkeypatch.setenv("POWERTOOLS_LOGGER_LOG_EVENT", "true")
    answer(request(f"gatecast.v1, {rs256()}"))
    assert log.getvalue() == ""
