"""Members of rooms, written as the contract has them: tests know the table's items, never the worker's insides."""

import time
from collections.abc import Sequence
from typing import Any, Final

from gatecast import table as keys

_EXPIRES_IN_SECONDS: Final = 24 * 3600
_AGE_MS: Final = 3_600_000
_END_OF_AN_ID: Final = "AbCdEf="


def connection_ids(count: int, prefix: str = "c") -> list[str]:
    """As API Gateway makes them: base64-like, with an `=` at the end."""
    return [f"{prefix}{number:06d}{_END_OF_AN_ID}" for number in range(count)]


def is_client(connection_id: str) -> bool:
    """Whether it is one of `connection_ids`: for the stand-in for `@connections`, all others do not exist."""
    return connection_id.endswith(_END_OF_AN_ID)


def write_members(
    dynamodb: Any, table: str, room: str, ids: Sequence[str], *, memberships_only: bool = False, shards: int = 1
) -> None:
    """Members that joined an hour ago. `memberships_only` is quicker, and enough where nobody is reaped."""
    joined_at_ms = int(time.time() * 1000) - _AGE_MS
    expires_at = int(time.time()) + _EXPIRES_IN_SECONDS
    items: list[dict[str, Any]] = []
    if shards > 1:
        settings = {"shards": {"N": str(shards)}, "join_shards": {"N": str(shards)}}
        items.append({**keys.key(keys.settings_pk(room), keys.SETTINGS_SK), **settings})
    for each in ids:
        shard = keys.shard_of(each, shards)
        items.append(keys.membership_item(room, shard, each, joined_at_ms=joined_at_ms, expires_at=expires_at))
        if not memberships_only:
            items.append(keys.connection_item(each, connected_at_ms=joined_at_ms))
            items.append(keys.joined_room_item(each, room, shard, expires_at=expires_at))
    for start in range(0, len(items), keys.MAX_BATCH_WRITE):
        requests = [{"PutRequest": {"Item": item}} for item in items[start : start + keys.MAX_BATCH_WRITE]]
        while requests:
            answer = dynamodb.batch_write_item(RequestItems={table: requests})
            requests = answer["UnprocessedItems"].get(table, [])


def items_left(dynamodb: Any, table: str, room: str, ids: Sequence[str], *, shards: int = 1) -> int:
    """How many of the connection and membership items of these connections exist."""
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
        answer = dynamodb.batch_get_item(RequestItems={table: {"Keys": wanted, "ConsistentRead": True}})
        found += len(answer["Responses"].get(table, ()))
    return found
