"""The keys and items of the DynamoDB table, in the low-level API's format (`{"S": …}`, `{"N": …}`).

| item        | pk                          | sk                |
|-------------|-----------------------------|-------------------|
| membership  | room#{room}#{shard}         | {connection_id}   |
| connection  | connection#{connection_id}  | connection        |
| joined room | connection#{connection_id}  | room#{room}       |
| settings    | settings#{room}, settings#{prefix}/*, settings#* | room |
| progress    | broadcast#{room or empty} {id} | part#{part}    |
| stream head | stream#{room}               | head              |
| stream entry | stream#{room}              | m#{offset, 16 digits} |
| presence    | presence#{room}             | {user} {connection_id} |
| count       | count#{room}                | {shard}           |
| revocation  | user#{user}                 | not_before        |
| shared receipt | broadcast#{room or empty} {id} | receipt     |

A shard is a plain number and the last component of its key, so no room's name can reach another room's keys.
The routes' counters (`limit#…`) are defined in `routes/limits.py`.
An item whose `expires_at` (seconds since the epoch) has passed counts as absent: TTL deletes lag by up to 48 hours.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gatecast.broadcast import MIN_TIME_MS
from gatecast.frames import V1, V2

Item = dict[str, dict[str, Any]]
Key = dict[str, dict[str, str]]

CONNECTION_TTL_SECONDS: Final = 2 * 3600 + 600
"""API Gateway closes a connection after two hours; its items outlive it by ten minutes."""
MAX_BATCH_WRITE: Final = 25
_MAX_ITEMS_PER_ROOM: Final = 3
CONNECTION_SK: Final = "connection"
JOINED_ROOM_PREFIX: Final = "room#"
SETTINGS_SK: Final = "room"
HEAD_SK: Final = "head"
ENTRY_PREFIX: Final = "m#"
MAX_HEAD: Final = 9_000_000_000_000_000
"""A head beyond this is damaged: no room gets there by counting. All smaller numbers are exact in JSON, and as floats.
"""
NOT_BEFORE_SK: Final = "not_before"
RECEIPT_SK: Final = "receipt"
_COUNT_TTL_SECONDS: Final = 24 * 3600
_REVOCATION_TTL_SECONDS: Final = 24 * 3600
"""How long tokens that were issued before a revocation's end remain rejected: longer than tokens should live."""


def room_pk(room: str, shard: int) -> str:
    return f"room#{room}#{shard}"


def connection_pk(connection_id: str) -> str:
    return f"connection#{connection_id}"


def joined_room_sk(room: str) -> str:
    return f"{JOINED_ROOM_PREFIX}{room}"


def settings_pk(room: str) -> str:
    return f"settings#{room}"


def stream_pk(room: str) -> str:
    """The key of a room's history: its head, and an entry for each message."""
    return f"stream#{room}"


def entry_sk(offset: int) -> str:
    return f"{ENTRY_PREFIX}{offset:016d}"


def presence_pk(room: str) -> str:
    return f"presence#{room}"


def presence_sk(user: str, connection_id: str) -> str:
    """Users' names contain no spaces, so the items of a user are those whose key begins with the name and a space."""
    return f"{user} {connection_id}"


def count_pk(room: str) -> str:
    """The key of a room's counts: one item for each shard that was counted, with `members` and `counted_at_ms`."""
    return f"count#{room}"


def user_pk(user: str) -> str:
    """The key of what is kept about a user: so far only a revocation."""
    return f"user#{user}"


def progress_pk(room: str, broadcast_id: str) -> str:
    """`room` is empty for a broadcast to connections."""
    return f"broadcast#{room} {broadcast_id}"


def progress_sk(part: str) -> str:
    return f"part#{part}"


def key(pk: str, sk: str) -> Key:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def shard_of(connection_id: str, join_shards: int) -> int:
    """The shard that a connection joins in a room with `join_shards` join shards."""
    return zlib.crc32(connection_id.encode()) % join_shards


def connection_item(connection_id: str, *, connected_at_ms: int, user: str | None = None, frames: int = V1) -> Item:
    """Raises ValueError for a time in another unit, as the functions below do: the connection would count as absent."""
    return {
        **key(connection_pk(connection_id), CONNECTION_SK),
        "connected_at_ms": milliseconds("connected_at_ms", connected_at_ms),
        "expires_at": {"N": str(expires_at(connected_at_ms))},
        **_user(user),
        **_frames(frames),
    }


def membership_item(
    room: str,
    shard: int,
    connection_id: str,
    *,
    joined_at_ms: int,
    expires_at: int,
    user: str | None = None,
    frames: int = V1,
) -> Item:
    return {
        **key(room_pk(room, shard), connection_id),
        "joined_at_ms": milliseconds("joined_at_ms", joined_at_ms),
        "expires_at": seconds("expires_at", expires_at),
        **_user(user),
        **_frames(frames),
    }


