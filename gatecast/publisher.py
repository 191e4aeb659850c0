"""Putting broadcasts on the queue."""

from hashlib import sha256
from typing import Any, Final, Protocol

from gatecast import tracing
from gatecast.broadcast import Broadcast, encode

_PART_GROUP_LENGTH: Final = 110
"""Longer than the name of any room or broadcast, so that no name can be the group of a part."""


class SendsMessages(Protocol):
    """The one call of a boto3 SQS client that publishing needs."""

    def send_message(self, **kwargs: Any) -> Any: ...


def is_fifo(queue_url: str) -> bool:
    return queue_url.endswith(".fifo")


def queue_message(broadcast: Broadcast, *, fifo: bool, sending: str = "") -> dict[str, Any]:
    """The broadcast's part of a SendMessage call or of a SendMessageBatch entry. Raises InvalidBroadcast.

    The group makes a standard queue a fair one and is the order on a FIFO queue, where every part of a split room has a
    group of its own. Standard queues take no deduplication id; there the worker's claim does the same. `sending` names
    this sending of a broadcast that must be stored although the queue may have had the same one within five minutes.
    Where there is a current OpenTelemetry span, its context goes along in message attributes.
    """
    message: dict[str, Any] = {"MessageBody": encode(broadcast)}
    if context := tracing.message_attributes():
        message["MessageAttributes"] = context
    if not fifo:
        return {**message, "MessageGroupId": broadcast.room or broadcast.id}
    return {
        **message,
        "MessageGroupId": _fifo_group(broadcast),
        "MessageDeduplicationId": _deduplication_id(broadcast, sending),
    }


def _fifo_group(broadcast: Broadcast) -> str:
    if broadcast.room and broadcast.part and isinstance(broadcast.shard, int):
        return f"{_digest(broadcast.room)}#{broadcast.shard}".ljust(_PART_GROUP_LENGTH, "#")
    return broadcast.room or broadcast.id


def _deduplication_id(broadcast: Broadcast, sending: str) -> str:
    """SQS deduplicates over the whole queue unless told otherwise, so that all that makes a broadcast one is in it."""
    identity = (broadcast.room or "", broadcast.id, broadcast.part)
    return _digest("\0".join((*identity, sending) if sending else identity))


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


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
