"""Publishing broadcasts to the queue."""

from hashlib import sha256
from typing import Any, Final, Protocol

from gatecast import tracing
from gatecast.broadcast import Broadcast, encode

_PART_GROUP_LENGTH: Final = 110
"""Longer than any room's name or broadcast's id, so that neither can equal the group of a part."""
_MAX_DELAY_SECONDS: Final = 900


class SupportsSendMessage(Protocol):
    """The method of a boto3 SQS client that publishing needs."""

    def send_message(self, **kwargs: Any) -> Any: ...


def is_fifo(queue_url: str) -> bool:
    """Whether it is the URL of a FIFO queue."""
    return queue_url.rstrip("/").endswith(".fifo")


def queue_message(broadcast: Broadcast, *, fifo: bool, sending: str = "") -> dict[str, Any]:
    """The broadcast's arguments for SendMessage or a SendMessageBatch entry. Raises InvalidBroadcast.

    The message group makes a standard queue a fair queue, and determines the order on a FIFO queue, where every part of
    a split room has its own group. Standard queues accept no deduplication id; there the worker's claim deduplicates.
    `sending` identifies this send if the message must be stored even if the queue received the same broadcast within
    SQS's deduplication interval of five minutes. The context of the current OpenTelemetry span, if there is one, is
    added as message attributes.
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
    """SQS deduplicates over the whole queue by default, so the id covers everything that identifies a broadcast."""
    identity = (broadcast.room or "", broadcast.id, broadcast.part)
    return _digest("\0".join((*identity, sending) if sending else identity))


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


class Publisher:
    """Publishes broadcasts to one queue through a boto3 SQS client, whose errors pass through.

    >>> Publisher(boto3.client("sqs"), queue_url).publish(Broadcast(id="42", room="lobby", data="hello"))
    """

    def __init__(self, sqs: SupportsSendMessage, queue_url: str) -> None:
        self._sqs = sqs
        self._queue_url = queue_url
        self._fifo = is_fifo(queue_url)

    @property
    def fifo(self) -> bool:
        """Whether the queue is a FIFO queue, which keeps the order of a room's broadcasts and delays none of them."""
        return self._fifo

    def publish(self, broadcast: Broadcast, *, delay_seconds: int = 0) -> None:
        """Returns when SQS has stored the broadcast. Raises InvalidBroadcast before any call.

        Safe to retry: for 24 hours an id identifies one broadcast to its room, or one to any `connections`. A worker
        receives it after `delay_seconds`, 0 to 900 (ValueError), which only standard queues support (ValueError).
        Source: API reference of SendMessage, DelaySeconds.
        """
        message = queue_message(broadcast, fifo=self._fifo)
        if delay_seconds:
            message["DelaySeconds"] = self._valid_delay(delay_seconds)
        self._sqs.send_message(QueueUrl=self._queue_url, **message)

    def _valid_delay(self, seconds: int) -> int:
        if self._fifo:
            raise ValueError("delay_seconds: a FIFO queue delays no single message; it has a delay of its own")
        if type(seconds) is not int or not 0 < seconds <= _MAX_DELAY_SECONDS:
            raise ValueError(f"delay_seconds: expected a whole number from 0 to {_MAX_DELAY_SECONDS}")
        return seconds
