"""Why a command ends without success: one line that says what is wrong, and one remedy.

`explain` makes both of what the SDK raises. Texts of services are not shown, except the one that names a missing
permission: that of a wrong signature repeats the request, and with it the session token.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum, auto
from typing import Any, Final, NamedTuple

from gatecast.printable import printable

_MAX_CHARACTERS: Final = 300
CLOCK_SECONDS: Final = 60
"""A clock that differs more from the services' is reported. They reject signatures from 5 to 15 minutes on."""


class CommandFailed(Exception):
    """The command ends with `code`. `what` is wrong, and `remedy` says what to do; both are for one line."""

    code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class WrongUsage(CommandFailed):
    """An argument or the environment is wrong."""

    code = 2


class Interrupted(CommandFailed):
    """Ctrl-C, where it matters what has been done by then."""

    code = 130


class Cause(StrEnum):
    """What is wrong, if the SDK raises an error."""

    NO_CREDENTIALS = auto()
    EXPIRED_CREDENTIALS = auto()
    UNKNOWN_CREDENTIALS = auto()
    CLOCK = auto()
    REGION = auto()
    DENIED = auto()
    FORBIDDEN = auto()
    """Status 401 or 403 without a code that says why."""
    NO_QUEUE = auto()
    NO_TABLE = auto()
    NO_BUCKET = auto()
    KEYS = auto()
    THROTTLED = auto()
    UNAVAILABLE = auto()
    UNREACHABLE = auto()
    NOT_AWS = auto()
    OTHER = auto()


REMEDIES: Final[Mapping[Cause, str]] = {
    Cause.NO_CREDENTIALS: "set AWS_PROFILE (and run aws sso login), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    Cause.EXPIRED_CREDENTIALS: "sign in again (aws sso login), or set new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
    "and AWS_SESSION_TOKEN",
    Cause.UNKNOWN_CREDENTIALS: "check AWS_PROFILE, or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN: "
    "they must be of one key, which is active",
    Cause.CLOCK: "set this machine's clock, for example with timedatectl set-ntp true",
    Cause.REGION: "set AWS_REGION to the Region of the queue, the table and the API",
    Cause.DENIED: "allow it in a policy of the user or role that AWS_PROFILE or the keys belong to; the stack data has "
    "policies to attach",
    Cause.FORBIDDEN: "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: they must be those of this "
    "account or local stack, and their user or role must be allowed this; check AWS_ENDPOINT_URL… if one is set",
    Cause.NO_QUEUE: "set GATECAST_QUEUE_URL and GATECAST_DEAD_LETTER_QUEUE_URL to the outputs QueueUrl and "
    "DeadLetterQueueUrl of the stack data, and AWS_REGION to its Region",
    Cause.NO_TABLE: "set GATECAST_TABLE to the output TableName of the stack data, and AWS_REGION to its Region",
    Cause.NO_BUCKET: "set GATECAST_PAYLOAD_BUCKET to the output PayloadBucket of the stack data",
    Cause.KEYS: "set GATECAST_TABLE to a table with the key pk (S) and sk (S); keys cannot be changed, so create one",
    Cause.THROTTLED: "retry in a minute; if it continues, ask for a higher quota",
    Cause.UNAVAILABLE: "retry in a minute; if it continues, check the service, and AWS_ENDPOINT_URL… if one is set",
    Cause.UNREACHABLE: "check the network, proxies, AWS_REGION, and AWS_ENDPOINT_URL… if one is set",
    Cause.NOT_AWS: "check proxies, and AWS_ENDPOINT_URL… if one is set",
    Cause.OTHER: "run gatecast doctor",
}


class Problem(NamedTuple):
    cause: Cause
    what: str

    @property
    def remedy(self) -> str:
        return REMEDIES[self.cause]


