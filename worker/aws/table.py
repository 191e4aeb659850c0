"""DynamoDB: members by page, room settings, ages of connections, and the removal of gone ones.

Pages and settings are hot and go through `JsonService`, decoded straight into typed members; the rest is the SDK's.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from gatecast import table as keys
from gatecast.table import Item, Key, RoomSettings
from worker.aws.json_service import JsonService
from worker.fanout import Member
from worker.ports import Page, ServiceError

_PAGE_MEMBERS: Final = 4_000
"""Bounds memory and the time that decoding a page takes; DynamoDB's own limit is 1 MB."""


# What DynamoDB answers. `gc=False`: they hold no cycles, and thousands at once would only keep the collector busy.


class _S(msgspec.Struct, gc=False):
    S: str


class _N(msgspec.Struct, gc=False):
    N: str


class _MemberItem(msgspec.Struct, gc=False):
    sk: _S
    joined_at_ms: _N | None = None
    expires_at: _N | None = None


class _LastKey(msgspec.Struct):
    sk: _S


class _QueryAnswer(msgspec.Struct):
    items: list[_MemberItem] = msgspec.field(name="Items")
    last_key: _LastKey | None = msgspec.field(name="LastEvaluatedKey", default=None)


class _BatchGetAnswer(msgspec.Struct):
    responses: dict[str, list[dict[str, Any]]] = msgspec.field(name="Responses")
    unprocessed: dict[str, Any] = msgspec.field(name="UnprocessedKeys", default_factory=dict)


def _integer(number: str) -> int:
    """DynamoDB's numbers need not be whole, whoever writes them."""
    return int(float(number))


_query_decoder: Final = msgspec.json.Decoder(_QueryAnswer)
_batch_get_decoder: Final = msgspec.json.Decoder(_BatchGetAnswer)


class Table:
    """Every call raises what the SDK or `JsonService` raises. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self, client: Any, service: JsonService, name: str, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._service = service
        self._name = name
        self._wall_clock = wall_clock

    async def page(self, room: str, shard: int, after: str) -> Page:
        """One page of members behind the key `after` (empty: from the start).

        Consistent, so that whoever has been told that it joined is reached by what is published after that.
        """
        query: dict[str, Any] = {
            "TableName": self._name,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": keys.room_pk(room, shard)}},
            "ProjectionExpression": "sk, joined_at_ms, expires_at",
            "ConsistentRead": True,
            "Limit": _PAGE_MEMBERS,
        }
        if after:
            query["ExclusiveStartKey"] = keys.key(keys.room_pk(room, shard), after)
        answer = _query_decoder.decode(await self._service.call("Query", msgspec.json.encode(query)))
        now = self._wall_clock()
        return Page(
            [
                Member(item.sk.S, _integer(item.joined_at_ms.N) if item.joined_at_ms else 0)
                for item in answer.items
                if item.expires_at is None or float(item.expires_at.N) > now
            ],
            answer.last_key.sk.S if answer.last_key else None,
        )

    async def settings(self, rooms: Sequence[str]) -> list[RoomSettings | ServiceError]:
        """The settings of at most 100 rooms; an error for a room that was not read this time."""
        wanted = [keys.key(keys.settings_pk(room), keys.SETTINGS_SK) for room in dict.fromkeys(rooms)]
        body = msgspec.json.encode({"RequestItems": {self._name: {"Keys": wanted}}})
        answer = _batch_get_decoder.decode(await self._service.call("BatchGetItem", body))
        found = {item["pk"]["S"]: item for item in answer.responses.get(self._name, ())}
        left = {key["pk"]["S"] for key in answer.unprocessed.get(self._name, {}).get("Keys", ())}
        return [
            ServiceError("UnprocessedKeys") if pk in left else RoomSettings.from_item(found.get(pk))
            for pk in map(keys.settings_pk, rooms)
        ]

    async def connected_at_ms(self, connection_ids: Sequence[str]) -> dict[str, int]:
        """When these (100 at most) connected, by id; those that have no item are left out."""
        wanted: list[Key] = [keys.key(keys.connection_pk(each), keys.CONNECTION_SK) for each in connection_ids]
        projection = {"ProjectionExpression": "pk, connected_at_ms", "ConsistentRead": True}
        answer = await self._client.batch_get_item(RequestItems={self._name: {"Keys": wanted, **projection}})
        if answer.get("UnprocessedKeys"):
            raise ServiceError("UnprocessedKeys")
        return {
            item["pk"]["S"].removeprefix(keys.connection_pk("")): _integer(item.get("connected_at_ms", {"N": "0"})["N"])
            for item in answer["Responses"].get(self._name, ())
        }

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
