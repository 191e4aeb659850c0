"""The shapes of events and identifiers."""

import random
import re

from aws_lambda_powertools.utilities.data_classes import APIGatewayWebSocketEvent

from gatecast.emulator import events
from gatecast.emulator.events import Api, ConnectionInfo

API = Api(stage="prod", api_id="abc123", region="eu-central-1", account_id="111122223333")
ORIGIN = ConnectionInfo(
    connection_id="L0SM9cOFvHcCIhw=",
    domain_name="127.0.0.1:8080",
    connected_at_ms=1_795_503_769_413,
    source_ip="127.0.0.1",
    user_agent="agent/1",
    headers=(
        ("Host", "127.0.0.1:8080"),
        ("Connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("Content-Length", "0"),
        ("Authorization", "Bearer a.b.c"),
        ("X-Twice", "a"),
        ("X-Twice", "b"),
    ),
    query=(("room", "lobby"), ("room", "hall"), ("empty", "")),
    authorizer={"principalId": "ann"},
)
NOW_MS = 1_795_503_770_001


def test_identifiers_look_like_those_of_aws() -> None:
    rng = random.Random(1)
    made = {events.new_id(rng) for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{15}=", each) for each in made)


def test_connect_has_headers_query_and_identity() -> None:
    event = events.connect_event(API, ORIGIN, request_id="R=", now_ms=NOW_MS)
    assert event["headers"]["X-Twice"] == "b"
    assert event["multiValueHeaders"]["X-Twice"] == ["a", "b"]
    assert not {"connection", "upgrade", "content-length"} & {name.lower() for name in event["headers"]}
    assert event["headers"]["Authorization"] == "Bearer a.b.c"
    assert event["headers"]["X-Forwarded-For"] == "127.0.0.1"
    assert event["queryStringParameters"] == {"room": "hall", "empty": ""}
    assert event["multiValueQueryStringParameters"] == {"room": ["lobby", "hall"], "empty": [""]}
    assert "body" not in event
    context = APIGatewayWebSocketEvent(event).request_context
    assert (context.route_key, context.event_type, context.message_direction) == ("$connect", "CONNECT", "IN")
    assert (context.connection_id, context.domain_name) == ("L0SM9cOFvHcCIhw=", "127.0.0.1:8080")
    assert (context.stage, context.api_id) == ("prod", "abc123")
    assert (context.connected_at, context.request_time_epoch) == (ORIGIN.connected_at_ms, NOW_MS)
    assert context.request_time == "24/Nov/2026:07:02:50 +0000"
    assert (context.request_id, context.extended_request_id) == ("R=", "R=")
    assert (context.identity.source_ip, context.identity.user_agent) == ("127.0.0.1", "agent/1")
    assert event["requestContext"]["authorizer"] == {"principalId": "ann"}


def test_connect_without_query_has_no_query_fields() -> None:
    bare = ConnectionInfo(
        connection_id="a=",
        domain_name="d",
        connected_at_ms=0,
        source_ip="127.0.0.1",
        user_agent=None,
        headers=(),
        query=(),
    )
    event = events.connect_event(API, bare, request_id="R=", now_ms=0)
    assert "queryStringParameters" not in event
    assert "authorizer" not in event["requestContext"]
    assert event["requestContext"]["identity"] == {"sourceIp": "127.0.0.1"}


def test_message_has_a_body_and_a_message_id_but_no_headers() -> None:
    event = events.message_event(API, ORIGIN, "join", "{}", message_id="M=", request_id="R=", now_ms=NOW_MS)
    assert set(event) == {"requestContext", "body", "isBase64Encoded"}
    context = APIGatewayWebSocketEvent(event).request_context
    assert (context.route_key, context.event_type, context.message_id) == ("join", "MESSAGE", "M=")


def test_disconnect_has_the_close_code_and_reason() -> None:
    event = events.disconnect_event(API, ORIGIN, code=1005, reason="", request_id="R=", now_ms=NOW_MS)
    context = APIGatewayWebSocketEvent(event).request_context
    assert (context.route_key, context.event_type) == ("$disconnect", "DISCONNECT")
    assert (context.disconnect_status_code, context.disconnect_reason) == (
        1005,
        "Client-side close frame status not set",
    )
    assert event["headers"]["Host"] == "127.0.0.1:8080"
    assert "body" not in event


def test_authorizer_event_is_the_connect_event_with_more_fields() -> None:
    event = events.authorizer_event(API, ORIGIN, request_id="R=", now_ms=NOW_MS)
    assert event["type"] == "REQUEST"
    assert event["methodArn"] == "arn:aws:execute-api:eu-central-1:111122223333:abc123/prod/$connect"
    assert event["queryStringParameters"]["room"] == "hall"
    assert event["requestContext"]["connectionId"] == ORIGIN.connection_id
    forwarded = ("X-Amzn-Trace-Id", "X-Forwarded-For", "X-Forwarded-Port", "X-Forwarded-Proto")
    upgrade = {"Connection": "upgrade", "content-length": "0", "Upgrade": "websocket"}
    sent = {"Host": "127.0.0.1:8080", "Authorization": "Bearer a.b.c", "X-Twice": "b"}
    assert {name: value for name, value in event["headers"].items() if name not in forwarded} == sent | upgrade
    assert event["headers"].keys() == event["multiValueHeaders"].keys() >= set(forwarded)
    assert event["multiValueHeaders"]["X-Twice"] == ["a", "b"]
    assert all(event["multiValueHeaders"][name] == [value] for name, value in upgrade.items())
    assert event["stageVariables"] == {}
