"""The HTTP API of the local stack: `routes.http` behind a server that does what API Gateway does for it.

As on AWS, requests are signed for the service `execute-api`, here with the stack's own credentials, and those below
`/client` have a token, which the authorizer verifies, if there is one. In addition it rejects what a web page may have
sent, and listens on 127.0.0.1 only. The path is decoded, and ends at a decoded question mark, as API Gateway has it.
Not emulated: rates, and the size of what Lambda accepts.
"""

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from gatecast.emulator.browser_requests import browser_rejection
from gatecast.emulator.sigv4 import Verifier
from local.aws_environment import CREDENTIALS, REGION
from local.processes import LOOPBACK
from routes.http import handlers

MAX_BODY_BYTES: Final = 10 * 1024 * 1024
"""What API Gateway accepts. Source: its quotas for HTTP APIs."""
CLIENT_PATH: Final = "/client/"
_ACCOUNT_ID: Final = "000000000000"
_ARN: Final = f"arn:aws:execute-api:{REGION}:{_ACCOUNT_ID}:local/$default"
_THREADS: Final = 16
_TEXT: Final = ("text/", "application/json", "application/javascript", "application/xml")
"""The content types whose bodies are passed on as text, all others in Base64. Source: its documents of HTTP APIs."""

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]
Event = dict[str, Any]


class _Context(NamedTuple):
    """What the routes read of Lambda's context."""

    aws_request_id: str
    function_name: str = "gatecast-http"
    memory_limit_in_mb: int = 128
    invoked_function_arn: str = f"arn:aws:lambda:{REGION}:{_ACCOUNT_ID}:function:gatecast-http"


class _Rejected(Exception):
    """A request that reaches no function."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpApi:
    """A server while it is entered. `authorizer` is the handler of the token's authorizer, if clients may call."""

    def __init__(self, authorizer: Handler | None = None) -> None:
        self._authorizer = authorizer
        self._verifier = Verifier({CREDENTIALS.access_key_id: CREDENTIALS}, region=REGION)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="http")
        self._runner: web.ServerRunner | None = None
        self.url = ""
        """Its address, once started."""

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()
        self._pool.shutdown(cancel_futures=True)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        try:
            response = await self._respond(request)
        except _Rejected as rejection:
            return web.json_response({"message": str(rejection)}, status=rejection.status)
        return web.Response(status=response["statusCode"], headers=response["headers"], body=response["body"].encode())

    async def _respond(self, request: web.BaseRequest) -> dict[str, Any]:
        hosts, origins, sites = (request.headers.getall(name, []) for name in ("Host", "Origin", "Sec-Fetch-Site"))
        if reason := browser_rejection(hosts, origins, sites):
            raise _Rejected(HTTPStatus.FORBIDDEN, reason)
        body = await _body(request)
        event = _event(request, body)
        if self._authorizer and event["rawPath"].startswith(CLIENT_PATH):
            event["requestContext"]["authorizer"] = {"lambda": await self._authorized(self._authorizer, event)}
            return await self._invoke(handlers.client, event)
        if self._verifier.verify(request.method, request.raw_path, request.headers, body):
            raise _Rejected(HTTPStatus.FORBIDDEN, "Forbidden")
        event["requestContext"]["authorizer"] = {"iam": {"accessKey": CREDENTIALS.access_key_id}}
        return await self._invoke(handlers.backend, event)

    async def _authorized(self, authorizer: Handler, event: Event) -> Mapping[str, Any]:
        """The authorizer's context. Raises _Rejected."""
        if not event["headers"].get("authorization"):
            raise _Rejected(HTTPStatus.UNAUTHORIZED, "Unauthorized")
        arn = f"{_ARN}/{event['requestContext']['http']['method']}{event['rawPath']}"
        asked = {**event, "version": "1.0", "type": "REQUEST", "methodArn": arn}
        try:
            policy = await self._invoke(authorizer, asked)
        except Exception as error:  # noqa: BLE001 - API Gateway responds to every error of an authorizer
            if str(error) == "Unauthorized":
                raise _Rejected(HTTPStatus.UNAUTHORIZED, "Unauthorized") from None
            raise _Rejected(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error") from None
        if {each["Effect"] for each in policy["policyDocument"]["Statement"]} != {"Allow"}:
            raise _Rejected(HTTPStatus.FORBIDDEN, "Forbidden")
        context: Mapping[str, Any] = policy["context"]
        return context

    async def _invoke(self, handler: Handler, event: Event) -> dict[str, Any]:
        context = _Context(event["requestContext"]["requestId"])
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(handler, event, context))


async def _body(request: web.BaseRequest) -> bytes:
    """Raises _Rejected if it is too long."""
    body = b""
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _Rejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Request Entity Too Large")
    return body


def _event(request: web.BaseRequest, body: bytes) -> Event:
    """An event of payload format 2.0."""
    target, _, query = request.raw_path.partition("?")
    path = unquote(target).partition("?")[0]
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(name, []).append(value)
    lines: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        lines.setdefault(name.lower(), []).append(value)
    headers = {name: ",".join(each) for name, each in lines.items()}
    is_text = headers.get("content-type", "").lower().startswith(_TEXT)
    now = time.time()
    return {
        "version": "2.0",
        "routeKey": "ANY /{proxy+}",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "queryStringParameters": {name: ",".join(each) for name, each in values.items()},
        "requestContext": {
            "accountId": _ACCOUNT_ID,
            "apiId": "local",
            "domainName": request.host,
            "http": {
                "method": request.method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": request.remote or LOOPBACK,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": secrets.token_hex(8),
            "routeKey": "ANY /{proxy+}",
            "stage": "$default",
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "timeEpoch": int(now * 1000),
        },
        "body": body.decode("utf-8", "replace") if is_text else base64.b64encode(body).decode(),
        "isBase64Encoded": not is_text,
    }
