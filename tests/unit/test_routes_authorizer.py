"""The authorizer: which clients it admits, with which context, and how it rejects and fails."""

import contextlib
import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gatecast import table
from gatecast.emulator.authorizer import decide
from gatecast.rooms.revocations import Revocations
from routes import authorizer, environment
from routes.authorizer import AuthorizerFailed, extract_token
from routes.keys import PublicKeys
from routes.tokens import MAX_TOKEN_LENGTH, InvalidToken, Verifier
from tests.routes_events import LambdaContext, captured_log, event
from tests.tokens import AUDIENCE, ISSUER, JwksEndpoint, claims, rs256, rsa_jwk, rsa_key, signed

ARN = "arn:aws:execute-api:eu-west-1:123456789012:abcdef1234/production/$connect"
PROTOCOLS = "Sec-WebSocket-Protocol"
VARIABLES = {
    "GATECAST_TABLE": "gatecast",
    "GATECAST_TOKEN_ISSUER": ISSUER,
    "GATECAST_TOKEN_AUDIENCE": AUDIENCE,
    "GATECAST_TOKEN_JWKS_URL": "https://issuer.example/jwks.json",
    "GATECAST_TOKEN_SECRET_ARN": "",
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with captured_log() as stream:
        yield stream


class RevocationItems:
    """DynamoDB, as far as the authorizer needs it."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.reads = 0

    def get_item(self, **request: Any) -> dict[str, Any]:
        assert (request["TableName"], request["ConsistentRead"]) == ("gatecast", True)
        self.reads += 1
        if self.error is not None:
            raise self.error
        key = request["Key"]
        found = [item for item in self.items if {name: item[name] for name in key} == key]
        return {"Item": found[0]} if found else {}

    def put_item(self, **_: Any) -> None:
        pytest.fail("the authorizer writes nothing")


@pytest.fixture
def revocations(monkeypatch: pytest.MonkeyPatch) -> RevocationItems:
    items = RevocationItems()
    monkeypatch.setattr(authorizer, "_revocations", lambda: Revocations(items, "gatecast"))
    return items


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, revocations: RevocationItems) -> JwksEndpoint:
    assert not revocations.items
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


def request(
    protocols: str | None = None, query: dict[str, list[str]] | None = None, authorization: str | None = None
) -> dict[str, Any]:
    sent = {PROTOCOLS: protocols, "Authorization": authorization}
    headers = {name: value for name, value in sent.items() if value is not None}
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
@pytest.mark.parametrize(
    ("protocols", "frames"),
    [("gatecast.v2, {}", "2"), ("gatecast.v1, gatecast.v2, {}", "2"), ("gatecast.v1, {}", None)],
)
def test_the_context_names_the_dialect(protocols: str, frames: str | None) -> None:
    assert invoke(request(protocols.format(rs256())))["context"].get("frames") == frames


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
        ("gatecast.v2, a.b.c", {}),
        ("gatecast.v2, gatecast.v1, a.b.c", {}),
        ("gatecast.v1, gatecast.v2, a.b.c", {}),
        ("gatecast.v2, gatecast.v1", {"token": ["a.b.c"]}),
        (None, {"token": ["a.b.c"]}),
        ("gatecast.v1", {"token": ["a.b.c"]}),
        (None, {"token": ["a.b.c"], "other": ["x", "y"]}),
    ],
)
def test_a_token_comes_as_the_subprotocol_behind_the_dialects_or_in_the_query(
    protocols: str | None, query: dict[str, list[str]]
) -> None:
    assert extract_token(request(protocols, query)) == "a.b.c"


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
@pytest.mark.parametrize("protocols", [None, "gatecast.v1"])
def test_a_token_may_come_as_a_bearer_token(scheme: str, protocols: str | None) -> None:
    assert extract_token(request(protocols, authorization=f"{scheme}a.b.c")) == "a.b.c"


def test_other_schemes_are_no_tokens() -> None:
    basic = "Basic YTpi"
    assert extract_token(request("gatecast.v1, a.b.c", authorization=basic)) == "a.b.c"
    assert extract_token(request(query={"token": ["a.b.c"]}, authorization=basic)) == "a.b.c"
    for authorization in (basic, "a.b.c", "Bearer", "Bearera.b.c", "Token a.b.c"):
        with pytest.raises(InvalidToken):
            extract_token(request(authorization=authorization))


@pytest.mark.parametrize(
    ("protocols", "query"),
    [
        ("gatecast.v1, a.b.c", {}),
        ("gatecast.v1", {"token": ["a.b.c"]}),
        (None, {"token": ["a.b.c"]}),
        ("chat", {}),
    ],
)
def test_a_bearer_token_is_the_only_token(protocols: str | None, query: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidToken):
        extract_token(request(protocols, query, "Bearer a.b.c"))


def test_two_bearer_tokens_are_rejected() -> None:
    twice = request(authorization="Bearer a.b.c")
    twice["multiValueHeaders"]["Authorization"] = ["Bearer a.b.c", "Bearer a.b.c"]
    with pytest.raises(InvalidToken):
        extract_token(twice)


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("authorization", ["Bearer {}, Bearer {}", "Bearer {} ", "Bearer {}\n", "Bearer \t{}"])
def test_text_around_a_bearer_token_is_rejected(authorization: str) -> None:
    token = rs256()
    assert invoke(request(authorization=f"Bearer {token}"))["principalId"] == "alice"
    assert error_text(request(authorization=authorization.format(token, token))) == "Unauthorized"


def test_single_value_fields_are_sufficient() -> None:
    assert extract_token({"headers": {"authorization": "Bearer a.b.c"}}) == "a.b.c"
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
        ("gatecast.v2", {}),
        ("gatecast.v2, gatecast.v1", {}),
        ("gatecast.v3, a.b.c", {}),
        ("gatecast.v2, a.b.c, gatecast.v1", {}),
        ("gatecast.v2, gatecast.v2, a.b.c", {}),
        ("gatecast.v2, gatecast.v2", {}),
        ("gatecast.v2, a.b.c", {"token": ["a.b.c"]}),
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


@pytest.mark.usefixtures("endpoint")
def test_a_revoked_user_is_denied_with_any_token_and_others_are_not(
    revocations: RevocationItems, log: io.StringIO
) -> None:
    revocations.items.append(table.revocation_item("alice", not_before=int(time.time()) + 3_600))
    for token in (rs256(), rs256(iat=...)):
        denied = invoke(request(f"gatecast.v2, {token}"))
        assert denied["policyDocument"]["Statement"] == [
            {"Action": "execute-api:Invoke", "Effect": "Deny", "Resource": ARN}
        ]
        assert denied["context"] == {}
    assert {json.loads(line)["reason"] for line in log.getvalue().splitlines()} == {"the user is revoked"}
    assert "alice" not in log.getvalue()
    allowed = invoke(request(f"gatecast.v2, {rs256(sub='bob')}"))
    assert allowed["policyDocument"]["Statement"][0]["Effect"] == "Allow"


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize(("iat", "effect"), [(-60, "Deny"), (-0.5, "Allow"), (None, "Allow")])
def test_after_a_revocation_only_newer_tokens_are_valid(
    iat: float | None, effect: str, revocations: RevocationItems
) -> None:
    now = int(time.time())
    revocations.items.append(table.revocation_item("alice", not_before=now - 30))
    token = rs256(iat=... if iat is None else now + iat)
    policy = invoke(request(f"gatecast.v2, {token}"))["policyDocument"]
    assert policy["Statement"][0]["Effect"] == effect


@pytest.mark.usefixtures("endpoint")
def test_an_unproven_token_reads_no_revocation(revocations: RevocationItems) -> None:
    token = signed(claims(), rsa_key("another"), "RS256", {"kid": "rsa"})
    assert error_text(request(f"gatecast.v1, {token}")) == "Unauthorized"
    assert revocations.reads == 0


@pytest.mark.usefixtures("endpoint")
def test_an_unreadable_table_fails_closed(revocations: RevocationItems, log: io.StringIO) -> None:
    revocations.error = TimeoutError("secret text")
    assert error_text(request(f"gatecast.v1, {rs256()}")) == "see authorizer.failed in the log"
    line = json.loads(log.getvalue())
    assert (line["message"], line["error"]) == ("authorizer.failed", "TimeoutError")


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
        ({"GATECAST_TABLE": ""}, "GATECAST_TABLE is not set"),
        ({"GATECAST_TOKEN_ISSUER": ""}, "GATECAST_TOKEN_ISSUER is not set"),
        ({"GATECAST_TOKEN_AUDIENCE": ""}, "GATECAST_TOKEN_AUDIENCE is not set"),
        ({"GATECAST_TOKEN_JWKS_URL": ""}, "exactly one of"),
        ({"GATECAST_TOKEN_SECRET_ARN": "arn:secret"}, "exactly one of"),
        (
            {"GATECAST_TOKEN_JWKS_URL": "http://issuer.example/jwks.json"},
            "GATECAST_TOKEN_JWKS_URL does not begin with https://",
        ),
        ({"GATECAST_TOKEN_ISSUER": ISSUER + "\n"}, "GATECAST_TOKEN_ISSUER has the value 'https://issuer.example/\\n'"),
        ({"GATECAST_TOKEN_AUDIENCE": "a\tb"}, "GATECAST_TOKEN_AUDIENCE has the value 'a\\tb': expected"),
        ({"GATECAST_TOKEN_AUDIENCE": "a  b"}, "GATECAST_TOKEN_AUDIENCE has the value '': expected"),
        ({"GATECAST_TOKEN_AUDIENCE": " "}, "GATECAST_TOKEN_AUDIENCE has the value '': expected"),
        ({"GATECAST_TOKEN_AUDIENCE_CLAIM": "client id"}, "GATECAST_TOKEN_AUDIENCE_CLAIM has the value 'client id'"),
        ({"GATECAST_TOKEN_USER_CLAIM": "sub "}, "GATECAST_TOKEN_USER_CLAIM has the value 'sub '"),
        ({"GATECAST_TOKEN_GRANTS_CLAIM": "röoms"}, "GATECAST_TOKEN_GRANTS_CLAIM has the value 'röoms'"),
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
    assert error_text({"requestContext": {}, **event}) in {"Unauthorized", "see authorizer.failed in the log"}


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("event", [{}, {"source": "serverless-plugin-warmup"}, {"requestContext": None}, [], None])
def test_another_event_is_ignored_and_allows_nothing(event: Any, log: io.StringIO) -> None:
    assert invoke(event) == {"statusCode": 200}, "no policy, so API Gateway would reject the client"
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["message"] == "event.ignored"


def test_names_of_claims_and_several_audiences_come_from_the_environment(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("GATECAST_TOKEN_AUDIENCE", "web ios")
    variables.setenv("GATECAST_TOKEN_AUDIENCE_CLAIM", "client_id")
    variables.setenv("GATECAST_TOKEN_USER_CLAIM", "username")
    variables.setenv("GATECAST_TOKEN_GRANTS_CLAIM", "")
    endpoint = JwksEndpoint(rsa_jwk("rsa"))
    keys = PublicKeys("https://issuer.example/jwks.json", endpoint)  # type: ignore[arg-type]  # a stand-in
    variables.setattr(authorizer, "PublicKeys", lambda _url: keys)
    variables.setattr(environment, "client", lambda _service, _config: RevocationItems())
    token = rs256(aud=..., client_id="ios", username="bob", gatecast={"join": ["a"]})
    context = invoke(request(f"gatecast.v1, {token}"))["context"]
    assert (context["user"], context["join"]) == ("bob", "a")


@pytest.mark.usefixtures("endpoint")
def test_tokens_are_not_logged_at_any_level(caplog: pytest.LogCaptureFixture, log: io.StringIO) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [
        rs256(),
        rs256(exp=1),
        rs256(sub="alice smith"),
        rs256(gatecast={"join": ["@all"]}),
        rs256(gatecast="gatecast/other"),
        signed(claims(), rsa_key("another"), "RS256", {"kid": "rsa"}),
        signed(b"no claims", rsa_key("rsa"), "RS256", {"kid": "rsa"}),
        "not-a-token.at-all-but.similar-to-one!",
    ]
    for token in tokens:
        for connect in (request(f"gatecast.v1, {token}"), request(authorization=f"Bearer {token}")):
            with contextlib.suppress(Exception):
                invoke(connect)
    logged = log.getvalue() + caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert logged.count("connect.rejected") >= 2 * (len(tokens) - 1)
    for token in tokens:
        assert not [part for part in token.split(".") if part in logged]


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
