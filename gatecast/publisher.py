"""Putting broadcasts on the queue."""

import re
from typing import Any, Final, Protocol

from gatecast import tracing
from gatecast.broadcast import Broadcast, InvalidBroadcast, encode

_CHARACTERS_OF_AN_ID: Final = re.compile(r"[!-~]*")


class SendsMessages(Protocol):
    """The one call of a boto3 SQS client that publishing needs."""

    def send_message(self, **kwargs: Any) -> Any: ...


def is_fifo(queue_url: str) -> bool:
    return queue_url.endswith(".fifo")


def queue_message(broadcast: Broadcast, *, fifo: bool) -> dict[str, Any]:
    """The broadcast's part of a SendMessage call or of a SendMessageBatch entry. Raises InvalidBroadcast.

    The group makes a standard queue a fair one and is the order on a FIFO queue, where every part of a split room has a
    group of its own. Standard queues take no deduplication id; there the worker's claim does the same. Where there is
    a current OpenTelemetry span, its context goes along in message attributes.
    """
    group = broadcast.room or broadcast.id
    message: dict[str, Any] = {"MessageBody": encode(broadcast)}
    if context := tracing.message_attributes():
        message["MessageAttributes"] = context
    if not fifo:
        return {**message, "MessageGroupId": group}
    if not _CHARACTERS_OF_AN_ID.fullmatch(broadcast.part):
        raise InvalidBroadcast("part", "must be characters from ! to ~ on a FIFO queue")
    if broadcast.room and broadcast.part and isinstance(broadcast.shard, int):
        group = f"{broadcast.room}#{broadcast.shard}"
    return {**message, "MessageGroupId": group, "MessageDeduplicationId": f"{broadcast.id}~{broadcast.part}"}


class Publisher:
    """Publishes broadcasts to one queue through a boto3 SQS client, whose errors it lets through.

    >>> Publisher(boto3.client("sqs"), queue_url).publish(Broadcast(id="42", room="lobby", data="hello"))
    """

    def __init__(self, sqs: SendsMessages, queue_url: str) -> None:
        self._sqs = sqs
        self._queue_url = queue_url
        self._fifo = is_fifo(queue_url)

    def publish(self, broadcast: Broadcast) -> None:
        """Returns when SQS has stored it. Raises InvalidBroadcast before any call.

        Safe to repeat: for a day one id is one broadcast to its room, and one to `connections`, whichever they are.
        """
        self._sqs.send_message(QueueUrl=self._queue_url, **queue_message(broadcast, fifo=self._fifo))
