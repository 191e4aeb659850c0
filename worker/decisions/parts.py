"""Broadcasts that are made of a broadcast: one for each shard of a room, or one for some of its members.

A part's name follows from what it is, so that making it twice does no harm: the second one is a duplicate. Pure.
"""

import hashlib
from base64 import b32encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.broadcast import MAX_CONNECTION_ID_BYTES, Broadcast, utf8_length

REMAINDER_PREFIX: Final = "r-"
UNDELIVERED_PREFIX: Final = "u-"
REJECTED_PREFIX: Final = "x-"
"""What the names of parts begin with that are made of some members only; those of shards begin with `s`."""

MAX_BATCH: Final = 10
"""Messages that one call of the queue takes, and bytes of them together."""
MAX_BATCH_BYTES: Final = 1024 * 1024

_LONGEST_PART: Final = 24
_ATTRIBUTES_BYTES: Final = 1024
"""More than a trace context takes, which counts like the body."""


def to_connections(
    broadcast: Broadcast,
    connection_ids: Sequence[str],
    prefix: str,
    tried: tuple[int, int, float] | UnsetType = UNSET,
) -> Broadcast:
    """The same broadcast to these connections only, under a part of its own that follows from all that it is."""
    part = _named_by(prefix, broadcast.room or "", broadcast.part, *sorted(connection_ids))
    return msgspec.structs.replace(
        broadcast, room=UNSET, shard=UNSET, except_=UNSET, connections=tuple(connection_ids), part=part, tried=tried
    )


def can_name(connection_id: str) -> bool:
    """Whether a broadcast to `connections` can name it: members of a room may have other ids, if others wrote them."""
    return 0 < utf8_length(connection_id) <= MAX_CONNECTION_ID_BYTES


def to_shards(broadcast: Broadcast, shards: int) -> Iterator[Broadcast]:
    """The same broadcast to each shard of its room."""
    for shard in range(shards):
        part = f"s{shard}" if not broadcast.part else f"{broadcast.part}.s{shard}"
        if len(part) > _LONGEST_PART:
            part = _named_by("s-", broadcast.part, str(shard))
        yield msgspec.structs.replace(broadcast, shard=shard, part=part)


def batches(messages: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Messages, as SendMessage takes them, in as few calls as they fit into."""
    batch: list[dict[str, Any]] = []
    size = 0
    for message in messages:
        message_bytes = len(message["MessageBody"].encode()) + _ATTRIBUTES_BYTES
        if batch and (len(batch) == MAX_BATCH or size + message_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message_bytes
    if batch:
        yield batch


def _named_by(prefix: str, *identity: str) -> str:
    """The same whenever it is made of the same: at most 24 characters that ids may hold."""
    digest = hashlib.sha256("\0".join((prefix, *identity)).encode("utf-8", "surrogatepass")).digest()
    return f"{prefix}{b32encode(digest[:12]).decode().rstrip('=').lower()}"
