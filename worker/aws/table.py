"""DynamoDB: members by page, room settings, claims and checkpoints, and the removal of gone connections.

Progress items (claim and checkpoint of one broadcast) have these attributes beside their keys:
`message_id`, `receives`, `claimed_by`, `claimed_at` (the claim: which message, at which receive, by which lease, when),
`cursor`, `pending` (the checkpoint), `progressed_at_receive`, `expires_at`. Every write but the claim itself is
conditional on `claimed_by`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from botocore.exceptions import ClientError

from gatecast import table as keys
from gatecast.broadcast import Broadcast
from gatecast.table import Item, Key, RoomSettings
from worker.checkpoint import Checkpoint
from worker.fanout import Member

MAX_BATCH_GET: Final = 100
PROGRESS_TTL_SECONDS: Final = 15 * 24 * 3600
"""Beyond the longest retention of a queue (14 days): a message never outlives what is known about it."""
DUPLICATE_SECONDS: Final = 24 * 3600
"""So long another message with the same target, id and part is the same broadcast."""
_PAGE_MEMBERS: Final = 4_000

_CLAIM: Final = (
    "attribute_not_exists(pk) OR attribute_not_exists(message_id) OR claimed_at <= :day_ago"
    " OR (message_id = :message_id AND (receives < :receives OR claimed_by = :claimed_by))"
)


class Page(NamedTuple):
    """Members of a room's shard in key order, expired ones left out. `after` is where the next page starts, if any."""

    members: Sequence[Member]
    after: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A broadcast that is ours. `fresh_receives` counts the receives since one that made progress."""

    key: Key
    claimed_by: str
    receives: int
    start: Checkpoint
    fresh_receives: int


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """`duplicate`: another message has it. Otherwise it is this very message, received later or elsewhere."""

    duplicate: bool


class Table:
    """Every call raises what the SDK raises. `wall_clock` gives seconds since the epoch."""

    def __init__(self, client: Any, name: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._name = name
        self._wall_clock = wall_clock

    async def page(self, room: str, shard: int, after: str) -> Page:
        """One page of members behind the key `after` (empty: from the start).

        Consistent, so that whoever has been told that it joined is reached by what is published after that.
        """
        start = {"ExclusiveStartKey": keys.key(keys.room_pk(room, shard), after)} if after else {}
        answer = await self._client.query(
            TableName=self._name,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": keys.room_pk(room, shard)}},
            ProjectionExpression="sk, joined_at_ms, expires_at",
            ConsistentRead=True,
            Limit=_PAGE_MEMBERS,
            **start,
        )
        now = self._wall_clock()
        last = answer.get("LastEvaluatedKey")
        return Page(
            [
                Member(item["sk"]["S"], int(item.get("joined_at_ms", _ZERO)["N"]))
                for item in answer["Items"]
                if "expires_at" not in item or int(item["expires_at"]["N"]) > now
            ],
            last["sk"]["S"] if last else None,
        )

    async def settings(self, room: str) -> RoomSettings:
        answer = await self._client.get_item(
            TableName=self._name, Key=keys.key(keys.settings_pk(room), keys.SETTINGS_SK)
        )
        return RoomSettings.from_item(answer.get("Item"))

    async def connected_at_ms(self, connection_ids: Sequence[str]) -> dict[str, int]:
        """When these (100 at most) connected, by id; those that have no item are left out."""
        wanted: list[Key] = [keys.key(keys.connection_pk(each), keys.CONNECTION_SK) for each in connection_ids]
        found: dict[str, int] = {}
        while wanted:
            answer = await self._client.batch_get_item(
                RequestItems={
                    self._name: {
                        "Keys": wanted,
                        "ProjectionExpression": "pk, connected_at_ms",
                        "ConsistentRead": True,
                    }
                }
            )
            for item in answer["Responses"].get(self._name, ()):
                connection_id = item["pk"]["S"].removeprefix(keys.connection_pk(""))
                found[connection_id] = int(item.get("connected_at_ms", _ZERO)["N"])
            wanted = answer.get("UnprocessedKeys", {}).get(self._name, {}).get("Keys", [])
        return found

    async def claim(self, broadcast: Broadcast, message_id: str, receives: int, claimed_by: str) -> Claim | NotClaimed:
        """One conditional write. Repeating it with the same `claimed_by` changes nothing."""
        now = int(self._wall_clock())
        key = keys.key(keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part))
        try:
            answer = await self._client.update_item(
                TableName=self._name,
                Key=key,
                UpdateExpression=(
                    "SET message_id = :message_id, receives = :receives, claimed_by = :claimed_by,"
                    " claimed_at = :now, expires_at = :expires"
                ),
                ConditionExpression=_CLAIM,
                ExpressionAttributeValues={
                    ":message_id": {"S": message_id},
                    ":receives": {"N": str(receives)},
                    ":claimed_by": {"S": claimed_by},
                    ":now": {"N": str(now)},
                    ":day_ago": {"N": str(now - DUPLICATE_SECONDS)},
                    ":expires": {"N": str(now + PROGRESS_TTL_SECONDS)},
                },
                ReturnValues="ALL_OLD",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            if not _condition_failed(error):
                raise
            holder = error.response.get("Item", {}).get("message_id", {}).get("S")
            return NotClaimed(duplicate=holder is not None and holder != message_id)
        before = answer.get("Attributes", {})
        if before.get("message_id", {}).get("S", message_id) != message_id:
            before = {}  # a day later the same id is a new broadcast: it does not go on from the old one's checkpoint
        return _claim(key, claimed_by, receives, before)

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint) -> bool:
        """False if the broadcast has been taken over: then nothing more may be done for it here."""
        return await self._update_claimed(
            claim,
            "SET #cursor = :cursor, pending = :pending, progressed_at_receive = :receives",
            {
                ":cursor": {"S": checkpoint.cursor},
                ":pending": {"S": checkpoint.encode_pending()},
                ":receives": {"N": str(claim.receives)},
            },
            {"#cursor": "cursor"},
        )

    async def release_claim(self, claim: Claim) -> bool:
        """Let any message claim the broadcast and go on from its checkpoint. False if it has been taken over."""
        return await self._update_claimed(
            claim, "REMOVE message_id, claimed_by, receives, progressed_at_receive", {}, {}
        )

    async def _update_claimed(self, claim: Claim, update: str, values: Item, names: dict[str, str]) -> bool:
        try:
            await self._client.update_item(
                TableName=self._name,
                Key=claim.key,
                UpdateExpression=update,
                ConditionExpression="claimed_by = :claimed_by",
                ExpressionAttributeValues={":claimed_by": {"S": claim.claimed_by}, **values},
                **({"ExpressionAttributeNames": names} if names else {}),
            )
        except ClientError as error:
            if _condition_failed(error):
                return False
            raise
        return True

    async def remove_connection(self, connection_id: str) -> None:
        """Delete the connection item: from here on no join can succeed."""
        await self._client.delete_item(
            TableName=self._name, Key=keys.key(keys.connection_pk(connection_id), keys.CONNECTION_SK)
        )

    async def joined_rooms(self, connection_id: str) -> list[Item]:
        """All joined-room items of a connection, read consistently."""
        items: list[Item] = []
        start: dict[str, Any] = {}
        while True:
            answer = await self._client.query(
                TableName=self._name,
                KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
                ExpressionAttributeValues={
                    ":pk": {"S": keys.connection_pk(connection_id)},
                    ":prefix": {"S": keys.JOINED_ROOM_PREFIX},
                },
                ConsistentRead=True,
                **start,
            )
            items += answer["Items"]
            if not answer.get("LastEvaluatedKey"):
                return items
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def delete_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """At most 25 requests; what comes back is unprocessed."""
        answer = await self._client.batch_write_item(RequestItems={self._name: requests})
        return list(answer.get("UnprocessedItems", {}).get(self._name, []))


_ZERO: Final = {"N": "0"}


def _condition_failed(error: ClientError) -> bool:
    return bool(error.response.get("Error", {}).get("Code") == "ConditionalCheckFailedException")


def _claim(key: Key, claimed_by: str, receives: int, attributes: Item) -> Claim:
    start = Checkpoint()
    if "cursor" in attributes:
        start = Checkpoint.decode(attributes["cursor"]["S"], attributes["pending"]["S"])
    progressed_at = int(attributes.get("progressed_at_receive", _ZERO)["N"])
    return Claim(key, claimed_by, receives, start, receives - progressed_at)
