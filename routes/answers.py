"""What a route answers.

A message route always answers a client's message with one JSON object, `{"type": "ok", …}` or `{"type": "error", …}`,
which API Gateway sends to the client if the route has a route response. Errors keep status code 200 too: whether
API Gateway passes on the body of another status is not documented. `$connect` is the exception: its status decides
the upgrade, and its body reaches nobody.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

Answer = dict[str, Any]


class Code(StrEnum):
    """Why a client's message was refused. Clients may rely on these; the message beside one is for people."""

    BAD_REQUEST = "bad_request"
    """Not a JSON object, or a field, which the message names, is missing, of the wrong type or out of range."""
    FORBIDDEN_ROOM = "forbidden_room"
    """The token does not allow it; or the room begins with @ and is the system's, which no client joins, leaves or
    publishes to."""
    NOT_A_MEMBER = "not_a_member"
    """Only a room's members publish to it: join first."""
    NOT_CONNECTED = "not_connected"
    """The connection is closing, or older than any connection gets."""
    RATE_LIMITED = "rate_limited"
    """Too many of these in too short a time: try again after `retry_after_seconds`, which stands beside the code."""
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code, no password
    """The time of the token with which the client connected is up: connect again with a new one."""
    TOO_LARGE = "too_large"
    """More data than can be posted to a client."""
    UNAVAILABLE = "unavailable"
    """Nothing is wrong with the request: try again. Publishing again with the same `id` reaches nobody twice."""
    UNKNOWN_ACTION = "unknown_action"


class Refused(Exception):  # noqa: N818 - it says what became of the request
    """The client's request was refused; the text is for the client, and nothing of what it sent stands in it."""

    def __init__(self, code: Code, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


def ok(action: str, fields: Mapping[str, str]) -> Answer:
    return _message({"type": "ok", "action": action, **fields})


def error(action: str, refused: Refused) -> Answer:
    """`action` is empty where the client's text names none that is known."""
    named = {"action": action} if action else {}
    hint = {"retry_after_seconds": refused.retry_after_seconds} if refused.retry_after_seconds else {}
    return _message({"type": "error", **named, "code": refused.code, "message": refused.message, **hint})


def status(code: HTTPStatus, headers: Mapping[str, str] | None = None) -> Answer:
    """For `$connect` and `$disconnect`."""
    return {"statusCode": int(code), **({"headers": dict(headers)} if headers else {})}


def _message(body: Mapping[str, str | int]) -> Answer:
    return {"statusCode": int(HTTPStatus.OK), "body": json.dumps(body)}
