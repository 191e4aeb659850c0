"""Errors of AWS, of the SDK, of HTTP and of decoding, as the ports' own. No other error of theirs leaves `worker.aws`.

Sources: the API references of SQS and DynamoDB; botocore's exceptions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from worker.ports import DependencyError, MessageRejected, NoResponse, PortError, StaleReceipt

_RECEIPTS: Final = {
    "ReceiptHandleIsInvalid": StaleReceipt,
    "InvalidParameterValue": StaleReceipt,  # what SQS says of a receipt handle that has expired
    "MessageNotInflight": StaleReceipt,
}
_MESSAGES: Final = {
    "BatchRequestTooLong": MessageRejected,
    "InvalidMessageContents": MessageRejected,
    "InvalidParameterValue": MessageRejected,
}
CLASSES: Final[Mapping[str, Mapping[str, type[PortError]]]] = {
    "DeleteMessageBatch": _RECEIPTS,
    "ChangeMessageVisibilityBatch": _RECEIPTS,
    "SendMessage": _MESSAGES,
    "SendMessageBatch": _MESSAGES,
}
"""By operation and by a part of the error's code. What is not here may succeed when it is retried."""

SDK_ERRORS: Final = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    HttpError,
    msgspec.MsgspecError,
    OSError,
    TimeoutError,
)
"""What the SDK raises when a service, the network or the credentials are at fault."""


class ServiceError(DependencyError):
    """The service returned an error. `detail` is the response's body."""

    def __init__(self, code: str, detail: bytes = b"") -> None:
        super().__init__(code)
        self.detail = detail


def to_error(operation: str, code: str) -> PortError:
    """The error of an entry of a batch, or of a whole call."""
    for part, error in CLASSES.get(operation, {}).items():
        if part in code:
            return error(code)
    return ServiceError(code)


@contextmanager
def sdk_errors() -> Iterator[None]:
    """Raises DependencyError for what the SDK raises, with its code or its class, never its message."""
    try:
        yield
    except SDK_ERRORS as error:
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", "ClientError"))
            raise to_error(error.operation_name, code) from error
        raise DependencyError(type(error).__name__) from error


@contextmanager
def reading_response() -> Iterator[None]:
    """Raises NoResponse if what the service returned is not what its API reference says."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, LookupError) as error:
        raise NoResponse(f"malformed response ({type(error).__name__})") from error
