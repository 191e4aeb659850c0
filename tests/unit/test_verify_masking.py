"""Nothing that identifies an account, a connection or a person gets into a report of `deploy.verify`."""

import pytest

from deploy.verify.masking import MASK, Masker
from deploy.verify.observation import Observation, Verdict
from deploy.verify.questions import QUESTIONS
from deploy.verify.report import Run, render
from deploy.verify.wire import Response, describe

SECRETS = {
    "account id": "210987654321",
    "API id": "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com",
    "API id in an ARN": "arn:aws:execute-api:eu-west-1:210987654321:a1b2c3d4e5/main/POST/@connections/L0SM9cOFvHcCIhw=",
    "connection id": "L0SM9cOFvHcCIhw=",
    "connection id on the wire": "L0SM9cOFvHcCIhw%3D",
    "connection id in a canonical request": "L0SM9cOFvHcCIhw%253D",
    "access key id": "AKIAQ3EXAMPLE7KEYID1",
    "temporary access key id": "ASIAQ3EXAMPLE7KEYID1",
    "secret access key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "session token": "IQoJb3JpZ2luX2VjEXAMPLETOKEN//////////wEaCXVzLWVhc3QtMSJHMEUCIQDdzZ" * 2,
    "signature": "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
    "request id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl",
    "address": "203.0.113.77",
    "person": "arn:aws:sts::210987654321:assumed-role/Admin/alice@example.com",
}
READABLE = (
    "131,072 bytes: 413; headers x-amzn-RequestId, Content-Type; error type InvalidSignatureException",
    "Signature expired: 20261127T013142Z is now earlier than 20261127T023142Z - 5 min.",
    "the stack gatecast-verify-0a1b2c3d-probe in eu-west-1, close code 1001 after 600 s",
    "User: … is not authorized to perform: execute-api:ManageConnections on resource",
)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("text", ["{}", "message '{}'", '{{"id":"{}"}}', "({}),", "Credential={}/x", "line\n{}\nline"])
def test_what_looks_like_a_secret_is_masked_without_being_known(kind: str, text: str) -> None:
    secret = SECRETS[kind]
    masked = Masker().mask(text.format(secret))
    for part in ("210987654321", "a1b2c3d4e5", "L0SM9cOFvHcCIhw", "alice", secret):
        assert part not in masked


def test_known_secrets_are_masked_whatever_they_look_like() -> None:
    masker = Masker(["local", "abc"])
    masker.add("pass word", "local-secret")
    assert masker.mask("local-secret, pass word, local") == f"{MASK}, {MASK}, {MASK}"
    assert masker.mask("abcde") == "abcde", "too short to be told from a part of a word"


@pytest.mark.parametrize("text", READABLE)
def test_what_a_reader_needs_stays_readable(text: str) -> None:
    assert Masker().mask(text) == text


def test_the_texts_of_the_questions_stay_readable() -> None:
    for each in QUESTIONS:
        for text in (each.question, each.why, each.assumed, each.how):
            assert Masker().mask(text) == text


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_gets_into_a_report(kind: str) -> None:
    """Wherever it comes from: a header, a body, an exception, the deployment."""
    secret = SECRETS[kind]
    response = Response(
        403,
        (("x-amzn-RequestId", secret), ("x-amzn-ErrorType", secret), ("Content-Type", secret), ("X-Other", secret)),
        f'{{"message": "{secret}", "other": "{secret}"}}'.encode(),
    )
    question = QUESTIONS[0]
    seen = {question.name: Observation(Verdict.FAILED, f"ClientError: {secret}", (describe(response), secret))}
    run = Run(target="AWS", region="eu-west-1", date="2026-11-27", lines=[secret], problem=secret, left=secret)
    text = render(run, [question], seen, Masker())
    assert "x-amzn-RequestId, x-amzn-ErrorType" in text
    for part in ("210987654321", "a1b2c3d4e5", "L0SM9cOFvHcCIhw", "alice", secret):
        assert part not in text


def test_values_of_headers_are_not_described() -> None:
    described = describe(Response(200, (("Set-Cookie", "session"), ("x-amzn-errortype", "GoneException"))))
    assert described == "200; headers Set-Cookie, x-amzn-errortype; error type GoneException; body empty"


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (b'{"message": "Forbidden", "n": 1}', "body JSON {message: str, n: int}, message 'Forbidden'"),
        (b'{"Message": null}', "body JSON {Message: NoneType}"),
        (b'{"message": "one\\ntwo"}', "body JSON {message: str}, message 'one'"),
        (b"[1]", "body JSON, a list"),
        (b"<html>", "body of 6 bytes that are not JSON"),
        (b"\xff", "body of 1 bytes that are not JSON"),
    ],
)
def test_bodies_are_reduced_to_their_shape(body: bytes, shape: str) -> None:
    assert describe(Response(403, (), body)).endswith(shape)
