"""The queue adapter on SQS: what it sends arrives unchanged, and what it cannot send is reported."""

from typing import Any

import pytest

from gatecast import Broadcast, decode, queue_message
from local.resources import Queues
from worker.aws.json_service import JsonService
from worker.aws.queue import Queue
from worker.decisions.parts import MAX_BATCH, MAX_BATCH_BYTES
from worker.ports import DependencyError

REASON = {"reason": {"DataType": "String", "StringValue": "undelivered: ½"}}


async def test_sent_messages_arrive_with_their_attributes(
    sqs_service: JsonService, sqs: Any, fifo_queues: Queues
) -> None:
    broadcasts = [
        Broadcast(id=f"b{number}", room="lobby", data="é\x00\ufffe\U0001f600\n") for number in range(MAX_BATCH)
    ]
    queue = Queue(sqs_service, fifo_queues.url)
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


async def test_a_batch_of_the_maximum_size_arrives(sqs_service: JsonService, sqs: Any, queues: Queues) -> None:
    queue = Queue(sqs_service, queues.url)
    body = "x" * (MAX_BATCH_BYTES // MAX_BATCH)
    entries = [{"MessageBody": body, "MessageGroupId": str(number)} for number in range(MAX_BATCH)]
    assert await queue.send(entries) == [None] * MAX_BATCH
    messages = sqs.receive_message(QueueUrl=queues.url, MaxNumberOfMessages=10)["Messages"]
    assert {message["Body"] for message in messages} == {body}


async def test_an_empty_message_fails_alone(sqs_service: JsonService, queues: Queues) -> None:
    queue = Queue(sqs_service, queues.url)
    sent, rejected = await queue.send([{"MessageBody": "a"}, {"MessageBody": ""}])
    assert sent is None
    assert rejected is not None


async def test_a_missing_queue_has_its_own_error_code(sqs_service: JsonService, queues: Queues) -> None:
    queue = Queue(sqs_service, f"{queues.url}-other")
    for call in (queue.count(), queue.send([{"MessageBody": "a"}]), queue.change_visibility(["x"], 1)):
        with pytest.raises(DependencyError, match=r"NonExistentQueue|QueueDoesNotExist"):
            await call
