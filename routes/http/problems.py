"""Errors as `application/problem+json` (RFC 9457), with the codes of the WebSocket protocol."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from routes.responses import Code, RequestRejected, Response

RETRY_SECONDS: Final = 1
"""`Retry-After` of what is unavailable: SDK calls have failed for some seconds already."""
_STATUSES: Final = {
    Code.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Code.FORBIDDEN_ROOM: HTTPStatus.FORBIDDEN,
    Code.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED,
    Code.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNKNOWN_ACTION: HTTPStatus.NOT_FOUND,
}
"""All codes that a request over HTTP can get."""


class HttpRejected(RequestRejected):
    """A rejection whose status does not follow from its code. `extra` are further members of the problem."""

    def __init__(
        self,
        status: HTTPStatus,
        code: Code,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message)
        self.status = status
        self.headers = headers or {}
        self.extra = extra or {}


def unsupported(message: str) -> HttpRejected:
    """The rejection of a body whose type is not supported."""
    return HttpRejected(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, Code.BAD_REQUEST, message)


def response(status: HTTPStatus, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """`body` may contain JSON as it is (`msgspec.Raw`). Nothing is cached: links in it are secrets."""
    return {
        "statusCode": int(status),
        "headers": {"content-type": "application/json", "cache-control": "no-store", **(headers or {})},
        "body": msgspec.json.encode(body).decode(),
    }


def problem(rejection: RequestRejected) -> Response:
    """The response to a rejected request."""
    status, headers, extra = _STATUSES.get(rejection.code, HTTPStatus.BAD_REQUEST), {}, {}
    if isinstance(rejection, HttpRejected):
        status, headers, extra = rejection.status, dict(rejection.headers), dict(rejection.extra)
    retry_after = RETRY_SECONDS if rejection.code is Code.UNAVAILABLE else rejection.retry_after_seconds
    if retry_after:
        headers["retry-after"] = str(retry_after)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    body = {
        "title": status.phrase,
        "status": int(status),
        "detail": rejection.message,
        "code": rejection.code.value,
        **({"retry_after_seconds": retry_after} if retry_after else {}),
        **extra,
    }
    return response(status, body, {"content-type": "application/problem+json", **headers})
