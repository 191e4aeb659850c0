"""Payloads that are objects in S3: a worker, the routes and clients of both dialects, with S3 from ministack."""

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import boto3
import websockets

from gatecast import Broadcast, Publisher, client, decode
from gatecast.client import Message
from gatecast.dead_letter_queue import Redrive
from local.backend import prepare_backend
from local.ministack import Ministack
from local.stack import Stack
from tests.memory_payloads import reference_to
from tests.queues import queue_depth
from tests.worker_process import eventually

LARGE: Final = json.dumps({"rows": ["é" * 50] * 10_000}, ensure_ascii=False)
"""About 1 MB."""


@asynccontextmanager
async def running(ministack: Ministack, name: str, **worker_settings: str) -> AsyncIterator[tuple[Stack, Publisher]]:
    """A stack whose rooms all have history, and a publisher that puts large payloads into its bucket."""
    base = prepare_backend(ministack, table=name, queue=name)
    async with Stack.running(on=base, room_settings={"history_seconds": 600}, worker_settings=worker_settings) as stack:
        sqs, s3 = boto3.client("sqs"), boto3.client("s3")
        yield stack, Publisher(sqs, base.queues.url, s3=s3, bucket=base.payload_bucket)
        sqs.close()
        s3.close()


async def joined(url: str) -> websockets.ClientConnection:
    """A client of `gatecast.v1`."""
    socket = await websockets.connect(url, max_size=None)
    await request(socket, action="join", room="lobby")
    return socket


async def request(socket: websockets.ClientConnection, **fields: Any) -> Any:
    await socket.send(json.dumps(fields))
    response = json.loads(await asyncio.wait_for(socket.recv(), 20))
    assert response["type"] == "ok", response
    return response


async def fetch(url: str) -> tuple[str | None, str]:
    """The content type and the content, as S3 returns them."""

    def get() -> tuple[str | None, str]:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - http, on the loopback address
            return response.headers["Content-Type"], response.read().decode()

    return await asyncio.to_thread(get)


async def test_a_megabyte_reaches_clients_of_both_dialects_and_those_that_return(
    ministack: Ministack, aws: dict[str, str], unique_name: str
) -> None:
    del aws
    async with running(ministack, unique_name) as (stack, publisher):
        v1 = await joined(stack.gateway.url)
        async with client.connect(stack.gateway.url, opener=client.opener(proxy=None)) as v2:
            room = await v2.join("lobby")
            await asyncio.to_thread(publisher.publish, room="lobby", json=json.loads(LARGE), id="large")
            await asyncio.to_thread(publisher.publish, room="lobby", data="small", id="small")
            received = sorted([await asyncio.wait_for(v1.recv(), 20) for _ in range(2)], key=len)
            live: list[Message] = []
            while len(live) < 2:
                if isinstance(event := await asyncio.wait_for(anext(room), 20), Message):
                    live.append(event)
        await v1.close()

        assert received[0] == "small"
        for_v1 = json.loads(received[1])
        assert for_v1.pop("type") == "reference"
        [for_v2] = [each.reference for each in live if each.reference]
        assert [each.id for each in live if each.reference] == ["large"]
        returned = await websockets.connect(stack.gateway.url, max_size=None)
        since = min(each.offset or 0 for each in live) - 1
        response = await request(returned, action="join", room="lobby", since=since, frames=2)
        [from_history] = [each["reference"] for each in response["messages"] if "reference" in each]
        assert len(response["messages"]) == 2
        await returned.close()

        for link in (for_v1, {name: getattr(for_v2, name) for name in for_v1}, from_history):
            assert set(link) == {"url", "bytes", "content_type", "expires_at_ms"}
            assert link["bytes"] == len(LARGE.replace(", ", ",").replace(": ", ":").encode())
            content_type, content = await fetch(link["url"])
            assert content_type == link["content_type"] == "application/json"
            assert json.loads(content) == json.loads(LARGE)
            assert 3_500 < link["expires_at_ms"] / 1000 - time.time() <= 3_600
        assert stack.workers[0].metric("gatecast_service_call_duration_seconds_count", api="s3") == 1


async def test_what_cannot_be_delivered_is_a_dead_letter_until_its_cause_is_gone(
    ministack: Ministack, unique_name: str, sqs: Any, s3: Any, payload_bucket: str
) -> None:
    async with running(ministack, unique_name) as (stack, publisher):
        bucket, queues = str(stack.backend.payload_bucket), stack.backend.queues
        key = f"{unique_name} is not there yet"
        s3.put_object(Bucket=payload_bucket, Key="a", Body=b"of someone else")
        v1 = await joined(stack.gateway.url)
        past_ms = int(time.time() * 1000) - 1_000
        broadcasts: dict[str, dict[str, Any]] = {
            "missing": {"reference": reference_to(key, 5, bucket)},
            "foreign": {"reference": reference_to("a", 5, payload_bucket)},
            "expired": {"reference": reference_to(key, 5, bucket), "expires_at_ms": past_ms},
            "last": {"data": "last"},
        }
        for name, fields in broadcasts.items():
            publisher.publish(Broadcast(id=name, room="lobby", **fields))
        assert await asyncio.wait_for(v1.recv(), 20) == "last", "nothing waits for what is missing"
        await eventually(lambda: queue_depth(sqs, queues.dead_letter_url) == 2)
        assert _reasons(sqs, queues.dead_letter_url) == {
            "missing": "missing_object: NoSuchKey",
            "foreign": "foreign_bucket: it is not the one that GATECAST_PAYLOAD_BUCKET names",
        }
        assert stack.workers[0].metric("gatecast_broadcasts_total", outcome="expired") == 1

        s3.put_object(Bucket=bucket, Key=key, Body=b"hello")
        redrive = Redrive(sqs, source=queues.dead_letter_url, target=queues.url)
        assert (await asyncio.to_thread(redrive.run)).sent == {"missing_object": 1, "foreign_bucket": 1}
        link = json.loads(await asyncio.wait_for(v1.recv(), 20))
        assert (await fetch(link["url"]))[1] == "hello"
        await eventually(lambda: _reasons(sqs, queues.dead_letter_url).keys() == {"foreign"})
        await v1.close()


async def test_without_a_bucket_a_reference_is_a_dead_letter_that_says_what_to_set(
    ministack: Ministack, aws: dict[str, str], unique_name: str, sqs: Any
) -> None:
    del aws
    base = prepare_backend(ministack, table=unique_name, queue=unique_name)._replace(payload_bucket=None)
    async with Stack.running(on=base) as stack:
        Publisher(sqs, base.queues.url).publish(Broadcast(id="one", room="lobby", reference=reference_to("a", 5)))
        await eventually(lambda: queue_depth(sqs, base.queues.dead_letter_url) == 1)
        assert _reasons(sqs, base.queues.dead_letter_url)["one"].startswith("no_bucket: set GATECAST_PAYLOAD_BUCKET")
        assert stack.workers[0].metric("gatecast_dead_letters_total", reason="no_bucket") == 1


def _reasons(sqs: Any, url: str) -> dict[str, str]:
    """The dead letters on the queue, which stay there: their reasons by id."""
    found: dict[str, str] = {}
    received = sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0, MessageAttributeNames=["reason"]
    )
    for message in received.get("Messages", ()):
        found[decode(message["Body"]).id] = message["MessageAttributes"]["reason"]["StringValue"]
    return found
