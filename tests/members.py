"""Room members, written to the table as the contract describes its items, without the code under test."""

import time
from collections.abc import Sequence
from typing import Any, Final

from gatecast import table as keys
from gatecast.frames import V1

_EXPIRES_IN_SECONDS: Final = 24 * 3600
_AGE_MS: Final = 3_600_000
_ID_SUFFIX: Final = "AbCdEf="


def connection_ids(count: int, prefix: str = "c") -> list[str]:
    """Connection ids as API Gateway creates them: base64-like, ending in `=`."""
    return [f"{prefix}{number:06d}{_ID_SUFFIX}" for number in range(count)]


def is_client(connection_id: str) -> bool:
    """Whether it is one of `connection_ids`: for the chaos tests' `@connections` endpoint no others exist."""
    return connection_id.endswith(_ID_SUFFIX)


def write_members(
    dynamodb: Any,
    table: str,
    room: str,
    ids: Sequence[str],
    *,
    shards: int = 1,
    memberships_only: bool = False,
    joined_at_ms: int | None = None,
    expires_in_seconds: int = _EXPIRES_IN_SECONDS,
    tokens_expire: bool = False,
    frames: int = V1,
    user: str | None = None,
) -> None:
    """Write the connection, membership and joined-room items of these members, who joined an hour ago by default.

    `memberships_only` is faster, and sufficient where no member is reaped. With several `shards` the room's settings
    are written, too. If `tokens_expire`, connections expire when memberships do. A `user` is present in the room.
    """
    if joined_at_ms is None:
        joined_at_ms = int(time.time() * 1000) - _AGE_MS
    expires_at = int(time.time()) + expires_in_seconds
    items: list[dict[str, Any]] = []
    if shards > 1:
        settings = {"shards": {"N": str(shards)}, "join_shards": {"N": str(shards)}}
        items.append({**keys.key(keys.settings_pk(room), keys.SETTINGS_SK), **settings})
    for each in ids:
        shard = keys.shard_of(each, shards)
        items.append(
            keys.membership_item(room, shard, each, joined_at_ms=joined_at_ms, expires_at=expires_at, frames=frames)
        )
        if not memberships_only:
            ends = {"expires_at": {"N": str(expires_at)}} if tokens_expire else {}
            items.append({**keys.connection_item(each, connected_at_ms=joined_at_ms, frames=frames), **ends})
            items.append(keys.joined_room_item(each, room, shard, expires_at=expires_at, present_user=user))
        if user is not None:
            items.append(keys.presence_item(room, user, each, joined_at_ms=joined_at_ms, expires_at=expires_at))
    for start in range(0, len(items), keys.MAX_BATCH_WRITE):
        requests = [{"PutRequest": {"Item": item}} for item in items[start : start + keys.MAX_BATCH_WRITE]]
        while requests:
            response = dynamodb.batch_write_item(RequestItems={table: requests})
            requests = response["UnprocessedItems"].get(table, [])


def items_left(dynamodb: Any, table: str, room: str, ids: Sequence[str], *, shards: int = 1) -> int:
    """How many of the connection and membership items of these connections still exist."""
    found = 0
    for start in range(0, len(ids), 50):
        wanted = [
            key
            for each in ids[start : start + 50]
            for key in (
                keys.key(keys.connection_pk(each), keys.CONNECTION_SK),
                keys.key(keys.room_pk(room, keys.shard_of(each, shards)), each),
            )
        ]
        response = dynamodb.batch_get_item(RequestItems={table: {"Keys": wanted, "ConsistentRead": True}})
        found += len(response["Responses"].get(table, ()))
    return found
