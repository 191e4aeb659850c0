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
    """Rooms that begin with @ are the system's: clients neither join, leave nor publish to them."""
    NOT_A_MEMBER = "not_a_member"
    """Only a room's members publish to it: join first."""
    NOT_CONNECTED = "not_connected"
    """The connection is closing, or older than any connection gets."""
    TOO_LARGE = "too_large"
    """More data than can be posted to a client."""
    UNAVAILABLE = "unavailable"
    """Nothing is wrong with the request: try again. Publishing again with the same `id` reaches nobody twice."""
    UNKNOWN_ACTION = "unknown_action"


class Refused(Exception):  # noqa: N818 - it says what became of the request
    """The client's request was refused; the text is for the client."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def ok(action: str, fields: Mapping[str, str]) -> Answer:
    return _message({"type": "ok", "action": action, **fields})


def error(action: str, refused: Refused) -> Answer:
    """`action` is empty where the client's text names none that is known."""
    named = {"action": action} if action else {}
    return _message({"type": "error", **named, "code": refused.code, "message": refused.message})


def status(code: HTTPStatus, headers: Mapping[str, str] | None = None) -> Answer:
    """For `$connect` and `$disconnect`."""
    return {"statusCode": int(code), **({"headers": dict(headers)} if headers else {})}


def _message(body: Mapping[str, str]) -> Answer:
    return {"statusCode": int(HTTPStatus.OK), "body": json.dumps(body)}
