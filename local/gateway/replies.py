"""The answers of the `@connections` API: statuses, headers and bodies.

Recorded from real APIs: a 410 has an empty body and its name in `x-amzn-ErrorType` only; an id that cannot be one is a
400; a path that is none of the API's is 403 `{"message":"Forbidden"}`. The two 429s, of the account and of one client,
look the same.
"""

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from local.gateway.client import Client


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it becomes HTTP."""

    status: int
    error_type: str = ""
    body: bytes = b""
    content_type: str = "application/json"

    @classmethod
    def error(cls, status: int, error_type: str, message: str) -> "Reply":
        return cls(status, error_type, json.dumps({"message": message}).encode())

    def beginning(self, *, within: str) -> bytes:
        """What arrives of an answer that is cut off within its "headers" or its "body"."""
        status_line = f"HTTP/1.1 {self.status} Cut\r\nContent-Le"
        return f"{status_line}ngth: 100\r\n\r\n{{".encode() if within == "body" else status_line.encode()

    def to_response(self) -> web.Response:
        """The answer as aiohttp sends it, with a request id of its own."""
        headers = {"x-amzn-RequestId": str(uuid.uuid4())}
        if self.error_type:
            headers["x-amzn-ErrorType"] = self.error_type
        content_type = self.content_type if self.body else None
        return web.Response(status=self.status, body=self.body or None, content_type=content_type, headers=headers)


OK: Final = Reply(200)
DELETED: Final = Reply(204)
GONE: Final = Reply(410, "GoneException")
FORBIDDEN: Final = Reply.error(403, "ForbiddenException", "Forbidden")
TOO_LARGE: Final = Reply.error(413, "PayloadTooLargeException", "Message too long")
LIMIT_EXCEEDED: Final = Reply.error(429, "LimitExceededException", "Limit exceeded")
NOT_TEXT: Final = Reply.error(400, "BadRequestException", "Data is not valid UTF-8")


def description(client: Client) -> Reply:
    """The answer to a GET."""
    identity = {"sourceIp": client.origin.source_ip, "userAgent": client.origin.user_agent or ""}
    body = {
        "connectedAt": _iso(client.origin.connected_at_ms),
        "identity": identity,
        "lastActiveAt": _iso(client.last_active_ms),
    }
    return Reply(200, body=json.dumps(body).encode())


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
