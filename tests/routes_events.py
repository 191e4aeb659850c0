"""Events as API Gateway passes them to a route, Lambda's context object, and capturing the routes' log."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from routes.log import logger

CONNECTION_ID = "L0SM9cOFvHcCIhw="
CONNECTED_AT_MS = 1_700_000_000_123
REQUESTED_AT_MS = CONNECTED_AT_MS + 5_000
EXPIRES_AT = 1_700_000_000 + 2 * 3600 + 600


@dataclass
class LambdaContext:
    function_name: str = "gatecast-routes"
    memory_limit_in_mb: int = 128
    invoked_function_arn: str = "arn:aws:lambda:eu-west-1:123456789012:function:gatecast-routes"
    aws_request_id: str = "52fdfc07-2182-154f-163f-5f0f9a621d72"


def token_context(expires_at: int = EXPIRES_AT, **grants: str) -> dict[str, Any]:
    """`requestContext.authorizer` for alice, whose token has these grants."""
    return {"principalId": "alice", "user": "alice", "expiresAt": str(expires_at), "integrationLatency": 9, **grants}


def event(
    route: str = "$default",
    body: str | None = None,
    *,
    connection_id: str = CONNECTION_ID,
    authorizer: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    requested_at_ms: int = REQUESTED_AT_MS,
) -> dict[str, Any]:
    kind = {"$connect": "CONNECT", "$disconnect": "DISCONNECT"}.get(route, "MESSAGE")
    return {
        "requestContext": {
            "routeKey": route,
            "eventType": kind,
            "extendedRequestId": "KG5vXEH1DoEFhHg=",
            "requestTime": "14/Nov/2023:22:13:25 +0000",
            "messageDirection": "IN",
            "stage": "production",
            "connectedAt": CONNECTED_AT_MS,
            "requestTimeEpoch": requested_at_ms,
            "identity": {"sourceIp": "192.0.2.1", "userAgent": "Mozilla/5.0"},
            "requestId": "KG5vXEH1DoEFhHg=",
            "domainName": "abcdef1234.execute-api.eu-west-1.amazonaws.com",
            "connectionId": connection_id,
            "apiId": "abcdef1234",
            **({"authorizer": authorizer} if authorizer is not None else {}),
        },
        **({"headers": headers} if headers is not None else {}),
        **({"body": body} if body is not None else {}),
        "isBase64Encoded": False,
    }


@contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """The routes' log output until the end of the block."""
    stream = io.StringIO()
    handler = logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    usual = handler.setStream(stream)
    try:
        yield stream
    finally:
        handler.setStream(usual)
