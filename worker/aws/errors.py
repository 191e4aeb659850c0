"""Translate errors of AWS, the SDK, HTTP and decoding into the ports' errors. No others leave `worker.aws`.

Sources: the API references of SQS and DynamoDB; botocore's exceptions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from worker.decisions.failure import first_sentence
from worker.ports import DependencyError, MessageRejected, NoResponse, PortError, StaleReceipt

_RECEIPTS: Final = {
    "ReceiptHandleIsInvalid": StaleReceipt,
    "InvalidParameterValue": StaleReceipt,  # what SQS returns for a receipt handle that has expired
    "MessageNotInflight": StaleReceipt,
}
_MESSAGES: Final = {
    "BatchRequestTooLong": MessageRejected,
    "InvalidMessageContents": MessageRejected,
    "InvalidParameterValue": MessageRejected,
}
_CLASSES: Final[Mapping[str, Mapping[str, type[PortError]]]] = {
    "DeleteMessageBatch": _RECEIPTS,
    "ChangeMessageVisibilityBatch": _RECEIPTS,
    "SendMessage": _MESSAGES,
    "SendMessageBatch": _MESSAGES,
}
"""Errors by operation and by a part of their code. All others may succeed when they are retried."""

SDK_ERRORS: Final = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    HttpError,
    msgspec.MsgspecError,
    UnicodeDecodeError,
    OSError,
    TimeoutError,
)
"""What the SDK raises if a service, the network or the credentials fail."""


CONDITION_FAILED: Final = "ConditionalCheckFailedException"
TRANSACTION_CANCELLED: Final = "TransactionCanceledException"
_PROVOKED_REASONS: Final = (b'"ConditionalCheckFailed"', b'"TransactionConflict"')

_REJECTED_REQUESTS: Final = frozenset({
    "AccessDeniedException", "ExpiredTokenException", "IncompleteSignatureException", "InvalidClientTokenId",
    "InvalidSignatureException", "MissingAuthenticationTokenException", "RequestExpired", "SignatureDoesNotMatch",
    "UnrecognizedClientException",
})  # fmt: skip
"""Codes whose message distinguishes a wrong Region, a wrong clock, revoked credentials and a missing permission. The
messages of other errors may contain parts of items."""


class ServiceError(DependencyError):
    """The service returned an error. `detail` is the response's body."""

    def __init__(self, code: str, detail: bytes = b"") -> None:
        super().__init__(code)
        self.detail = detail

    @property
    def reason(self) -> str:
        sentence = first_sentence(self.detail) if self.code in _REJECTED_REQUESTS else ""
        return f"{self.code}: {sentence}" if sentence else self.code

    @property
    def is_provoked(self) -> bool:
        """Whether callers provoke it on purpose, with a condition: then it does not count as a failed call."""
        if self.code == TRANSACTION_CANCELLED:
            return any(reason in self.detail for reason in _PROVOKED_REASONS)
        return self.code == CONDITION_FAILED


def to_error(operation: str, code: str) -> PortError:
    """The error for one entry of a batch, or for a whole call."""
    for part, error in _CLASSES.get(operation, {}).items():
        if part in code:
            return error(code)
    return ServiceError(code)


@contextmanager
def sdk_errors() -> Iterator[None]:
    """Translate what the SDK raises into DependencyError, with its code or class name, never its message."""
    try:
        yield
    except SDK_ERRORS as error:
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", "ClientError"))
            # StaleReceipt is for single entries of a batch: a whole call that fails may succeed when it is retried.
            rejectable = error.operation_name.startswith("SendMessage")
            raise (to_error(error.operation_name, code) if rejectable else ServiceError(code)) from error
        raise DependencyError(type(error).__name__) from error


@contextmanager
def reading_response() -> Iterator[None]:
    """Raise NoResponse if a response does not have the form that the service's API reference specifies."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, LookupError) as error:
        raise NoResponse(f"malformed response ({type(error).__name__})") from error
