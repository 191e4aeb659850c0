"""Events of an HTTP API, payload format 2.0, as API Gateway passes them to a function."""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.routes_events import LambdaContext

REQUESTED_AT_MS = 1_700_000_010_000
IAM = {"iam": {"accessKey": "AKIA", "accountId": "123456789012", "userArn": "arn:aws:iam::123456789012:user/backend"}}


def token(context: Mapping[str, Any]) -> dict[str, Any]:
    """What a Lambda authorizer's context becomes."""
    return {"lambda": dict(context)}


def http_event(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    content_type: str | None = "application/json",
    authorizer: Mapping[str, Any] | None = None,
    **headers: str,
) -> dict[str, Any]:
    """`path` may have a query; underscores in names of `headers` become hyphens. The body is in Base64."""
    path, _, query = path.partition("?")
    sent = {"host": "abc.execute-api.eu-west-1.amazonaws.com"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        sent["content-type"] = content_type
    pairs = dict(each.split("=", 1) for each in query.split("&") if each)
    return {
        "version": "2.0",
        "routeKey": "ANY /{proxy+}",
        "rawPath": path,
        "rawQueryString": query,
        "headers": sent,
        **({"queryStringParameters": pairs} if pairs else {}),
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc",
            **({"authorizer": dict(authorizer)} if authorizer is not None else {}),
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "x"},
            "requestId": "KG5vXEH1DoEFhHg=",
            "routeKey": "ANY /{proxy+}",
            "stage": "$default",
            "time": "14/Nov/2023:22:13:30 +0000",
            "timeEpoch": REQUESTED_AT_MS,
        },
        **({"body": base64.b64encode(body).decode()} if body else {}),
        "isBase64Encoded": bool(body),
    }


class Result(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


def call(handler: Callable[[dict[str, Any], Any], dict[str, Any]], event: dict[str, Any]) -> Result:
    response = handler(event, LambdaContext())
    return Result(response["statusCode"], response["headers"], json.loads(response["body"]))
