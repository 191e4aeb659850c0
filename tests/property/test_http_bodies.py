"""What is published over HTTP reaches the queue unchanged, and any request gets a response that is described."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast
from gatecast.broadcast import for_sqs
from routes.http.handlers import backend, client
from tests.http_doubles import HttpDoubles
from tests.http_events import IAM, REQUESTED_AT_MS, call, http_event, token
from tests.openapi import check_response, described
from tests.property.strategies import json_values, names, text
from tests.routes_events import captured_log, token_context

SECRET = "a-payload-nobody-may-log"
ALICE = token(token_context(REQUESTED_AT_MS // 1000 + 60, join="lobby chat/*", publish="lobby chat/*"))
spaces = st.text(" \t\r\n", max_size=3)
content_types = st.sampled_from([
    "application/json", "application/ld+json", "text/plain", "text/html; charset=utf-8", "image/png", "a/b",
    "application/cloudevents+json", "application/x-www-form-urlencoded", "", "json", "text/", "text/plain;charset=",
]) | text(20)  # fmt: skip


@pytest.fixture(scope="module")
def doubles() -> Iterator[HttpDoubles]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
        yield HttpDoubles().install(patch)


def published(doubles: HttpDoubles, body: bytes, **options: str) -> Broadcast:
    """What reaches the queue as the message of a backend, which is what a client publishes, too."""
    doubles.queue.messages.clear()
    assert call(backend, http_event("POST", "/rooms/lobby/messages", body, authorizer=IAM, **options)).status == 202
    (broadcast,) = doubles.queue.broadcasts
    assert (
        call(client, http_event("POST", "/client/rooms/lobby/messages", body, authorizer=ALICE, **options)).status
        == 202
    )
    _, of_client = doubles.queue.broadcasts
    assert (of_client.json, of_client.data, of_client.from_) == (broadcast.json, broadcast.data, "alice")
    return broadcast


@given(spaces, json_values(), spaces)
def test_the_bytes_of_json_are_unchanged(doubles: HttpDoubles, before: str, value: bytes, after: str) -> None:
    broadcast = published(doubles, before.encode() + value + after.encode())
    assert bytes(broadcast.json or b"") == for_sqs(value)


@given(text(50, 1))
def test_text_is_unchanged(doubles: HttpDoubles, data: str) -> None:
    assert published(doubles, data.encode(), content_type="text/plain").data == data


@given(json_values(), spaces, names())
def test_the_data_of_a_cloud_event_is_unchanged(doubles: HttpDoubles, value: bytes, space: str, own_id: str) -> None:
    doubles.queue.messages.clear()
    attributes = b'"specversion": "1.0", "id": %s, "source": "/", "type": "x"' % json.dumps(own_id).encode()
    body = b'{%s, "data": %s%s}' % (attributes, space.encode(), value)
    event = http_event(
        "POST", "/rooms/lobby/messages", body, authorizer=IAM, content_type="application/cloudevents+json"
    )
    assert call(backend, event).body == {"id": own_id}
    (broadcast,) = doubles.queue.broadcasts
    assert (broadcast.id, bytes(broadcast.json or b"")) == (own_id, for_sqs(value))


@given(json_values())
def test_the_json_of_one_of_several_broadcasts_is_unchanged(doubles: HttpDoubles, value: bytes) -> None:
    doubles.queue.messages.clear()
    body = b'{"broadcasts": [{"room": "a", "json": %s}, {"room": "b", "json": %s}]}' % (value, value)
    assert call(backend, http_event("POST", "/broadcasts", body, authorizer=IAM)).status == 202
    assert [bytes(each.json or b"") for each in doubles.queue.broadcasts] == [for_sqs(value)] * 2


@pytest.mark.usefixtures("doubles")
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD"]),
    st.sampled_from(["/rooms/", "/users/", "/broadcasts", "/client/rooms/", "/"]),
    text(20),
    st.sampled_from(["", "/messages", "/members", "/disconnect"]),
    st.binary(max_size=40) | json_values() | st.just(msgspec.json.encode(SECRET)),
    content_types,
    st.none() | text(20),
    st.dictionaries(st.sampled_from(["since", "limit", "after", "from", "expires_in", "x"]), text(10), max_size=2),
)
def test_any_request_gets_a_response_that_is_described(
    method: str,
    begin: str,
    name: str,
    end: str,
    body: bytes,
    content_type: str,
    key: str | None,
    query: dict[str, str],
) -> None:
    headers: dict[str, Any] = {} if key is None else {"idempotency_key": key}
    event = http_event(method, "/", body, content_type=content_type, **headers)
    event["rawPath"] = path = f"{begin}{name}{end}"
    event["queryStringParameters"] = query
    is_client = path.startswith("/client/")
    event["requestContext"]["authorizer"] = ALICE if is_client else IAM
    with captured_log() as log:
        result = call(client if is_client else backend, event)
    assert result.status != 503, log.getvalue()
    assert SECRET not in log.getvalue()
    if result.status in {404, 405}:
        assert result.body["code"] == "unknown_action"
    else:
        assert described(method, path)
        check_response(method, path, result.status, result.headers, json.dumps(result.body).encode())
