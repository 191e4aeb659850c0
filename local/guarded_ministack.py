"""Ministack behind a middleware that verifies signatures, in ministack's own process and virtual environment.

Ministack itself accepts unauthenticated requests to all services, including Lambda, which runs programs on this
machine. The middleware passes on only requests that are signed (AWS Signature Version 4) with this run's secret, are
for an enabled service, and were not made by a web page. All others are rejected without CORS headers, and have no
effect. Presigned URLs of S3's objects may be read by web pages as well, as on AWS: the signature in the URL shows that
one of this run's programs has made it for this object.

`python -m local.guarded_ministack`, configured by ministack's own variables. SERVICES are the services, by the names in
signatures' scopes; GATECAST_LOCAL_SECRET is the secret. It imports only the standard library, ministack, and modules of
this project that have no other dependencies.
"""

import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final
from urllib.parse import parse_qs

from gatecast.emulator import sigv4
from gatecast.emulator.browser_requests import browser_rejection, host_rejection

SECRET_VARIABLE: Final = "GATECAST_LOCAL_SECRET"  # noqa: S105 - the variable's name
HEALTH_PATH: Final = "/_ministack/health"

_EXECUTE_API: Final = "execute-api"
_EXECUTE_API_PATH: Final = "/_aws/execute-api/"
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_SIGNATURE: Final = b"X-Amz-Signature"
_PRESIGNED: Final = ("Credential", "SignedHeaders", "Signature")

Message = Mapping[str, Any]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SignatureMiddleware:
    """ASGI middleware that passes only permitted requests on to `app`."""

    def __init__(
        self, app: App, *, secret: str, services: Iterable[str], clock: Callable[[], float] = time.time
    ) -> None:
        self._app = app
        self._secret = secret
        self._services = frozenset(services)
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._handle_http(scope, receive, send)
            case "websocket":
                await self._handle_websocket(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _by_name(scope["headers"])
        if "s3" in self._services and _SIGNATURE in scope["query_string"]:
            if reason := self._presigned_rejection(scope, headers):
                await _respond(send, 403, reason)
            else:
                await self._app(scope, receive, send)
        elif reason := _browser_rejection(headers):
            await _respond(send, 403, reason)
        elif scope["path"] == HEALTH_PATH and scope["method"] == "GET":
            await _respond(send, 204, "")  # shows only that it listens
        elif isinstance(authorization := self._authorization(headers), str):
            await _respond(send, 403, authorization)
        elif (body := await _read(receive)) is None:
            await _respond(send, 413, "the body is too large or incomplete")
        elif not self._is_signed(scope, headers, authorization, body):
            await _respond(send, 403, "the signature was not made with this run's secret")
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """WebSocket clients do not sign their requests. A deployed API's own authorizer admits them."""
        allowed = _EXECUTE_API in self._services and scope["path"].startswith(_EXECUTE_API_PATH)
        if allowed and not _browser_rejection(_by_name(scope["headers"])):
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a 403

    def _authorization(self, headers: Mapping[str, list[str]]) -> sigv4.Authorization | str:
        """The parsed `Authorization` header, or why the request is rejected without verifying a signature."""
        found = headers.get("authorization", [])
        if len(found) != 1:
            return "the request is not signed"
        authorization = sigv4.parse_authorization(found[0])
        if isinstance(authorization, sigv4.Rejection):
            return authorization.message
        if authorization.terminator != "aws4_request" or "host" not in authorization.signed_headers:
            return "the request has no valid AWS signature"
        if authorization.service not in self._services:
            return "the service is not enabled"
        rejection = sigv4.check_date(authorization.date, _first(headers, "x-amz-date"), self._clock())
        return rejection.message if rejection else authorization

    def _presigned_rejection(self, scope: Scope, headers: Mapping[str, list[str]]) -> str | None:
        """Why a request with a presigned URL is rejected; None if the URL was signed with this run's secret."""
        if reason := host_rejection(headers.get("host", [])):
            return reason
        query = scope["query_string"].decode("latin-1")
        pairs = [pair for pair in query.split("&") if pair.partition("=")[0] != _SIGNATURE.decode()]
        given = {name: values[0] for name, values in parse_qs(query).items()}
        found = ", ".join(f"{name}={given.get(f'X-Amz-{name}', '')}" for name in _PRESIGNED)
        authorization = sigv4.parse_authorization(f"{given.get('X-Amz-Algorithm', '')} {found}")
        if isinstance(authorization, sigv4.Rejection) or scope["method"] not in ("GET", "HEAD"):
            return "the URL is not a valid presigned one"
        if authorization.service != "s3" or authorization.signed_headers != ("host",):
            return "the service is not enabled"
        canonical = sigv4.canonical_text(
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            "&".join(pairs),
            [("host", headers["host"])],
            "UNSIGNED-PAYLOAD",
        )
        if not sigv4.is_signed_with(self._secret, authorization, given.get("X-Amz-Date", ""), canonical):
            return "the signature was not made with this run's secret"
        return None  # whether the URL has ended is checked by ministack

    def _is_signed(
        self, scope: Scope, headers: Mapping[str, list[str]], authorization: sigv4.Authorization, body: bytes
    ) -> bool:
        """Whether the signature is valid.

        Any access key id is accepted: ministack uses it as the account id, and Lambda functions have their own.
        """
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        is_s3 = authorization.service == "s3"
        payload_hash = _first(headers, "x-amz-content-sha256")
        canonical = sigv4.canonical_text(
            scope["method"],
            path if is_s3 else sigv4.canonical_path(path),
            query,
            [(name, headers.get(name, [])) for name in authorization.signed_headers],
            # S3 uploads may be signed without their body; even that requires the secret
            payload_hash if is_s3 and payload_hash.startswith(("UNSIGNED-", "STREAMING-")) else sigv4.body_hash(body),
        )
        timestamp = _first(headers, "x-amz-date")
        return sigv4.is_signed_with(self._secret, authorization, timestamp, canonical)


def _browser_rejection(headers: Mapping[str, list[str]]) -> str | None:
    return browser_rejection(headers.get("host", []), headers.get("origin", []), headers.get("sec-fetch-site", []))


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("utf-8", "surrogateescape"))
    return found


def _first(headers: Mapping[str, list[str]], name: str) -> str:
    return headers.get(name, [""])[0]


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None if it is too large or the client disconnected."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body, and then all further messages."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def _respond(send: Send, status: int, text: str) -> None:
    body = text.encode("ascii", "replace")
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())] if body else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    secret, services = os.environ.pop(SECRET_VARIABLE, ""), os.environ.get("SERVICES", "").split(",")
    if not secret or not all(services):
        sys.exit(f"{SECRET_VARIABLE} and SERVICES must be set")
    if {"lambda", "s3"} & set(services):  # functions sign with these credentials, and presigned URLs are verified
        os.environ["AWS_SECRET_ACCESS_KEY"] = secret
    ministack = import_module("ministack.app")  # imported here because it reads the environment on import
    guarded = SignatureMiddleware(ministack.app, secret=secret, services=services)
    ministack.__dict__["app"] = guarded  # its main() uses this attribute
    ministack.main()


if __name__ == "__main__":
    main()
