"""An event of an HTTP API as a request, and the client that sent it. Pure.

API Gateway decodes the path, so that `%2F` arrives as a slash: a room's name may contain slashes either way. It has
verified who sent the request, and the request context, which it writes, is trusted.
"""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from routes.access import AuthorizerContext
from routes.environment import ConfigurationError
from routes.requests import Caller
from routes.responses import Code, RequestRejected


class _Http(msgspec.Struct):
    method: str


class _RequestContext(msgspec.Struct, rename="camel"):
    http: _Http
    time_epoch: int
    authorizer: dict[str, Any] | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request. Names of headers are in lower case; `requested_at_ms` is milliseconds since the epoch."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    requested_at_ms: int
    authorizer: Mapping[str, Any]

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Request":
        """Raises KeyError or ValueError if it is not an HTTP API's event, RequestRejected if its body is damaged."""
        context = msgspec.convert(event["requestContext"], _RequestContext)
        return cls(
            method=context.http.method.upper(),
            path=event["rawPath"],
            query=event.get("queryStringParameters") or {},
            headers={name.lower(): value for name, value in (event.get("headers") or {}).items()},
            body=_body(event),
            requested_at_ms=context.time_epoch,
            authorizer=context.authorizer or {},
        )

    @property
    def content_type(self) -> str:
        """Of the body; empty without one."""
        return self.headers.get("content-type", "").strip()

    def check_query(self, *names: str) -> None:
        """Raises RequestRejected (bad_request) if there are others: a mistyped one must not be ignored."""
        if set(self.query) - set(names):
            expected = " and ".join(f"`{name}`" for name in names) or "none"
            raise RequestRejected(Code.BAD_REQUEST, f"unknown query parameter: expected {expected}")

    def check_iam(self) -> None:
        """Raises ConfigurationError unless API Gateway has authorized the request with IAM."""
        if not isinstance(self.authorizer.get("iam"), Mapping):
            raise ConfigurationError("the request is not authorized: set AWS_IAM on the API's route")

    def client(self) -> Caller:
        """Who the token's authorizer says that it is. Raises ConfigurationError if no authorizer has."""
        context = self.authorizer.get("lambda")
        found = AuthorizerContext.from_event(context) if isinstance(context, Mapping) else AuthorizerContext()
        access = found.access()
        if found.user is None or access is None:
            raise ConfigurationError("no authorizer has granted access: attach the authorizer to the API's route")
        return Caller(
            connection_id="",
            connected_at_ms=self.requested_at_ms,
            requested_at_ms=self.requested_at_ms,
            user=found.user,
            access=access,
        )


def _body(event: Mapping[str, Any]) -> bytes:
    """API Gateway sends what is no text, by its content type, in Base64."""
    body = event.get("body") or ""
    try:
        return base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else body.encode()
    except ValueError:
        raise RequestRejected(Code.BAD_REQUEST, "the body is not valid UTF-8") from None
