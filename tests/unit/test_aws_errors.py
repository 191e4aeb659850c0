"""How AWS error codes and SDK exceptions map to the ports' errors."""

import msgspec
import pytest
from aiohttp import ClientConnectionError
from botocore.exceptions import ClientError, EndpointConnectionError

from worker.aws.errors import ServiceError, reading_response, sdk_errors, to_error
from worker.ports import DependencyError, MessageRejected, NoResponse, StaleReceipt

RECEIPTS = ("DeleteMessageBatch", "ChangeMessageVisibilityBatch")


@pytest.mark.parametrize("operation", RECEIPTS)
@pytest.mark.parametrize(
    "code",
    [
        "ReceiptHandleIsInvalid",
        "AWS.SimpleQueueService.ReceiptHandleIsInvalid",
        "InvalidParameterValueException",
        "AWS.SimpleQueueService.MessageNotInflight",
    ],
)
def test_a_receipt_handle_that_sqs_no_longer_accepts_is_stale(operation: str, code: str) -> None:
    error = to_error(operation, code)
    assert type(error) is StaleReceipt
    assert error.code == code


@pytest.mark.parametrize("operation", ["SendMessage", "SendMessageBatch"])
@pytest.mark.parametrize(
    "code", ["AWS.SimpleQueueService.BatchRequestTooLong", "InvalidParameterValueException", "InvalidMessageContents"]
)
def test_a_message_that_sqs_never_accepts_is_rejected(operation: str, code: str) -> None:
    assert type(to_error(operation, code)) is MessageRejected


@pytest.mark.parametrize("operation", ["ReceiveMessage", "UpdateItem", *RECEIPTS, "SendMessageBatch"])
@pytest.mark.parametrize("code", ["ThrottlingException", "InternalError", "status 503", "OverLimit", ""])
def test_every_other_error_may_be_retried(operation: str, code: str) -> None:
    error = to_error(operation, code)
    assert type(error) is ServiceError
    assert isinstance(error, DependencyError)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClientError({"Error": {"Code": "AccessDenied", "Message": "secret"}}, "ReceiveMessage"), "AccessDenied"),
        (EndpointConnectionError(endpoint_url="http://secret"), "EndpointConnectionError"),
        (ClientConnectionError("secret"), "ClientConnectionError"),
        (ConnectionResetError("secret"), "ConnectionResetError"),
        (TimeoutError("secret"), "TimeoutError"),
    ],
)
def test_an_sdk_exception_keeps_its_code_but_not_its_message(error: Exception, code: str) -> None:
    with pytest.raises(DependencyError) as raised, sdk_errors():
        raise error
    assert raised.value.code == code
    assert "secret" not in str(raised.value)


def test_a_programming_error_is_not_translated() -> None:
    with pytest.raises(AttributeError), sdk_errors():
        raise AttributeError


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"a": 1}'])
def test_a_malformed_response_counts_as_no_response(body: bytes) -> None:
    with pytest.raises(NoResponse, match="malformed"), reading_response():
        msgspec.json.decode(body, type=dict[str, str])


def test_a_response_with_an_unknown_entry_counts_as_no_response() -> None:
    with pytest.raises(NoResponse), reading_response():
        _ = list[None]()[1]
