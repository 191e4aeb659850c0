"""Rooms in the table, for operators: settings are read and written, members counted. `dynamodb` is a boto3 client.

Errors of the client pass through. Reads are consistent, except for counts, which cost half as much so.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gatecast import table as keys
from gatecast.cli.failures import CommandFailed, Interrupted
from gatecast.cli.room_settings import Setting, Value, attribute, in_force
from gatecast.room_settings import SettingsItem

APPLIED_SECONDS: Final = 60
"""After this, a change of settings is in force in all routes and workers: they cache settings for 30 s."""
_ATTEMPTS: Final = 5
_CONDITION_FAILED: Final = "ConditionalCheckFailedException"


class Damage(NamedTuple):
    """An attribute of a settings item that is invalid: its default counts, or the nearest valid number of shards."""

    item: str
    attribute: str


class StoredSettings(NamedTuple):
    """The settings items of a target, in the order of their names; the first is its own."""

    names: tuple[str, ...]
    items: tuple[SettingsItem, ...]
    own: Mapping[str, Any]
    """The target's own item, as it is stored."""
    damage: tuple[Damage, ...]

    @property
    def in_force(self) -> dict[str, Setting]:
        return in_force(self.names, self.items)


def read_settings(dynamodb: Any, table: str, names: Sequence[str]) -> StoredSettings:
    """The items of these names. Raises CommandFailed if DynamoDB leaves keys unprocessed."""
    wanted: Any = {
        "Keys": [keys.key(keys.settings_pk(name), keys.SETTINGS_SK) for name in names],
        "ConsistentRead": True,
    }
    found: dict[str, Mapping[str, Any]] = {}
    for _ in range(_ATTEMPTS):
        response = dynamodb.batch_get_item(RequestItems={table: wanted})
        found |= {item["pk"]["S"]: item for item in response.get("Responses", {}).get(table, ())}
        wanted = response.get("UnprocessedKeys", {}).get(table)
        if not wanted:
            break
    else:
        raise CommandFailed("DynamoDB has left keys unprocessed", "retry in a minute")
    damage: list[Damage] = []
    items = []
    for name in names:
        wrong: list[str] = []
        items.append(SettingsItem.from_item(found.get(keys.settings_pk(name)), wrong.append))
        damage += [Damage(name, each) for each in wrong]
    return StoredSettings(tuple(names), tuple(items), found.get(keys.settings_pk(names[0]), {}), tuple(damage))


def write_settings(
    dynamodb: Any, table: str, target: str, assigned: Mapping[str, Value | None], stored: Mapping[str, Any]
) -> None:
    """Writes attributes of the target's item, or removes them (None), if they still are as they are `stored`.

    Raises CommandFailed if they are not.
    """
    names = {f"#{number}": name for number, name in enumerate(assigned)}
    sets = {f":new{key[1:]}": attribute(value) for key, name in names.items() if (value := assigned[name]) is not None}
    parts = []
    if sets:
        parts.append("SET " + ", ".join(f"#{key[4:]} = {key}" for key in sets))
    if removed := [key for key, name in names.items() if assigned[name] is None]:
        parts.append("REMOVE " + ", ".join(removed))
    before = {f":old{key[1:]}": stored[name] for key, name in names.items() if name in stored}
    conditions = [
        f"{key} = :old{key[1:]}" if name in stored else f"attribute_not_exists({key})" for key, name in names.items()
    ]
    values = {**sets, **before}
    try:
        dynamodb.update_item(
            TableName=table,
            Key=keys.key(keys.settings_pk(target), keys.SETTINGS_SK),
            UpdateExpression=" ".join(parts),
            ConditionExpression=" AND ".join(conditions),
            ExpressionAttributeNames=names,
            **({"ExpressionAttributeValues": values} if values else {}),
        )
    except Exception as error:
        response = getattr(error, "response", {})
        if response.get("Error", {}).get("Code") != _CONDITION_FAILED:
            raise
        raise CommandFailed(f"the settings of {target} have changed meanwhile", "look again, and repeat") from None


def grow(
    dynamodb: Any,
    table: str,
    target: str,
    shards: int,
    stored: StoredSettings,
    *,
    note: Callable[[str], object],
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Both steps: all routes and workers read the new shards before a member joins one of them.

    If it is interrupted or fails in between, the room works as before, and the same call finishes it. Raises
    CommandFailed, also if another process changes the settings meanwhile.
    """
    if stored.own.get("shards") != attribute(shards):
        write_settings(dynamodb, table, target, {"shards": shards}, stored.own)
    own = {**stored.own, "shards": attribute(shards)}
    joined = stored.in_force["join_shards"].value
    try:
        note(f"waiting {APPLIED_SECONDS} s, until all routes and workers read {shards} shards")
        sleep(APPLIED_SECONDS)
        write_settings(dynamodb, table, target, {"shards": shards, "join_shards": shards}, own)
    except KeyboardInterrupt:
        what = f"{target} is read in {shards} shards, but new members may still join {joined}"
        raise Interrupted(what, "that does no harm; run the same command again to finish") from None


def count_members(dynamodb: Any, table: str, room: str, shards: int, *, now: float) -> list[int]:
    """The members of each shard. Costs half a read unit per 4 KB of memberships."""
    return [_count_shard(dynamodb, table, keys.room_pk(room, shard), now) for shard in range(shards)]


def read_head(dynamodb: Any, table: str, room: str) -> int | None:
    """The offset of the room's latest message; None if it has no history, or none yet."""
    key = keys.key(keys.stream_pk(room), keys.HEAD_SK)
    return keys.offset_of_head(dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True).get("Item"))


def _count_shard(dynamodb: Any, table: str, pk: str, now: float) -> int:
    query: dict[str, Any] = {
        "TableName": table,
        "KeyConditionExpression": "pk = :pk",
        "FilterExpression": "attribute_not_exists(expires_at) OR expires_at > :now",
        "ExpressionAttributeValues": {":pk": {"S": pk}, ":now": {"N": str(int(now))}},
        "Select": "COUNT",
    }
    members = 0
    while True:
        page = dynamodb.query(**query)
        members += int(page["Count"])
        if "LastEvaluatedKey" not in page:
            return members
        query["ExclusiveStartKey"] = page["LastEvaluatedKey"]
