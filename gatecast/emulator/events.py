"""The events that a WebSocket API passes to Lambda functions, and identifiers in AWS's format.

Pure: everything that varies is passed in. The shapes are those of events recorded from real APIs: `requestId` and
`extendedRequestId` of a request are equal, only MESSAGE events have `messageId`, only CONNECT and DISCONNECT events
have headers, and query parameters are present only if the client sent some.
"""

import base64
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

Event = dict[str, Any]
Pairs = Iterable[tuple[str, str]]

_CONNECTION_ID_BYTES: Final = 11  # makes 15 characters and one "=", as AWS's have
_OF_THE_UPGRADE: Final = {"Connection": "upgrade", "content-length": "0", "Upgrade": "websocket"}
"""Headers that the authorizer gets and the routes do not, with the names and values of AWS's documented event."""
_NOT_FORWARDED: Final = frozenset(name.lower() for name in _OF_THE_UPGRADE)
_CLOSE_REASONS: Final = {
    1000: "Connection Closed Normally",
    1001: "Going away",
    1005: "Client-side close frame status not set",
    1006: "Connection closed abnormally",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The deployed API that events refer to."""

    stage: str
    api_id: str
    region: str
    account_id: str

    def arn(self, route_key: str) -> str:
        return f"arn:aws:execute-api:{self.region}:{self.account_id}:{self.api_id}/{self.stage}/{route_key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """A client's connection: its upgrade request, and the authorizer's context. Immutable after the upgrade."""

    connection_id: str
    domain_name: str
    connected_at_ms: int
    source_ip: str
    user_agent: str | None
    headers: tuple[tuple[str, str], ...]
    query: tuple[tuple[str, str], ...]
    authorizer: Mapping[str, Any] | None = None


def new_id(rng: random.Random) -> str:
    """An identifier of a connection, message or request, for example `L0SM9cOFvHcCIhw=`."""
    return base64.urlsafe_b64encode(rng.randbytes(_CONNECTION_ID_BYTES)).decode()


def close_reason(code: int) -> str:
    return _CLOSE_REASONS.get(code, "")


def connect_event(api: Api, info: ConnectionInfo, *, request_id: str, now_ms: int) -> Event:
    context = _request_context(
        api, info, route_key="$connect", event_type="CONNECT", request_id=request_id, now_ms=now_ms
    )
    forwarded = (
        ("X-Amzn-Trace-Id", f"Root=1-{now_ms // 1000:08x}-{request_id.encode().hex()[:24]}"),
        ("X-Forwarded-For", info.source_ip),
        ("X-Forwarded-Port", info.domain_name.rpartition(":")[2]),
        ("X-Forwarded-Proto", "http"),
    )
    sent = ((name, value) for name, value in info.headers if name.lower() not in _NOT_FORWARDED)
    return {
        **_headers((*sent, *forwarded)),
        **_query(info.query),
        "requestContext": context,
        "isBase64Encoded": False,
    }


def authorizer_event(api: Api, info: ConnectionInfo, *, request_id: str, now_ms: int) -> Event:
    """The event of a REQUEST authorizer: the CONNECT event with additional fields."""
    event = connect_event(api, info, request_id=request_id, now_ms=now_ms)
    for name, value in _OF_THE_UPGRADE.items():
        event["headers"][name], event["multiValueHeaders"][name] = value, [value]
    return {
        "type": "REQUEST",
        "methodArn": api.arn("$connect"),
        "queryStringParameters": {},
        "multiValueQueryStringParameters": {},
        "stageVariables": {},
        **event,
    }


def message_event(
    api: Api, info: ConnectionInfo, route_key: str, body: str, *, message_id: str, request_id: str, now_ms: int
) -> Event:
    context = _request_context(
        api, info, route_key=route_key, event_type="MESSAGE", request_id=request_id, now_ms=now_ms
    )
    return {"requestContext": {**context, "messageId": message_id}, "body": body, "isBase64Encoded": False}


def disconnect_event(api: Api, info: ConnectionInfo, *, code: int, reason: str, request_id: str, now_ms: int) -> Event:
    context = _request_context(
        api, info, route_key="$disconnect", event_type="DISCONNECT", request_id=request_id, now_ms=now_ms
    )
    return {
        **_headers((("Host", info.domain_name), ("x-api-key", ""), ("X-Forwarded-For", ""), ("x-restapi", ""))),
        "requestContext": {
            **context,
            "disconnectStatusCode": code,
            "disconnectReason": reason or close_reason(code),
        },
        "isBase64Encoded": False,
    }


def error_message(status: int, *, connection_id: str, request_id: str) -> Event:
    """The error message to a client whose message could not be handled."""
    text = {
        HTTPStatus.FORBIDDEN.value: "Forbidden",
        HTTPStatus.UNAUTHORIZED.value: "Unauthorized",
        HTTPStatus.GATEWAY_TIMEOUT.value: "Endpoint request timed out",
    }.get(status, "Internal server error")
    return {"message": text, "connectionId": connection_id, "requestId": request_id}


def _request_context(
    api: Api, info: ConnectionInfo, *, route_key: str, event_type: str, request_id: str, now_ms: int
) -> dict[str, Any]:
    identity = {"sourceIp": info.source_ip, **({"userAgent": info.user_agent} if info.user_agent else {})}
    return {
        "routeKey": route_key,
        "eventType": event_type,
        "extendedRequestId": request_id,
        "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now_ms // 1000)),
        "messageDirection": "IN",
        "stage": api.stage,
        "connectedAt": info.connected_at_ms,
        "requestTimeEpoch": now_ms,
        "identity": identity,
        "requestId": request_id,
        "domainName": info.domain_name,
        "connectionId": info.connection_id,
        "apiId": api.api_id,
        **({"authorizer": dict(info.authorizer)} if info.authorizer is not None else {}),
    }


def _headers(pairs: Pairs) -> dict[str, Any]:
    every = _grouped(pairs)
    return {"headers": {name: values[-1] for name, values in every.items()}, "multiValueHeaders": every}


def _query(pairs: Pairs) -> dict[str, Any]:
    every = _grouped(pairs)
    if not every:
        return {}
    return {
        "queryStringParameters": {name: values[-1] for name, values in every.items()},
        "multiValueQueryStringParameters": every,
    }


def _grouped(pairs: Pairs) -> dict[str, list[str]]:
    every: dict[str, list[str]] = {}
    for name, value in pairs:
        every.setdefault(name, []).append(value)
    return every
