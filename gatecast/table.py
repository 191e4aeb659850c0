"""The keys and items of the DynamoDB table, in the low-level API's format (`{"S": …}`, `{"N": …}`).

| item        | pk                          | sk                |
|-------------|-----------------------------|-------------------|
| membership  | room#{room}#{shard}         | {connection_id}   |
| connection  | connection#{connection_id}  | connection        |
| joined room | connection#{connection_id}  | room#{room}       |
| settings    | settings#{room}             | room              |
| progress    | broadcast#{room or empty} {id} | part#{part}    |

A shard is a plain number and the last component of its key, so no room's name can reach another room's keys.
The routes' counters (`limit#…`) are defined in `routes/limits.py`.
An item whose `expires_at` (seconds since the epoch) has passed counts as absent: TTL deletes lag by up to 48 hours.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from gatecast.broadcast import MIN_TIME_MS

Item = dict[str, dict[str, str]]
Key = dict[str, dict[str, str]]

CONNECTION_TTL_SECONDS: Final = 2 * 3600 + 600
"""API Gateway closes a connection after two hours; its items outlive it by ten minutes."""
MAX_BATCH_WRITE: Final = 25
MAX_SHARDS: Final = 1_000
CONNECTION_SK: Final = "connection"
JOINED_ROOM_PREFIX: Final = "room#"
SETTINGS_SK: Final = "room"


def room_pk(room: str, shard: int) -> str:
    return f"room#{room}#{shard}"


def connection_pk(connection_id: str) -> str:
    return f"connection#{connection_id}"


def joined_room_sk(room: str) -> str:
    return f"{JOINED_ROOM_PREFIX}{room}"


def settings_pk(room: str) -> str:
    return f"settings#{room}"


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


def connection_item(connection_id: str, *, connected_at_ms: int, user: str | None = None) -> Item:
    """Raises ValueError for a time in another unit, as the functions below do: the connection would count as absent."""
    return {
        **key(connection_pk(connection_id), CONNECTION_SK),
        "connected_at_ms": _milliseconds("connected_at_ms", connected_at_ms),
        "expires_at": {"N": str(expires_at(connected_at_ms))},
        **_user(user),
    }


def membership_item(
    room: str, shard: int, connection_id: str, *, joined_at_ms: int, expires_at: int, user: str | None = None
) -> Item:
    return {
        **key(room_pk(room, shard), connection_id),
        "joined_at_ms": _milliseconds("joined_at_ms", joined_at_ms),
        "expires_at": _seconds("expires_at", expires_at),
        **_user(user),
    }


def joined_room_item(connection_id: str, room: str, shard: int, *, expires_at: int) -> Item:
    return {
        **key(connection_pk(connection_id), joined_room_sk(room)),
        "shard": {"N": str(shard)},
        "expires_at": _seconds("expires_at", expires_at),
    }


def _milliseconds(name: str, value: int) -> dict[str, str]:
    if value < MIN_TIME_MS:
        raise ValueError(f"{name}: {value} is not a time in milliseconds since the epoch: expected 2001 or later")
    return {"N": str(value)}


def _seconds(name: str, value: int) -> dict[str, str]:
    if value >= MIN_TIME_MS:
        raise ValueError(f"{name}: {value} is not a time in seconds since the epoch: this looks like milliseconds")
    return {"N": str(value)}


def _user(user: str | None) -> Item:
    return {"user": {"S": user}} if user else {}


def expires_at(connected_at_ms: int) -> int:
    """When a connection's items expire, in seconds since the epoch."""
    return connected_at_ms // 1000 + CONNECTION_TTL_SECONDS


class RoomSettings(NamedTuple):
    """How many shards are read, and joined. Both may grow, never shrink: first `shards`, then `join_shards`."""

    shards: int = 1
    join_shards: int = 1

    @classmethod
    def from_item(
        cls, item: Mapping[str, Any] | None, on_damage: Callable[[str], object] = lambda _attribute: None
    ) -> "RoomSettings":
        """The settings in an item. They cover every shard that a member may have joined, even if they are inconsistent.

        Never raises: an invalid number is rounded down and clamped to 1–MAX_SHARDS, and anything that is not a number
        counts as 1. The name of an invalid attribute is passed to `on_damage`.
        """
        counts = item or {}
        join_shards = _shard_count(counts, "join_shards", on_damage)
        return cls(max(join_shards, _shard_count(counts, "shards", on_damage)), join_shards)


def _shard_count(item: Mapping[str, Any], attribute: str, on_damage: Callable[[str], object]) -> int:
    value = item.get(attribute)
    if value is None:
        return 1
    number = lenient_number(value)
    count = 1 if number is None else int(min(max(number, 1), MAX_SHARDS))
    if not isinstance(value, Mapping) or "N" not in value or count != number:
        on_damage(attribute)
    return count


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
        if (shard := shard_of_item(item)) is not None:
            keys.insert(0, key(room_pk(room, shard), connection_id))
        requests += [{"DeleteRequest": {"Key": each}} for each in keys]
        if len(requests) >= MAX_BATCH_WRITE - 1:
            yield requests
            requests = []
    if requests:
        yield requests
