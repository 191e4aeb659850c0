"""Each role of the HTTP API's functions allows the AWS calls that its code makes, and no others."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gatecast.entries import entry_item
from gatecast.frames import Message
from gatecast.table import HEAD_SK, key, stream_pk
from local.ministack import Ministack
from local.resources import Queues, write_room_settings
from routes import dependencies
from routes.http import handlers
from tests.http_events import IAM, call, http_event, token
from tests.integration.test_least_privilege import NOW_MS, Recorder, _queue_arn, _table_arn, allowed, check_keys
from tests.memory_payloads import reference_to
from tests.routes_events import token_context
from tests.templates import Template

ALICE = token(token_context(NOW_MS // 1000 + 3_600, join="lobby", publish="lobby"))
READS = ("/rooms/lobby", "/rooms/lobby/messages", "/rooms/lobby/members", "/rooms/empty/messages")
"""The last one is a room without a head, which gets one."""


@pytest.fixture
async def recorder(ministack: Ministack) -> AsyncIterator[Recorder]:
    async with Recorder.recording(ministack.url) as recording:
        yield recording


@pytest.fixture
def parameters(
    recorder: Recorder,
    dynamodb: Any,
    table: str,
    queues: Queues,
    payload_bucket: str,
    s3: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """The template's parameters for these resources; from here on, calls are recorded."""
    write_room_settings(dynamodb, table, {"history_seconds": 3_600, "presence": 100})
    s3.put_object(Bucket=payload_bucket, Key="a", Body=b"large")
    message = Message(id="large", offset=7, published_at_ms=NOW_MS)
    entry = entry_item(
        "lobby", message, expires_at=NOW_MS // 1000 + 3_600, reference=reference_to("a", 5, payload_bucket)
    )
    for item in (entry, {**key(stream_pk("lobby"), HEAD_SK), "offset": {"N": "7"}}):
        dynamodb.put_item(TableName=table, Item=item)
    variables = {
        **recorder.environment(),
        "GATECAST_TABLE": table,
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_PAYLOAD_BUCKET": payload_bucket,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return {
        "TableArn": _table_arn(table),
        "QueueArn": _queue_arn(queues.url),
        "PayloadBucket": payload_bucket,
        "AuthorizerFunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:gatecast-authorize",
    }


async def read_all(handler: Callable[..., Any], prefix: str, authorizer: dict[str, Any]) -> None:
    for path in READS:
        dependencies.clear_caches()
        event = http_event("GET", f"{prefix}{path}", authorizer=authorizer)
        result = await asyncio.to_thread(call, handler, event)
        assert result.status == 200, result.body
        for message in result.body.get("messages", ()):
            assert await asyncio.to_thread(fetched, message["reference"]["url"]) == b"large"


async def test_the_function_of_backends(recorder: Recorder, parameters: dict[str, str]) -> None:
    await read_all(handlers.backend, "", IAM)
    for path, body in (
        ("/rooms/lobby/messages", b"1"),
        ("/users/ann/messages", b'"' + b"x" * 200_000 + b'"'),
        ("/broadcasts", b'{"broadcasts": [{"room": "a", "data": "x"}, {"room": "b", "data": "x"}]}'),
        ("/users/ann/disconnect", b'{"code": "banned", "for_seconds": 60}'),
    ):
        result = await asyncio.to_thread(call, handlers.backend, http_event("POST", path, body, authorizer=IAM))
        assert result.status == 202, result.body
    check(recorder, parameters, "BackendRole")


async def test_the_function_of_clients(recorder: Recorder, parameters: dict[str, str]) -> None:
    everything = token(token_context(NOW_MS // 1000 + 3_600, join="lobby empty", publish="lobby"))
    await read_all(handlers.client, "/client", everything)
    event = http_event("POST", "/client/rooms/lobby/messages", b"1", authorizer=ALICE)
    assert (await asyncio.to_thread(call, handlers.client, event)).status == 202
    check(recorder, parameters, "ClientRole")


def check(recorder: Recorder, parameters: dict[str, str], role: str) -> None:
    dependencies.clear_caches()
    template = Template("http", parameters)
    assert recorder.recorded == allowed(template, role), json.dumps(sorted(recorder.recorded))
    check_keys(recorder.keys, template, role)


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - http, loopback
        content: bytes = response.read()
    return content
