"""All routes of the probe, and its authorizer. The template probe.yaml contains the same text; a test compares them."""

import json
import os
import time
from functools import cache
from typing import Any

import boto3

MAX_DELAY_MS = 10_000
MAX_BYTES = 131_072
PROTOCOL = "gatecast-verify"


def handler(event: dict[str, Any], _context: Any) -> Any:
    if event.get("type") == "REQUEST":
        return authorize(event)
    context = event["requestContext"]
    match context["routeKey"]:
        case "$connect":
            return connect(event)
        case "$disconnect":
            reason = {"code": context.get("disconnectStatusCode"), "reason": context.get("disconnectReason")}
            report(event, "disconnect", **reason)
            return {"statusCode": 200}
    asked = json.loads(event["body"])
    match context["routeKey"]:
        case "sized":
            return {"statusCode": 200, "body": "x" * min(int(asked["bytes"]), MAX_BYTES)}
        case "quiet":
            return {"nothing": None, "no body": {"statusCode": 200}}.get(asked["how"], {"statusCode": 200, "body": ""})
    time.sleep(min(int(asked.get("delay_ms", 0)), MAX_DELAY_MS) / 1000)
    seen = {"n": asked.get("n"), "connection": context["connectionId"], "keys": sorted(context)}
    authorizer = context.get("authorizer") or {}
    seen.update(token=authorizer.get("token"), authorizer=authorizer)
    return {"statusCode": 200, "body": json.dumps(seen)}


def connect(event: dict[str, Any]) -> Any:
    """With `?hold_ms=…` it reports the connection, and only then returns after that time; `?status=…` is returned."""
    query = event.get("queryStringParameters") or {}
    if hold_ms := int(query.get("hold_ms", 0)):
        report(event, "connecting")
        time.sleep(min(hold_ms, MAX_DELAY_MS) / 1000)
    offered = header(event, "sec-websocket-protocol")
    return {
        "statusCode": int(query.get("status", 200)),
        "headers": {"Sec-WebSocket-Protocol": PROTOCOL} if offered else {},
    }


def authorize(event: dict[str, Any]) -> Any:
    """Allow everyone whose token is not `deny` or `unauthorized`, and pass on where it was; none is verified."""
    query = event.get("queryStringParameters") or {}
    if query.get("token") == "unauthorized":
        raise Exception("Unauthorized")  # noqa: TRY002 - that text is what API Gateway looks for
    place = "query" if "token" in query else "subprotocol" if header(event, "sec-websocket-protocol") else "nowhere"
    effect = "Deny" if query.get("token") == "deny" else "Allow"
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": event["methodArn"]}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    return {"principalId": "probe", "policyDocument": policy, "context": {"token": place, "number": 1, "flag": True}}


def header(event: dict[str, Any], name: str) -> str | None:
    return next((value for key, value in event["headers"].items() if key.lower() == name), None)


def report(event: dict[str, Any], what: str, **more: Any) -> None:
    message = {"event": what, "connection": event["requestContext"]["connectionId"], **more}
    sqs().send_message(QueueUrl=os.environ["QUEUE_URL"], MessageBody=json.dumps(message))


@cache
def sqs() -> Any:
    return boto3.client("sqs")
