"""What is reported of a failed response: enough to tell the causes of a 403 apart, and nothing of the request."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.aws.errors import ServiceError
from worker.decisions.endpoint_health import FAILURES_BEFORE_HOLDING, EndpointHealth
from worker.decisions.failure import FailedResponse

TOKEN = "IQoJb3JpZ2luX2VjEJr//////////wEaCWV1LXdlc3QtMSJHMEUCIQ" + "Dt0k3n/+=" * 60
PAYLOAD = "private payload"
SIGNATURE = "a9993e364706816aba3e25717850c26c9cd0d89d"
MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details.\n\nThe Canonical String for this request "
    "should have been\n'POST\n/live/%40connections/abc%253D\n\nhost:x\n"
    f"x-amz-security-token:{TOKEN}\n\nhost\n{SIGNATURE}'\n\n"
    f"The String-to-Sign should have been\n'AWS4-HMAC-SHA256\n{SIGNATURE}'"
)
EXPIRED = "Signature expired: 20261101T1000Z is now earlier than 20261101T1010Z (20261101T1015Z - 5 min.)"
NOT_AUTHORIZED = (
    "User: arn:aws:sts::123456789012:assumed-role/gatecast-worker-TaskRole-1A2B3C4D5E6F/"
    "0123456789abcdef0123456789abcdef is not authorized to perform: execute-api:ManageConnections"
)


def reported(body: object, error_type: str = "", *, status: int = 403) -> str:
    headers = {b"x-amzn-errortype": error_type.encode()} if error_type else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return str(FailedResponse(status, headers, content))


@pytest.mark.parametrize(
    ("error_type", "body", "text"),
    [
        (
            "InvalidSignatureException",
            {"message": "Credential should be scoped to a valid region, not 'us-east-1'. "},
            "(InvalidSignatureException): Credential should be scoped to a valid region, not 'us-east-1'.",
        ),
        (
            "InvalidSignatureException",
            {"message": EXPIRED},
            "(InvalidSignatureException): " + EXPIRED,
        ),
        (
            "InvalidSignatureException",
            {"message": "Signature not yet current: 20261101T1020Z is still later than 20261101T1015Z"},
            "(InvalidSignatureException): Signature not yet current: 20261101T1020Z is still later than 20261101T1015Z",
        ),
        (
            "InvalidSignatureException",
            {"message": MISMATCH},
            f"(InvalidSignatureException): {MISMATCH.partition(' Check')[0]}",
        ),
        (
            "UnrecognizedClientException:http://internal.amazon.com/coral/com.amazon.coral.service/",
            {"message": "The security token included in the request is invalid."},
            "(UnrecognizedClientException): The security token included in the request is invalid.",
        ),
        (
            "",
            {"__type": "com.amazon.coral.service#ExpiredTokenException", "message": "The token is expired"},
            "(ExpiredTokenException): The token is expired",
        ),
        (
            "AccessDeniedException",
            {"Message": f"{NOT_AUTHORIZED} on resource: arn:aws:execute-api:eu-west-1:********9012:abc/live/POST"},
            f"(AccessDeniedException): {NOT_AUTHORIZED} on resource: arn:aws",
        ),
        ("ForbiddenException", {"message": "Forbidden"}, "(ForbiddenException): Forbidden"),
        ("", {"message": "Forbidden"}, ": Forbidden"),
        ("", b"<html>proxy</html>", ""),
        ("", b"", ""),
        ("", {"message": None}, ""),
        ("", ["message"], ""),
        ("not a name!", {"message": "a"}, ": a"),
        ("", {"message": 'a \\/ "quoted" name. More'}, ": a"),
    ],
)
def test_each_cause_has_its_own_text(error_type: str, body: object, text: str) -> None:
    found = reported(body, error_type)
    if text.endswith("arn:aws"):
        assert found.startswith(f"status 403 {text}")
        assert found.endswith("…")
    else:
        assert found == f"status 403{'' if text.startswith(':') or not text else ' '}{text}"


def test_quotes_and_slashes_are_read_as_json() -> None:
    assert reported(rb'{"message": "role\/name is not \"x\""}') == 'status 403: role/name is not "x"'


@pytest.mark.parametrize("kept", [200, 500, 1_000, 4_096, 100_000])
def test_nothing_of_the_request_is_reported_wherever_the_body_was_cut(kept: int) -> None:
    body = json.dumps({"message": MISMATCH}).encode()[:kept]
    assert reported(body, "InvalidSignatureException").endswith("does not match the signature you provided.")


@pytest.mark.parametrize(
    "message",
    [
        f"x-amz-security-token:{TOKEN}",
        f"Canonical request: {TOKEN}",
        f"bad {TOKEN} here",
        f"not a valid key=value pair in Authorization header: 'AWS4 Credential={TOKEN[:60]}'",
        f"The String-to-Sign is {TOKEN[:60]}",
        f"wrong Authorization: {TOKEN[:60]}",
        f"Signature={TOKEN[:60]}",
        f"one\u2028two {TOKEN}",
    ],
)
def test_a_repeated_request_is_cut_off_in_other_messages_too(message: str) -> None:
    assert TOKEN[:20] not in reported({"message": message})
    assert TOKEN[:20] not in reported(json.dumps({"message": message}, ensure_ascii=False).encode())


@given(st.text(max_size=600), st.text(max_size=80))
def test_the_text_is_short_and_printable(message: str, error_type: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"message": message}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        headers = {b"x-amzn-errortype": error_type.encode("utf-8", "surrogatepass")}
        text = str(FailedResponse(403, headers, body))
        assert text.isprintable()
        assert len(text) <= len("status 403 (): ") + 64 + 200


@given(st.binary(max_size=300))
def test_any_body_is_reported(body: bytes) -> None:
    text = str(FailedResponse(500, {b"x-amzn-errortype": body}, b'{"message":"' + body))
    assert text.startswith("status 500")
    assert text.isprintable()


def test_the_text_is_made_only_when_it_is_reported() -> None:
    class Failure:
        made = 0

        def __str__(self) -> str:
            self.made += 1
            return "status 403 (ForbiddenException): Forbidden"

    failure, endpoint = Failure(), EndpointHealth()
    for _ in range(FAILURES_BEFORE_HOLDING):
        endpoint.failed(failure, 1.0, first_attempt=True, rejected=True)
    assert failure.made == 0
    assert endpoint.problem(2.0) == "every post fails: status 403 (ForbiddenException): Forbidden"
    assert failure.made == 1


def test_sqs_and_dynamodb_distinguish_the_same_causes() -> None:
    expired = json.dumps({"__type": "x#InvalidSignatureException", "message": EXPIRED}).encode()
    assert ServiceError("InvalidSignatureException", expired).reason == (f"InvalidSignatureException: {EXPIRED}")
    mismatch = json.dumps({"message": MISMATCH}).encode()
    assert TOKEN[:20] not in ServiceError("InvalidSignatureException", mismatch).reason
    invalid = json.dumps({"message": f"Item {PAYLOAD} is invalid"}).encode()
    assert ServiceError("ValidationException", invalid).reason == "ValidationException"
    assert ServiceError("InvalidSignatureException").reason == "InvalidSignatureException"
