"""What the SDK raises becomes one line and a remedy, without anything secret."""

from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
    UnauthorizedSSOTokenError,
)
from botocore.parsers import ResponseParserError

from gatecast.cli.failures import REMEDIES, Cause, CommandFailed, WrongUsage, explain, explained


def service_error(code: str, message: str = "", status: int = 400, operation: str = "SendMessage") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, operation)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (NoCredentialsError(), Cause.NO_CREDENTIALS),
        (PartialCredentialsError(provider="env", cred_var="secret"), Cause.NO_CREDENTIALS),
        (CredentialRetrievalError(provider="x", error_msg="gone"), Cause.NO_CREDENTIALS),
        (CredentialRetrievalError(provider="x", error_msg="the token has expired"), Cause.EXPIRED_CREDENTIALS),
        (UnauthorizedSSOTokenError(), Cause.EXPIRED_CREDENTIALS),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1/"), Cause.UNREACHABLE),
        (ConnectTimeoutError(endpoint_url="https://sqs"), Cause.UNREACHABLE),
        (ReadTimeoutError(endpoint_url="https://sqs"), Cause.UNREACHABLE),
        (SSLError(endpoint_url="https://sqs", error="self-signed"), Cause.UNREACHABLE),
        (ResponseParserError("<html>"), Cause.NOT_AWS),
        (service_error("ExpiredToken", "The security token included in …"), Cause.EXPIRED_CREDENTIALS),
        (service_error("400", "The security token included in the request is expired"), Cause.EXPIRED_CREDENTIALS),
        (service_error("ExpiredTokenException"), Cause.EXPIRED_CREDENTIALS),
        (service_error("InvalidClientTokenId"), Cause.UNKNOWN_CREDENTIALS),
        (service_error("UnrecognizedClientException"), Cause.UNKNOWN_CREDENTIALS),
        (service_error("SignatureDoesNotMatch", "The request signature we calculated …"), Cause.UNKNOWN_CREDENTIALS),
        (service_error("SignatureDoesNotMatch", "Signature expired: 2026 is now earlier than …"), Cause.CLOCK),
        (service_error("InvalidSignatureException", "Signature not yet current: 2026 is still later …"), Cause.CLOCK),
        (service_error("RequestTimeTooSkewed"), Cause.CLOCK),
        (
            service_error("SignatureDoesNotMatch", "Credential should be scoped to a valid region, not 'eu-west-1'."),
            Cause.REGION,
        ),
        (service_error("AccessDenied"), Cause.DENIED),
        (service_error("AccessDeniedException"), Cause.DENIED),
        (service_error("403", "User: arn:aws:iam::1:user/a is not authorized to perform: sqs:x"), Cause.DENIED),
        (service_error("AWS.SimpleQueueService.NonExistentQueue"), Cause.NO_QUEUE),
        (service_error("ResourceNotFoundException", operation="Query"), Cause.NO_TABLE),
        (
            service_error("ValidationException", "The provided key element does not match the schema"),
            Cause.KEYS,
        ),
        (service_error("ThrottlingException"), Cause.THROTTLED),
        (service_error("RequestThrottled"), Cause.THROTTLED),
        (service_error("InternalError", status=500), Cause.UNAVAILABLE),
        (service_error("503", status=503), Cause.UNAVAILABLE),
        (service_error("403", "Forbidden", status=403), Cause.FORBIDDEN),
        (service_error("401", status=401), Cause.FORBIDDEN),
        (service_error("ValidationException"), Cause.OTHER),
    ],
)  # fmt: skip
def test_causes(error: Exception, cause: Cause) -> None:
    problem = explain(error)
    assert problem is not None
    assert problem.cause is cause
    assert problem.remedy == REMEDIES[cause]
    assert "\n" not in problem.what


def test_a_mistake_in_this_program_is_no_problem_of_the_sdk() -> None:
    assert explain(KeyError("x")) is None
    with pytest.raises(KeyError), explained():
        raise KeyError("x")


def test_a_remedy_follows_what_is_wrong() -> None:
    with pytest.raises(CommandFailed, match=r"^there are no AWS credentials: set AWS_PROFILE"), explained():
        raise NoCredentialsError
    with pytest.raises(WrongUsage), explained():
        raise WrongUsage("wrong", "do this")
    assert str(CommandFailed("wrong")) == "wrong"
    assert (CommandFailed.code, WrongUsage.code) == (1, 2)


def test_texts_of_services_are_not_shown_except_for_a_missing_permission() -> None:
    secret = "The Canonical String for this request should have been\n'POST\n/\nx-amz-security-token:SECRET'"
    for code in ("SignatureDoesNotMatch", "InternalError", "ValidationException"):
        problem = explain(service_error(code, secret))
        assert problem is not None
        assert "SECRET" not in problem.what
    denied = "User: arn:aws:iam::1:user/a is not authorized to perform: sqs:sendmessage\x1b[2J because … . More. \nMore"
    problem = explain(service_error("AccessDenied", denied))
    assert problem is not None
    assert "sqs:sendmessage\\x1b[2J" in problem.what
    assert "More" not in problem.what


def test_a_password_in_an_address_is_not_shown() -> None:
    problem = explain(EndpointConnectionError(endpoint_url="http://user:secret@127.0.0.1:1/"))
    assert problem is not None
    assert problem.what == "http://…@127.0.0.1:1/ cannot be reached (EndpointConnectionError)"


def test_each_cause_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Cause)
