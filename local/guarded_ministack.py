"""Ministack with a guard in front of it, in ministack's own process and virtual environment.

Ministack itself accepts anybody's requests, for all services, among them Lambda, which runs programs on this machine.
The guard passes on only what is signed (AWS Signature Version 4) with the secret of this start, for a service that was
asked for, and was not made by a web page. Everything else is rejected without CORS headers, and has no effect.

`python -m local.guarded_ministack`, configured by ministack's own variables. SERVICES are the services, by the names in
signatures' scopes; GATECAST_LOCAL_SECRET is the secret. Imports only the standard library, ministack, and modules of
this project that need nothing else.
"""

import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final

from local.gateway import sigv4
from local.web_pages import page_rejection

SECRET_VARIABLE: Final = "GATECAST_LOCAL_SECRET"  # noqa: S105 - the variable's name
HEALTH_PATH: Final = "/_ministack/health"

_EXECUTE_API: Final = "execute-api"
_EXECUTE_API_PATH: Final = "/_aws/execute-api/"
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024

Message = Mapping[str, Any]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application that passes requests on to another one, if it may."""

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
                await self._http(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _by_name(scope["headers"])
        if reason := _page_rejection(headers):
            await _respond(send, 403, reason)
        elif scope["path"] == HEALTH_PATH and scope["method"] == "GET":
            await _respond(send, 204, "")  # that it listens, and nothing else
        elif isinstance(authorization := self._authorization(headers), str):
            await _respond(send, 403, authorization)
        elif (body := await _read(receive)) is None:
            await _respond(send, 413, "the body is too large, or was cut off")
        elif not self._is_signed(scope, headers, authorization, body):
            await _respond(send, 403, "the signature is not made with this start's secret")
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Clients of a WebSocket API sign nothing. A deployed API decides whom it lets in."""
        allowed = _EXECUTE_API in self._services and scope["path"].startswith(_EXECUTE_API_PATH)
        if allowed and not _page_rejection(_by_name(scope["headers"])):
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a 403

    def _authorization(self, headers: Mapping[str, list[str]]) -> sigv4.Authorization | str:
        """What the request says of its signature, or why it is rejected without looking any further."""
        found = headers.get("authorization", [])
        if len(found) != 1:
            return "the request is not signed"
        authorization = sigv4.parse_authorization(found[0])
        if isinstance(authorization, sigv4.Rejection):
            return authorization.message
        if authorization.terminator != "aws4_request" or "host" not in authorization.signed_headers:
            return "the request is not signed as AWS's are"
        if authorization.service not in self._services:
            return "the service was not asked for"
        rejection = sigv4.check_date(authorization.date, _first(headers, "x-amz-date"), self._clock())
        return rejection.message if rejection else authorization

    def _is_signed(
        self, scope: Scope, headers: Mapping[str, list[str]], authorization: sigv4.Authorization, body: bytes
    ) -> bool:
        """Any access key id will do: to ministack it is the account, for which Lambda functions use their own."""
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        is_s3 = authorization.service == "s3"
        said = _first(headers, "x-amz-content-sha256")
        canonical = sigv4.canonical_text(
            scope["method"],
            path if is_s3 else sigv4.canonical_path(path),
            query,
            [(name, headers.get(name, [])) for name in authorization.signed_headers],
            # S3's uploads may be signed without their body, which only those who know the secret can do
            said if is_s3 and said.startswith(("UNSIGNED-", "STREAMING-")) else sigv4.body_hash(body),
        )
        timestamp = _first(headers, "x-amz-date")
        return sigv4.is_signed_with(self._secret, authorization, timestamp, canonical)


def _page_rejection(headers: Mapping[str, list[str]]) -> str | None:
    return page_rejection(headers.get("host", []), headers.get("origin", []), headers.get("sec-fetch-site", []))


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("utf-8", "surrogateescape"))
    return found


def _first(headers: Mapping[str, list[str]], name: str) -> str:
    return headers.get(name, [""])[0]


async def _read(receive: Receive) -> bytes | None:
    """The whole body. None if it is too large, or the client went away."""
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
    """A `receive` that gives the body again, and then whatever comes."""
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
    if "lambda" in services:  # functions sign with what is in ministack's own environment
        os.environ["AWS_SECRET_ACCESS_KEY"] = secret
    ministack = import_module("ministack.app")  # not at the top: it reads the environment when it is imported
    ministack.__dict__["app"] = Guard(ministack.app, secret=secret, services=services)  # its main() looks there
    ministack.main()


if __name__ == "__main__":
    main()
