"""The gateway's signature verification, against what botocore signs."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from multidict import CIMultiDict

from gatecast.emulator.sigv4 import Credentials, Verifier

NOW = datetime(2026, 11, 24, 6, 54, 9, tzinfo=UTC)
HOST = "http://127.0.0.1:8080"
PATH = "/local/@connections/L0SM9cOFvHcCIhw%3D"
KEYS = Credentials("AKID", "secret")
TEMPORARY = Credentials("ASIA", "temporary-secret", "session/token+==")


@pytest.fixture(autouse=True)
def _botocore_signs_at_a_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)


def signed(
    method: str = "POST",
    target: str = PATH,
    body: bytes = b"hello",
    *,
    keys: Credentials = KEYS,
    region: str = "us-east-1",
    service: str = "execute-api",
    headers: dict[str, str] | None = None,
) -> tuple[str, str, CIMultiDict[str], bytes]:
    request = AWSRequest(method, f"{HOST}{target}", data=body, headers=headers or {})
    SigV4Auth(BotocoreCredentials(*keys), service, region).add_auth(request)
    sent: CIMultiDict[str] = CIMultiDict({"Host": urlsplit(HOST).netloc})
    sent.extend(dict(request.headers.items()))
    return method, target, sent, body


def verifier(at: float = NOW.timestamp()) -> Verifier:
    keys = {each.access_key_id: each for each in (KEYS, TEMPORARY)}
    return Verifier(keys, region="us-east-1", clock=lambda: at)


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize("keys", [KEYS, TEMPORARY])
@pytest.mark.parametrize(
    "target",
    [
        PATH,
        "/local/@connections/ab%2Fc-_d%2B1%3D",
        "/local/%40connections/x%3D%3D",
        "/local/@connections/x%3D?b=2&a=1&a=0&empty",
        "/local/a%20b/~x/./y/../z",
        "//local//x/",
    ],
)
def test_what_botocore_signs_is_accepted(method: str, keys: Credentials, target: str) -> None:
    assert verifier().verify(*signed(method, target, keys=keys)) is None


def test_spaces_and_repeated_headers_are_canonical() -> None:
    assert verifier().verify(*signed(headers={"X-Custom": "  a   b  ", "Content-Type": "text/plain"})) is None


@pytest.mark.parametrize(
    ("request_", "error_type", "message"),
    [
        (signed, "MissingAuthenticationTokenException", "Missing Authentication Token"),
        (lambda: signed(keys=Credentials("AKID", "wrong")), "InvalidSignatureException", "does not match"),
        (lambda: signed(keys=Credentials("NOBODY", "x")), "UnrecognizedClientException", "security token"),
        (lambda: signed(keys=TEMPORARY._replace(session_token=None)), "UnrecognizedClientException", "token"),
        (lambda: signed(keys=TEMPORARY._replace(session_token="x")), "UnrecognizedClientException", "token"),
        (lambda: signed(keys=KEYS._replace(session_token="x")), "UnrecognizedClientException", "token"),
        (lambda: signed(region="eu-west-1"), "InvalidSignatureException", "valid region, not 'eu-west-1'"),
        (lambda: signed(service="sqs"), "InvalidSignatureException", "correct service: 'execute-api'"),
    ],
)
def test_rejections_have_the_error_type_and_message(request_: Any, error_type: str, message: str) -> None:
    method, target, headers, body = request_()
    if error_type.startswith("Missing"):
        del headers["Authorization"]
    rejection = verifier().verify(method, target, headers, body)
    assert rejection is not None
    assert rejection.error_type == error_type
    assert message in rejection.message


@pytest.mark.parametrize(
    "change",
    [
        lambda _, target, headers, body: ("DELETE", target, headers, body),
        lambda method, target, headers, body: (method, target.replace("L0", "L1"), headers, body),
        lambda method, target, headers, body: (method, f"{target}?x=1", headers, body),
        lambda method, target, headers, body: (method, target, headers, body + b"!"),
        lambda method, target, headers, body: (method, target, CIMultiDict({**headers, "Host": "other"}), body),
    ],
)
def test_any_change_after_signing_is_detected(change: Any) -> None:
    rejection = verifier().verify(*change(*signed()))
    assert rejection is not None
    assert rejection.error_type == "InvalidSignatureException"


@pytest.mark.parametrize(("age", "accepted"), [(0, True), (299, True), (301, False), (-299, True), (-301, False)])
def test_signature_is_valid_within_five_minutes(age: int, accepted: bool) -> None:
    rejection = verifier(at=NOW.timestamp() + age).verify(*signed())
    assert (rejection is None) == accepted
    assert rejection is None or rejection.error_type == "InvalidSignatureException"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer x",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=AKID/20261124/us-east-1/execute-api/aws4_request, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=AKID/us-east-1, SignedHeaders=host, Signature=00",
        "AWS4-HMAC-SHA256 , , =,Signature",
    ],
)
def test_a_malformed_header_is_incomplete(authorization: str) -> None:
    method, target, headers, body = signed()
    headers["Authorization"] = authorization
    rejection = verifier().verify(method, target, headers, body)
    assert rejection is not None
    assert rejection.error_type == "IncompleteSignatureException"


@pytest.mark.parametrize("timestamp", ["", "yesterday", "20261123T065409Z", "2026-11-24T06:54:09Z"])
def test_the_date_must_be_there_and_match_the_scope(timestamp: str) -> None:
    method, target, headers, body = signed()
    headers["X-Amz-Date"] = timestamp
    assert verifier().verify(method, target, headers, body) is not None


@pytest.mark.parametrize("unsigned", ["host", "x-amz-security-token"])
def test_host_and_session_token_must_be_signed(unsigned: str) -> None:
    method, target, headers, body = signed(keys=TEMPORARY)
    names = [name for name in ("host", "x-amz-date", "x-amz-security-token") if name != unsigned]
    headers["Authorization"] = headers["Authorization"].replace(
        "SignedHeaders=host;x-amz-date;x-amz-security-token", f"SignedHeaders={';'.join(names)}"
    )
    rejection = verifier().verify(method, target, headers, body)
    assert rejection is not None
    assert "must be a 'SignedHeader'" in rejection.message
