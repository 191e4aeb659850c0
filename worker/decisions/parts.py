"""Broadcasts derived from a broadcast: one per shard of a room, or one for some of its members.

A part's name is derived from its contents, so creating it twice does no harm: the second one is a duplicate. Pure.
"""

import hashlib
from base64 import b32encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.broadcast import MAX_CONNECTION_ID_BYTES, Broadcast, InvalidBroadcast, encode, utf8_length

REMAINDER_PREFIX: Final = "r-"
UNDELIVERED_PREFIX: Final = "u-"
REJECTED_PREFIX: Final = "x-"
"""Prefixes of the names of parts for some members only; those of shards begin with `s`."""

MAX_BATCH: Final = 10
"""The maximum number of messages per SendMessageBatch call; MAX_BATCH_BYTES is that of their bytes in total."""
MAX_BATCH_BYTES: Final = 1024 * 1024

_MAX_PART_CHARACTERS: Final = 24
_ATTRIBUTES_BYTES: Final = 1024
"""More than a trace context needs; attributes count like the body."""


def to_connections(
    broadcast: Broadcast,
    connection_ids: Sequence[str],
    prefix: str,
    tried: tuple[int, int, float] | UnsetType = UNSET,
) -> Broadcast:
    """The same broadcast to these connections only, as a part with a name derived from its contents.

    Those that it excludes are still excluded: they receive its offset without the message. A remainder adds to the
    broadcast's receipt; a dead letter ends in none, for its members have been counted as missed.
    """
    excluded = frozenset(broadcast.except_ or ())
    return msgspec.structs.replace(
        broadcast,
        room=UNSET,
        origin_room=broadcast.room or broadcast.origin_room,
        shard=UNSET,
        except_=tuple(each for each in connection_ids if each in excluded) or UNSET,
        connections=tuple(connection_ids),
        part=_part_name(prefix, broadcast.room or "", broadcast.part, *sorted(connection_ids)),
        receipt=broadcast.receipt if prefix == REMAINDER_PREFIX else UNSET,
        tried=tried,
    )


def fitting(
    broadcast: Broadcast, connection_ids: list[str], prefix: str, tried: tuple[int, int, float] | UnsetType = UNSET
) -> Iterator[Broadcast]:
    """`to_connections`: normally one, several if it would exceed the maximum message size, none for no connections."""
    if not connection_ids:
        return
    part = to_connections(broadcast, connection_ids, prefix, tried)
    try:
        encode(part)
    except InvalidBroadcast:
        ordered = sorted(connection_ids)  # so that a repetition after a crash makes the same parts
        half = len(ordered) // 2
        if not half:
            raise
        yield from fitting(broadcast, ordered[:half], prefix, tried)
        yield from fitting(broadcast, ordered[half:], prefix, tried)
    else:
        yield part


def can_name(connection_id: str) -> bool:
    """Whether a broadcast to `connections` can name it: other programs may write members with ids that it cannot."""
    return 0 < utf8_length(connection_id) <= MAX_CONNECTION_ID_BYTES


def to_shards(broadcast: Broadcast, shards: int) -> Iterator[Broadcast]:
    """The same broadcast to each shard of its room."""
    for shard in range(shards):
        part = f"s{shard}" if not broadcast.part else f"{broadcast.part}.s{shard}"
        if len(part) > _MAX_PART_CHARACTERS:
            part = _part_name("s-", broadcast.part, str(shard))
        yield msgspec.structs.replace(broadcast, shard=shard, part=part)


def batches(messages: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group messages, as SendMessage takes them, into as few calls as possible."""
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


def _part_name(prefix: str, *identity: str) -> str:
    """Deterministic: equal inputs give equal names. At most 24 characters, all valid in ids."""
    digest = hashlib.sha256("\0".join((prefix, *identity)).encode("utf-8", "surrogatepass")).digest()
    return f"{prefix}{b32encode(digest[:12]).decode().rstrip('=').lower()}"
