"""The responses that routes return.

A message route always returns one JSON object, `{"type": "ok", …}` or `{"type": "error", …}`, which API Gateway sends
to the client if the route has a route response. Errors have status code 200, too: whether API Gateway passes on the
body of any other status is not documented. `$connect` is the exception: its status decides whether the connection is
upgraded, and its body is discarded.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.frames import MAX_FRAME_BYTES
from gatecast.rooms.errors import Code, RequestRejected

__all__ = [
    "MAX_ECHOED",
    "MAX_MESSAGE_BYTES",
    "RESPONSE_BYTES",
    "ROOM_BYTES",
    "Code",
    "Ref",
    "RequestRejected",
    "Response",
    "echoed",
    "error",
    "error_fields",
    "ok",
    "pong",
    "status",
]

MAX_ECHOED: Final = 100
"""Characters: as many as the longest valid name has."""
RESPONSE_BYTES: Final = 1_024
"""More than a response has besides its rooms: the longest `ref`, `connection` and others."""
ROOM_BYTES: Final = 768
"""More than a response has for a room besides its messages: what the client sent as its name, escaped, and an error."""
MAX_MESSAGE_BYTES: Final = MAX_FRAME_BYTES - RESPONSE_BYTES - ROOM_BYTES - 1
"""The longest message, with its id and other fields, that a response about one room can hold, followed by a comma."""

Response = dict[str, Any]
Ref = str | int | UnsetType
"""What a request's `ref` was, which its response repeats."""


def ok(action: str, fields: Mapping[str, Any], ref: Ref = UNSET) -> Response:
    """`fields` may contain JSON as it is (`msgspec.Raw`), whose bytes are not changed."""
    return _message({"type": "ok", "action": action, **_referring(ref), **fields})


def pong(_action: str, _fields: Mapping[str, Any], ref: Ref = UNSET) -> Response:
    return _message({"type": "pong", **_referring(ref)})


def error(action: str, rejection: RequestRejected, ref: Ref = UNSET) -> Response:
    """`action` is empty if the client's message names no known action."""
    named = {"action": action} if action else {}
    return _message({"type": "error", **named, **_referring(ref), **error_fields(rejection)})


def error_fields(rejection: RequestRejected) -> dict[str, str | int]:
    """Code and message, as in the response to a request, or as one room's error in a response for several rooms."""
    hint = {"retry_after_seconds": rejection.retry_after_seconds} if rejection.retry_after_seconds else {}
    return {"code": rejection.code.value, "message": rejection.message, **hint}


def echoed(text: str) -> str:
    """A client's text that was not validated, as a response repeats it: at most its first MAX_ECHOED characters."""
    return text[:MAX_ECHOED]


def status(code: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    """The response of `$connect` and `$disconnect`."""
    return {"statusCode": int(code), **({"headers": dict(headers)} if headers else {})}


def _referring(ref: Ref) -> dict[str, str | int]:
    return {} if isinstance(ref, UnsetType) else {"ref": ref}


def _message(body: Mapping[str, Any]) -> Response:
    return {"statusCode": int(HTTPStatus.OK), "body": msgspec.json.encode(body).decode()}
