"""The responses of the `@connections` API: statuses, headers and bodies.

Recorded from real APIs: a 410 has an empty body and its error name only in `x-amzn-ErrorType`; a malformed connection
id gets a 400; an unknown path gets a 403 with `{"message":"Forbidden"}`. The two kinds of 429, of the account and of
one client, are identical.
"""

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from gatecast.emulator.client import Client


@dataclass(frozen=True, slots=True)
class Response:
    """A response, independent of HTTP's framing."""

    status: int
    error_type: str = ""
    body: bytes = b""
    content_type: str = "application/json"

    @classmethod
    def error(cls, status: int, error_type: str, message: str) -> "Response":
        return cls(status, error_type, json.dumps({"message": message}).encode())

    def truncated(self, *, within: str) -> bytes:
        """The bytes of a response that is cut off within its "headers" or its "body"."""
        status_line = f"HTTP/1.1 {self.status} Cut\r\nContent-Le"
        return f"{status_line}ngth: 100\r\n\r\n{{".encode() if within == "body" else status_line.encode()

    def to_response(self) -> web.Response:
        """As aiohttp's response, with a new request id."""
        headers = {"x-amzn-RequestId": str(uuid.uuid4())}
        if self.error_type:
            headers["x-amzn-ErrorType"] = self.error_type
        content_type = self.content_type if self.body else None
        return web.Response(status=self.status, body=self.body or None, content_type=content_type, headers=headers)


OK: Final = Response(200)
DELETED: Final = Response(204)
GONE: Final = Response(410, "GoneException")
FORBIDDEN: Final = Response.error(403, "ForbiddenException", "Forbidden")
TOO_LARGE: Final = Response.error(413, "PayloadTooLargeException", "Message too long")
LIMIT_EXCEEDED: Final = Response.error(429, "LimitExceededException", "Limit exceeded")
NOT_TEXT: Final = Response.error(400, "BadRequestException", "Data is not valid UTF-8")


def description(client: Client) -> Response:
    """The response to a GET."""
    identity = {"sourceIp": client.info.source_ip, "userAgent": client.info.user_agent or ""}
    body = {
        "connectedAt": _iso(client.info.connected_at_ms),
        "identity": identity,
        "lastActiveAt": _iso(client.last_active_ms),
    }
    return Response(200, body=json.dumps(body).encode())


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
