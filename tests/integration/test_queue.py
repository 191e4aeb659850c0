"""The queue's adapter against a real protocol: what it sends arrives as it is, and batches fail entry by entry."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from gatecast import Broadcast, decode, queue_message
from local.resources import Queues
from worker.aws.json_service import JsonService
from worker.aws.queue import Queue
from worker.decisions.parts import MAX_BATCH, MAX_BATCH_BYTES
from worker.observe.metrics import ServiceCalls
from worker.ports import DependencyError
from worker.transport.signing import Credentials

REASON = {"reason": {"DataType": "String", "StringValue": "undelivered: ½"}}


@pytest.fixture
async def service(aws: dict[str, str]) -> AsyncIterator[JsonService]:
    service = JsonService(
        aws["AWS_ENDPOINT_URL_SQS"],
        region=aws["AWS_REGION"],
        service="sqs",
        prefix="AmazonSQS",
        json_version="1.0",
        connections=2,
        tls=None,
        calls=ServiceCalls(),
    )
    service.use(Credentials(aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"]))
    running = asyncio.create_task(service.run())
    yield service
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_is_sent_arrives_with_its_attributes(service: JsonService, sqs: Any, fifo_queues: Queues) -> None:
    broadcasts = [
        Broadcast(id=f"b{number}", room="lobby", data="é\x00\ufffe\U0001f600\n") for number in range(MAX_BATCH)
    ]
    queue = Queue(service, fifo_queues.url)
    entries = [{**queue_message(each, fifo=True), "MessageAttributes": REASON} for each in broadcasts]

    assert await queue.send(entries) == [None] * MAX_BATCH

    messages = sqs.receive_message(
        QueueUrl=fifo_queues.url,
        MaxNumberOfMessages=10,
        MessageAttributeNames=["All"],
        MessageSystemAttributeNames=["All"],
    )["Messages"]
    assert [decode(message["Body"]) for message in messages] == broadcasts
    assert {message["MessageAttributes"]["reason"]["StringValue"] for message in messages} == {"undelivered: ½"}
    for message, entry in zip(messages, entries, strict=True):
        assert message["Attributes"]["MessageGroupId"] == "lobby"
        assert message["Attributes"]["MessageDeduplicationId"] == entry["MessageDeduplicationId"]


async def test_as_much_as_a_call_takes_arrives(service: JsonService, sqs: Any, queues: Queues) -> None:
    queue = Queue(service, queues.url)
    body = "x" * (MAX_BATCH_BYTES // MAX_BATCH)
    entries = [{"MessageBody": body, "MessageGroupId": str(number)} for number in range(MAX_BATCH)]
    assert await queue.send(entries) == [None] * MAX_BATCH
    messages = sqs.receive_message(QueueUrl=queues.url, MaxNumberOfMessages=10)["Messages"]
    assert {message["Body"] for message in messages} == {body}


async def test_delays_visibility_and_counts(service: JsonService, sqs: Any, queues: Queues) -> None:
    queue = Queue(service, queues.url)
    entries: list[dict[str, Any]] = [{"MessageBody": body} for body in ("a", "b")]
    assert await queue.send([*entries, {"MessageBody": "late", "DelaySeconds": 900}]) == [None] * 3
    [message] = sqs.receive_message(QueueUrl=queues.url, VisibilityTimeout=60)["Messages"]
    assert await queue.count() == {"visible": 1, "in_flight": 1, "delayed": 1}
    assert await queue.change_visibility([message["ReceiptHandle"]], 0) == [None]
    assert await queue.count() == {"visible": 2, "in_flight": 0, "delayed": 1}


async def test_a_batch_fails_entry_by_entry(service: JsonService, sqs: Any, queues: Queues) -> None:
    queue = Queue(service, queues.url)
    await queue.send([{"MessageBody": "a"}])
    [message] = sqs.receive_message(QueueUrl=queues.url)["Messages"]
    well, odd = await queue.change_visibility([message["ReceiptHandle"], "no receipt"], 30)
    assert (well, bool(odd)) == (None, True)
    well, odd = await queue.send([{"MessageBody": "a"}, {"MessageBody": ""}])
    assert (well, bool(odd)) == (None, True)


async def test_a_queue_that_is_not_there_has_a_name_for_it(service: JsonService, queues: Queues) -> None:
    queue = Queue(service, f"{queues.url}-other")
    for call in (queue.count(), queue.send([{"MessageBody": "a"}]), queue.change_visibility(["x"], 1)):
        with pytest.raises(DependencyError, match=r"NonExistentQueue|QueueDoesNotExist"):
            await call