_BY_CODE: Final[Mapping[str, Cause]] = {
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), Cause.EXPIRED_CREDENTIALS),
    **dict.fromkeys(
        ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "AuthFailure",
         "MissingAuthenticationToken", "MissingAuthenticationTokenException", "InvalidSecurity", "InvalidToken",
         "SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature", "IncompleteSignatureException",
         "InvalidSignature"),
        Cause.UNKNOWN_CREDENTIALS,
    ),
    **dict.fromkeys(("RequestExpired", "RequestTimeTooSkewed"), Cause.CLOCK),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"),
                    Cause.REGION),
    **dict.fromkeys(("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError",
                     "KMS.AccessDeniedException", "KmsAccessDenied"), Cause.DENIED),
    **dict.fromkeys(("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "InvalidAddress"),
                    Cause.NO_QUEUE),
    "ResourceNotFoundException": Cause.NO_TABLE,
    "NoSuchBucket": Cause.NO_BUCKET,
}  # fmt: skip
"""Sources: the common errors of AWS's APIs, the API references of SQS, DynamoDB and S3."""
_FORBIDDEN: Final = frozenset({401, 403})
_SERVER_ERROR: Final = 500
_WITH_STATUS: Final = frozenset({Cause.FORBIDDEN, Cause.UNAVAILABLE, Cause.OTHER})
_CREDENTIAL_ERRORS: Final = frozenset({
    "CredentialRetrievalError", "NoAuthTokenError", "NoCredentialsError", "PartialCredentialsError", "SSOError",
    "SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError",
})  # fmt: skip
_CONNECTION_ERRORS: Final = frozenset({"ConnectionError", "HTTPClientError", "OSError"})
"""By the names of their classes, botocore's and Python's own, so that this module loads no SDK."""


def explain(error: Exception) -> Problem | None:
    """What is wrong if the SDK raised this error; None if it is another error, and so a mistake in this program."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return _explain_response(response, str(getattr(error, "operation_name", "")))
    names = {each.__name__ for each in type(error).__mro__}
    name = type(error).__name__
    if names & _CREDENTIAL_ERRORS:
        expired = "expired" in str(error).lower() or name == "UnauthorizedSSOTokenError"
        missing = name == "NoCredentialsError"
        what = "there are no AWS credentials" if missing else f"the AWS credentials cannot be used ({name})"
        return Problem(Cause.EXPIRED_CREDENTIALS if expired else Cause.NO_CREDENTIALS, what)
    if names & _CONNECTION_ERRORS:
        url = getattr(error, "kwargs", {}).get("endpoint_url", "")
        return Problem(Cause.UNREACHABLE, f"{_without_password(url) or 'the service'} cannot be reached ({name})")
    if "ResponseParserError" in names:
        return Problem(Cause.NOT_AWS, "a response is not one of AWS")
    return Problem(Cause.OTHER, f"the AWS SDK failed ({name})") if "BotoCoreError" in names else None


@contextmanager
def explained() -> Iterator[None]:
    """Raises CommandFailed in place of what the SDK raises. Other errors pass through."""
    try:
        yield
    except CommandFailed:
        raise
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        raise CommandFailed(problem.what, problem.remedy) from error


def _explain_response(response: Mapping[str, Any], operation: str) -> Problem:
    found = response.get("Error", {})
    code, message = str(found.get("Code", "unknown error")), str(found.get("Message", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    cause = _cause(code, message, status)
    what = f"{operation} failed ({code})" if operation else code
    if cause is Cause.DENIED and message:
        what = f"{operation} is not allowed ({_first_sentence(message)})"
    elif cause in _WITH_STATUS and status:
        what = f"{operation} failed ({code}, status {status})"
    return Problem(cause, printable(what))


def _cause(code: str, message: str, status: int) -> Cause:
    cause = _BY_CODE.get(code, Cause.OTHER)
    if cause is Cause.UNKNOWN_CREDENTIALS:
        if re.search(r"signature (?:expired|not yet current)|not yet current", message, re.IGNORECASE):
            cause = Cause.CLOCK
        elif "scoped to a valid region" in message:
            cause = Cause.REGION
    elif cause is Cause.OTHER and "expired" in message.lower() and "token" in message.lower():
        cause = Cause.EXPIRED_CREDENTIALS
    elif code == "ValidationException" and "does not match the schema" in message:
        cause = Cause.KEYS
    elif "Throttl" in code or code in {"RequestLimitExceeded", "TooManyRequestsException", "OverLimit"}:
        cause = Cause.THROTTLED
    elif cause is Cause.OTHER and "not authorized to perform" in message:
        cause = Cause.DENIED
    return _cause_of_status(status) if cause is Cause.OTHER else cause


def _cause_of_status(status: int) -> Cause:
    if status in _FORBIDDEN:
        return Cause.FORBIDDEN
    return Cause.UNAVAILABLE if status >= _SERVER_ERROR else Cause.OTHER


def _first_sentence(text: str) -> str:
    sentence = re.split(r"(?<=\.)\s|\n", text.strip(), maxsplit=1)[0].rstrip(".")
    return sentence if len(sentence) <= _MAX_CHARACTERS else f"{sentence[: _MAX_CHARACTERS - 1]}…"


def _without_password(url: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", url)