def joined_room_item(
    connection_id: str, room: str, shard: int, *, expires_at: int, present_user: str | None = None
) -> Item:
    """`present_user` is the user of the presence item that was written together with it, in a room with presence."""
    return {
        **key(connection_pk(connection_id), joined_room_sk(room)),
        "shard": {"N": str(shard)},
        "expires_at": seconds("expires_at", expires_at),
        **({"present": {"S": present_user}} if present_user else {}),
    }


def presence_item(room: str, user: str, connection_id: str, *, joined_at_ms: int, expires_at: int) -> Item:
    return {
        **key(presence_pk(room), presence_sk(user, connection_id)),
        "joined_at_ms": milliseconds("joined_at_ms", joined_at_ms),
        "expires_at": seconds("expires_at", expires_at),
    }


def count_item(room: str, shard: int, *, members: int, counted_at_ms: int) -> Item:
    """How many members this shard of the room had at that time."""
    return {
        **key(count_pk(room), str(shard)),
        "members": {"N": str(members)},
        "counted_at_ms": milliseconds("counted_at_ms", counted_at_ms),
        "expires_at": {"N": str(counted_at_ms // 1000 + _COUNT_TTL_SECONDS)},
    }


def revocation_item(user: str, *, not_before: int) -> Item:
    """Until this time, in seconds since the epoch, nobody can connect as this user (`gatecast.kicks`)."""
    return {
        **key(user_pk(user), NOT_BEFORE_SK),
        "not_before": seconds("not_before", not_before),
        "expires_at": {"N": str(not_before + _REVOCATION_TTL_SECONDS)},
    }


def text_of(value: object) -> str | None:
    match value:
        case {"S": str(text)}:
            return text
    return None


def offset_of_head(head: Mapping[str, Any] | None) -> int | None:
    """The offset of the room's latest message; None if there is no head, or none from which offsets can continue."""
    number = lenient_number(head.get("offset")) if head else None
    return int(number) if number is not None and 0 <= number <= MAX_HEAD else None


def milliseconds(name: str, value: int) -> dict[str, str]:
    if value < MIN_TIME_MS:
        raise ValueError(f"{name}: {value} is not a time in milliseconds since the epoch: expected 2001 or later")
    return {"N": str(value)}


def seconds(name: str, value: int) -> dict[str, str]:
    if value >= MIN_TIME_MS:
        raise ValueError(f"{name}: {value} is not a time in seconds since the epoch: this looks like milliseconds")
    return {"N": str(value)}


def _user(user: str | None) -> Item:
    return {"user": {"S": user}} if user else {}


def _frames(frames: int) -> Item:
    return {"frames": {"N": str(frames)}} if frames != V1 else {}


def expires_at(connected_at_ms: int) -> int:
    """When a connection's items expire, in seconds since the epoch."""
    return connected_at_ms // 1000 + CONNECTION_TTL_SECONDS


def lenient_number(value: object) -> float | None:
    """The number in an attribute (`{"N": …}`, or `{"S": …}` with a number as text), or None if there is none."""
    if not isinstance(value, Mapping):
        return None
    text = value.get("N", value.get("S"))
    try:
        number = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def shard_of_item(joined_room: Mapping[str, Any]) -> int | None:
    """The shard in a joined-room item, or None if it has no valid one."""
    number = lenient_number(joined_room.get("shard"))
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def frames_of(item: Mapping[str, Any]) -> int:
    """The dialect of a connection or a membership, V1 or V2; anything that is neither counts as V1."""
    return V2 if lenient_number(item.get("frames")) == V2 else V1


def present_user(joined_room: Mapping[str, Any]) -> str | None:
    """The user whose presence item belongs to a joined-room item, if the room has presence."""
    return text_of(joined_room.get("present"))


def removal_batches(connection_id: str, joined_rooms: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The BatchWriteItem requests that remove a connection from its rooms, in batches of at most 25.

    `joined_rooms` are the connection's joined-room items. The connection item must be deleted before they are read, so
    that no join can succeed concurrently. A membership is deleted before the joined-room item that refers to it. A
    membership whose shard is invalid remains, and is found by the next broadcast.
    """
    requests: list[dict[str, Any]] = []
    for item in joined_rooms:
        room = item["sk"]["S"].removeprefix(JOINED_ROOM_PREFIX)
        keys = [key(connection_pk(connection_id), item["sk"]["S"])]
        if user := present_user(item):
            keys.insert(0, key(presence_pk(room), presence_sk(user, connection_id)))
        if (shard := shard_of_item(item)) is not None:
            keys.insert(0, key(room_pk(room, shard), connection_id))
        requests += [{"DeleteRequest": {"Key": each}} for each in keys]
        if len(requests) > MAX_BATCH_WRITE - _MAX_ITEMS_PER_ROOM:
            yield requests
            requests = []
    if requests:
        yield requests
