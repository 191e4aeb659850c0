"""HTTP/1.1 as it is on the wire: signed requests, responses with all their headers, and how a connection ends.

An SDK would hide what the probes are about: the order and names of headers, bodies, closed connections. Signatures are
made here so that they can be wrong on purpose.

Source: "Create a signed AWS API request" in the IAM user guide; a test compares the result with botocore's.
"""

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote, urlsplit

TIMEOUT_SECONDS: Final = 30.0
MAX_HEAD_BYTES: Final = 65_536
SILENCE: Final = "silence"

_SERVICE: Final = "execute-api"
_WITHOUT_BODY: Final = (HTTPStatus.SWITCHING_PROTOCOLS, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_SHOWN_CHARACTERS: Final = 160


class NoResponse(Exception):
    """The connection ended, or nothing arrived in time; the message says which."""


class Keys(NamedTuple):
    """AWS credentials."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


class Response(NamedTuple):
    """A response as it arrived; header names have the case and order of the wire."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """The value of the first header of that name, or the empty string."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


def describe(response: Response) -> str:
    """One line: status, names of headers, error type, content type, and the shape of the body. No other values."""
    parts = [f"{response.status}", f"headers {', '.join(name for name, _ in response.headers) or 'none'}"]
    parts += [f"error type {value}" for value in [response.header("x-amzn-errortype")] if value]
    parts += [f"content type {value}" for value in [response.header("content-type")] if value]
    return "; ".join([*parts, f"body {_shape(response.body)}"])


def sign(method: str, url: str, body: bytes, *, keys: Keys, region: str, signed_at: datetime) -> dict[str, str]:
    """The headers of a request signed with AWS Signature Version 4 for execute-api. The URL has no query."""
    parts = urlsplit(url)
    timestamp = signed_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": parts.netloc, "x-amz-date": timestamp}
    if keys.session_token:
        headers["x-amz-security-token"] = keys.session_token
    names = ";".join(sorted(headers))
    lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
    path = quote(parts.path or "/", safe="/~")
    canonical = "\n".join([method, path, "", *lines, "", names, hashlib.sha256(body).hexdigest()])
    scope = f"{timestamp[:8]}/{region}/{_SERVICE}/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", timestamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (timestamp[:8], region, _SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    credential = f"Credential={keys.access_key_id}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return headers


class Connection:
    """One TCP connection to the server of a URL, with TLS for https and wss. `close` it at the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Self:
        """Raises NoResponse."""
        parts = urlsplit(url)
        tls = ssl.create_default_context() if parts.scheme in {"https", "wss"} else None
        port = parts.port or (443 if tls else 80)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=MAX_HEAD_BYTES)
        except (OSError, TimeoutError) as error:
            raise NoResponse(f"no connection: {_reason(error)}") from error
        return cls(reader, writer)

    async def exchange(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes = b"",
        *,
        within_seconds: float | None = None,
    ) -> Response:
        """Send a request and read its response. Raises NoResponse."""
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if body or method == "POST":
            lines.append(f"content-length: {len(body)}")
        try:
            async with asyncio.timeout(within_seconds or TIMEOUT_SECONDS):
                self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                await self._writer.drain()
                return await self._read()
        except TimeoutError as error:
            raise NoResponse(f"{SILENCE}: nothing arrived in time") from error
        except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise NoResponse(_reason(error)) from error

    async def end(self, within_seconds: float) -> str | None:
        """How the server ends the idle connection: FIN, RST or data; None if it stays open for that time."""
        try:
            async with asyncio.timeout(within_seconds):
                data = await self._reader.read(1)
        except TimeoutError:
            return None
        except OSError as error:
            return _reason(error)
        return "data that nobody asked for" if data else "FIN"

    def close(self) -> None:
        self._writer.transport.abort()

    async def _read(self) -> Response:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        status = int(first.split(" ")[1])
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        response = Response(status, headers)
        if status in _WITHOUT_BODY:
            return response
        if response.header("transfer-encoding").lower() == "chunked":
            return response._replace(body=await self._read_chunks())
        if length := response.header("content-length"):
            return response._replace(body=await self._reader.readexactly(int(length)))
        return response._replace(body=await self._reader.read())

    async def _read_chunks(self) -> bytes:
        chunks = []
        while size := int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            chunks.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        while await self._reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
        return b"".join(chunks)


class Management:
    """Calls of `@connections` below an endpoint, each on a connection of its own.

    `keys` returns the current credentials, which may be renewed.
    """

    def __init__(self, endpoint: str, *, keys: Callable[[], Keys], region: str, now: Callable[[], datetime]) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.region = region
        self.now = now

    def url(self, connection_id: str) -> str:
        return f"{self.endpoint}/%40connections/{quote(connection_id, safe='')}"

    async def call(
        self,
        method: str,
        connection_id: str,
        body: bytes = b"",
        *,
        keys: Keys | None = None,
        region: str | None = None,
        signed_at: datetime | None = None,
    ) -> Response:
        """One call. The optional arguments replace those of a valid signature. Raises NoResponse."""
        url = self.url(connection_id)
        headers = sign(
            method, url, body, keys=keys or self.keys(), region=region or self.region, signed_at=signed_at or self.now()
        )
        return await request(method, url, headers, body)

    async def post(self, connection_id: str, body: bytes = b"{}") -> Response:
        return await self.call("POST", connection_id, body)


async def request(method: str, url: str, headers: dict[str, str], body: bytes = b"") -> Response:
    """One request on a connection of its own. Raises NoResponse."""
    connection = await Connection.open(url)
    try:
        return await connection.exchange(method, target(url), headers, body)
    finally:
        connection.close()


def target(url: str) -> str:
    """What a request line has of a URL: path and query."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _reason(error: Exception) -> str:
    match error:
        case ConnectionResetError() | BrokenPipeError():
            return "RST"
        case EOFError():
            return "FIN"
        case _:
            return type(error).__name__


def _shape(body: bytes) -> str:
    if not body:
        return "empty"
    try:
        decoded: Any = json.loads(body)
    except ValueError:
        return f"of {len(body):,} bytes that are not JSON"
    if not isinstance(decoded, dict):
        return f"JSON, a {type(decoded).__name__}"
    fields = ", ".join(f"{name}: {type(value).__name__}" for name, value in decoded.items())
    message = decoded.get("message", decoded.get("Message"))
    first = f", message {message.splitlines()[0][:_SHOWN_CHARACTERS]!r}" if isinstance(message, str) and message else ""
    return f"JSON {{{fields}}}{first}"
