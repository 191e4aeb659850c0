"""How a broadcast becomes a queue message: its body, its group and its deduplication id. Pure."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from gatecast import tracing
from gatecast.broadcast import Broadcast, encode, utf8_length

_PART_GROUP_LENGTH: Final = 110
"""Longer than any room's name or broadcast's id, so that neither can equal the group of a part."""


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


def message_bytes(message: Mapping[str, Any]) -> int:
    """How many bytes of a batch it takes: its body, and the names, types and values of its attributes.

    Source: SQS developer guide, message metadata.
    """
    attributes = message.get("MessageAttributes", {}).items()
    texts = (text for name, value in attributes for text in (name, value["DataType"], value["StringValue"]))
    return sum(map(utf8_length, (message["MessageBody"], *texts)))


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
