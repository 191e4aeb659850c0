"""Integrations outside this process: functions behind Lambda's Invoke API, and HTTP endpoints.

The Invoke API is that of AWS, SAM's `start-lambda`, Lambda's runtime interface emulator, LocalStack and others:
`POST …/2015-03-31/functions/{name}/invocations`, the event as JSON, the function's result as JSON. Calls are signed,
for servers that require it. Redirects are not followed, and no proxy is used.
"""

import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from gatecast.emulator.events import Event
from gatecast.emulator.sigv4 import Credentials, sign

INVOKE_PATH: Final = "/2015-03-31/functions/{}/invocations"
REQUEST_HEADER: Final = "integration.request.header."
REQUEST_QUERY: Final = "integration.request.querystring."
_FUNCTION_NAME: Final = re.compile(r"/functions/([^/]+)/invocations\Z")
_CONNECTIONS: Final = 100


class RemoteError(Exception):
    """A function or an endpoint failed, or could not be reached. Of a function that raised, the text is its message."""


class LambdaFunction(NamedTuple):
    """A function behind an Invoke API; `url` is the whole address of its invocations."""

    name: str
    url: str

    @classmethod
    def at(cls, endpoint: str, name: str) -> Self:
        """The function of that name at an endpoint, such as `http://127.0.0.1:3001`."""
        return cls(name, f"{endpoint.rstrip('/')}{INVOKE_PATH.format(quote(name, safe=''))}")

    @classmethod
    def from_url(cls, url: str) -> Self:
        """The function at an address of its own. Raises ValueError."""
        found = _FUNCTION_NAME.search(urlsplit(url).path)
        if not found:
            raise ValueError(f"{url!r}: expected a URL that ends in {INVOKE_PATH.format('NAME')}")
        return cls(found[1], url)


class HttpProxy(NamedTuple):
    """An HTTP_PROXY integration: a message is the body of a request, and its response is the integration's.

    `parameters` are those of API Gateway, for example `integration.request.header.ConnectionId` with the value
    `context.connectionId`. Nothing else of a connection reaches the endpoint.
    """

    url: str
    method: str = "POST"
    parameters: Mapping[str, str] = {}


class Remote:
    """Makes the calls, on connections that are kept alive. `close` it on the event loop that it was used on.

    Functions are invoked in `region`, signed with `credentials`.
    """

    def __init__(self, *, region: str, credentials: Credentials) -> None:
        self._region = region
        self._credentials = credentials
        self._opened: aiohttp.ClientSession | None = None

    async def invoke(self, function: LambdaFunction, event: Event) -> Any:
        """What the function returned. Raises RemoteError."""
        body = json.dumps(event).encode()
        url = urlsplit(function.url)
        signed = sign(
            "POST",
            url.path,
            body,
            host=url.netloc,
            service="lambda",
            region=self._region,
            credentials=self._credentials,
            now=time.time(),
        )
        headers = {**signed, "Content-Type": "application/json", "X-Amz-Invocation-Type": "RequestResponse"}
        status, response_headers, data = await self._call("POST", URL(function.url, encoded=True), headers, body)
        if not 200 <= status < 300:  # noqa: PLR2004
            raise RemoteError(f"{function.url}: status {status}")
        try:
            result = json.loads(data) if data.strip() else None
        except ValueError:
            raise RemoteError(f"{function.url}: the response is not JSON") from None
        if "x-amz-function-error" in response_headers or _is_error(result):
            raise RemoteError(str(result.get("errorMessage", "")) if isinstance(result, dict) else "")
        return result

    async def request(self, proxy: HttpProxy, event: Event) -> tuple[int, dict[str, str], str]:
        """The endpoint's status, headers by lower-case name, and body. Raises RemoteError."""
        values = {name: parameter(source, event) for name, source in proxy.parameters.items()}
        given = {name: value for name, value in values.items() if value is not None}
        headers = {name.removeprefix(REQUEST_HEADER): value for name, value in given.items() if REQUEST_HEADER in name}
        query = {name.removeprefix(REQUEST_QUERY): value for name, value in given.items() if REQUEST_QUERY in name}
        body = (event.get("body") or "").encode()
        status, response_headers, data = await self._call(
            proxy.method, URL(proxy.url).extend_query(query), headers, body
        )
        return status, response_headers, data.decode(errors="replace")

    async def close(self) -> None:
        if self._opened:
            await self._opened.close()

    async def _call(
        self, method: str, url: URL, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None),  # the caller's timeout is the integration's
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            async with self._opened.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
                return (
                    response.status,
                    {name.lower(): value for name, value in response.headers.items()},
                    (await response.read()),
                )
        except (aiohttp.ClientError, ValueError) as error:
            raise RemoteError(f"{url.origin()}: {type(error).__name__}: {error}") from error


def check_parameter(name: str, source: str) -> None:
    """Raises ValueError for a request parameter that is not emulated."""
    if not any(name.startswith(prefix) and name != prefix for prefix in (REQUEST_HEADER, REQUEST_QUERY)):
        raise ValueError(f"expected {REQUEST_HEADER}NAME or {REQUEST_QUERY}NAME")
    parameter(source, {"requestContext": {}})


def parameter(source: str, event: Event) -> str | None:
    """The value of a request parameter: `'text'`, or a field of the context, a header, the query or the message.

    None if there is none. Raises ValueError for any other source.
    """
    if len(source) > 1 and source[0] == source[-1] == "'":
        return source[1:-1]
    kind, _, name = source.removeprefix("route.request.").partition(".")
    match kind if name else "":
        case "context":
            value: Any = event["requestContext"]
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        case "header":
            headers = {key.lower(): value for key, value in event.get("headers", {}).items()}
            value = headers.get(name.lower())
        case "querystring":
            value = event.get("queryStringParameters", {}).get(name)
        case "body":
            value = _body_field(event.get("body") or "", name)
        case _:
            raise ValueError(
                f"{source!r}: expected context.NAME, route.request.header.NAME, route.request.querystring.NAME, "
                "route.request.body.NAME or a text in single quotes"
            )
    return None if value is None or isinstance(value, dict | list) else str(value)


def _body_field(message: str, path: str) -> Any:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return None
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_error(result: Any) -> bool:
    """The runtime interface emulator marks an error only in the body."""
    return isinstance(result, dict) and {"errorMessage", "errorType"} <= result.keys()
