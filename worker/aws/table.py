"""DynamoDB: members by page, room settings, connections' ages and dialects, and the removal of gone ones.

All calls go through `JsonService`, and pages are decoded directly into typed members. No item makes a call fail,
whatever other programs have written into the table: an unreadable value is replaced by the least harmful one, and
reported.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gatecast import table as keys
from gatecast.frames import V1, V2
from gatecast.room_settings import SettingsItem
from gatecast.table import Key, lenient_number
from worker.aws.errors import reading_response
from worker.aws.json_service import JsonService
from worker.observe.damaged_items import DamagedItems
from worker.ports import Connection, DependencyError, JoinedRoom, Member, Page

_PAGE_MEMBERS: Final = 4_000
"""Bounds the memory and decoding time of a page; DynamoDB's own limit is 1 MB."""
_LARGEST_EXACT_INTEGER: Final = 2**53 - 1


# DynamoDB's responses. `gc=False`: they contain no cycles, and thousands of them would slow the collector down.


class _S(msgspec.Struct, gc=False):
    S: str


class _N(msgspec.Struct, gc=False):
    N: str


class _MemberItem(msgspec.Struct, gc=False):
    sk: _S
    joined_at_ms: _N | None = None
    expires_at: _N | None = None
    frames: _N | None = None


class _LastKey(msgspec.Struct):
    sk: _S


class _Query(msgspec.Struct):
    items: list[_MemberItem] = msgspec.field(name="Items")
    last_key: _LastKey | None = msgspec.field(name="LastEvaluatedKey", default=None)


class _LenientQuery(msgspec.Struct):
    items: list[dict[str, Any]] = msgspec.field(name="Items")
    last_key: _LastKey | None = msgspec.field(name="LastEvaluatedKey", default=None)


class _BatchGet(msgspec.Struct):
    responses: dict[str, list[dict[str, Any]]] = msgspec.field(name="Responses")
    unprocessed: dict[str, Any] = msgspec.field(name="UnprocessedKeys", default_factory=dict)


class _Deletion(msgspec.Struct):
    key: dict[str, dict[str, str]] = msgspec.field(name="Key")


class _Request(msgspec.Struct):
    deletion: _Deletion = msgspec.field(name="DeleteRequest")


class _BatchWrite(msgspec.Struct):
    unprocessed: dict[str, list[_Request]] = msgspec.field(name="UnprocessedItems", default_factory=dict)


_query_decoder: Final = msgspec.json.Decoder(_Query)
_lenient_query_decoder: Final = msgspec.json.Decoder(_LenientQuery)
_batch_get_decoder: Final = msgspec.json.Decoder(_BatchGet)
_batch_write_decoder: Final = msgspec.json.Decoder(_BatchWrite)


def begin_page(service: JsonService, query: Mapping[str, Any], read: Callable[[bytes], Page]) -> "asyncio.Future[Page]":
    """Start a query whose response `read` turns into a page. It need not be awaited."""
    page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()

    def decode(response: "asyncio.Future[bytes]") -> None:
        if page.cancelled() or response.cancelled():
            page.cancel()
        elif (error := response.exception()) is not None:
            page.set_exception(error)
            page.exception()  # mark as retrieved: the page need not be awaited
        else:
            try:
                page.set_result(read(response.result()))
            except Exception as failure:  # noqa: BLE001 - every error must reach the caller
                page.set_exception(failure)
                page.exception()

    service.begin("Query", msgspec.json.encode(query)).add_done_callback(decode)
    return page


class Table:
    """Every call raises what `JsonService` raises. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        service: JsonService,
        name: str,
        *,
        wall_clock: Callable[[], float] = time.time,
        damaged: DamagedItems | None = None,
    ) -> None:
        self._service = service
        self._name = name
        self._wall_clock = wall_clock
        self._damaged = damaged or DamagedItems(Counter())

    def begin_page(self, room: str, shard: int, after: str = "") -> "asyncio.Future[Page]":
        """Start reading the page of members after the key `after` (empty: from the start). It need not be awaited.

        The read is consistent, so that a client whose join has been confirmed receives everything published after that.
        """
        pk = keys.room_pk(room, shard)
        query: dict[str, Any] = {
            "TableName": self._name,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": pk}},
            "ProjectionExpression": "sk, joined_at_ms, expires_at, frames",
            "ConsistentRead": True,
            "Limit": _PAGE_MEMBERS,
        }
        if after:
            query["ExclusiveStartKey"] = keys.key(pk, after)
        return begin_page(self._service, query, lambda body: self._page(pk, body))

    def _page(self, pk: str, body: bytes) -> Page:
        now = self._wall_clock()
        try:
            page = _query_decoder.decode(body)
            members: list[Member] = []
            expired: list[Member] = []
            for item in page.items:
                joined_at_ms = milliseconds(float(item.joined_at_ms.N)) if item.joined_at_ms else 0
                frames = V2 if item.frames is not None and float(item.frames.N) == V2 else V1
                has_expired = item.expires_at is not None and float(item.expires_at.N) <= now
                (expired if has_expired else members).append(Member(item.sk.S, joined_at_ms, frames))
        except (msgspec.ValidationError, ValueError):
            return self._lenient_page(pk, body, now)
        return Page(members, page.last_key.sk.S if page.last_key else None, expired)

    def _lenient_page(self, pk: str, body: bytes, now: float) -> Page:
        """The page, decoded leniently after fast decoding failed: an unreadable item must not affect other members."""
        with reading_response():
            page = _lenient_query_decoder.decode(body)
        members: list[Member] = []
        expired: list[Member] = []
        damaged = 0
        for item in page.items:
            member, has_expired, intact = _lenient_member(item, now)
            damaged += not intact
            if member is not None:
                (expired if has_expired else members).append(member)
        if damaged:
            why = "joined_at_ms, expires_at or frames is not a number"
            self._damaged.report("membership", pk, why, items=damaged)
        return Page(members, page.last_key.sk.S if page.last_key else None, expired)

    async def settings(self, names: Sequence[str]) -> list[SettingsItem | DependencyError]:
        """At most 100 settings items, in order of their names; an error for each that could not be read this time.

        The read is consistent: after raising `shards` it is enough to wait until caches have expired before raising
        `join_shards`.
        """
        wanted = [keys.key(keys.settings_pk(name), keys.SETTINGS_SK) for name in dict.fromkeys(names)]
        found, unprocessed = await self._get({"Keys": wanted, "ConsistentRead": True})
        return [
            DependencyError("UnprocessedKeys") if pk in unprocessed else self._settings_item(pk, found.get(pk))
            for pk in map(keys.settings_pk, names)
        ]

    def _settings_item(self, pk: str, item: dict[str, Any] | None) -> SettingsItem:
        damaged: list[str] = []
        settings = SettingsItem.from_item(item, damaged.append)
        if damaged:
            self._damaged.report("settings", pk, f"{' and '.join(damaged)}: not a whole number in the documented range")
        return settings

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        """The items of these connections (at most 100) by id, read consistently; those without an item are omitted.

        Of unreadable values, `connected_at_ms` counts as long ago, `expires_at` as never, and `frames` as v1.
        """
        wanted = [keys.key(keys.connection_pk(each), keys.CONNECTION_SK) for each in dict.fromkeys(connection_ids)]
        projection = {"ProjectionExpression": "pk, connected_at_ms, frames, expires_at", "ConsistentRead": True}
        found, unprocessed = await self._get({"Keys": wanted, **projection})
        if unprocessed:
            raise DependencyError("UnprocessedKeys")
        return {pk.removeprefix(keys.connection_pk("")): self._connection(pk, item) for pk, item in found.items()}

    def _connection(self, pk: str, item: dict[str, Any]) -> Connection:
        names = ("connected_at_ms", "frames", "expires_at")
        damaged = [name for name in names if name in item and lenient_number(item[name]) is None]
        if damaged:
            self._damaged.report("connection", pk, f"{' and '.join(damaged)}: not a number")
        connected_at_ms, expires_at = (
            lenient_number(item.get("connected_at_ms")),
            lenient_number(item.get("expires_at")),
        )
        return Connection(
            milliseconds(connected_at_ms or 0), keys.frames_of(item), math.inf if expires_at is None else expires_at
        )

    async def _get(self, request: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], set[str]]:
        """BatchGetItem. Returns the items found by `pk`, and the `pk` of each key that was not processed."""
        body = msgspec.json.encode({"RequestItems": {self._name: request}})
        response_body = await self._service.call("BatchGetItem", body)
        with reading_response():
            response = _batch_get_decoder.decode(response_body)
            found = {item["pk"]["S"]: item for item in response.responses.get(self._name, ())}
            return found, {key["pk"]["S"] for key in response.unprocessed.get(self._name, {}).get("Keys", ())}

    async def remove_connections(self, connection_ids: Sequence[str]) -> list[str]:
        """Delete these connections' items (at most 25), so that none of them can join any more.

        Returns the ids that were not processed.
        """
        prefix = keys.connection_pk("")
        doomed = [keys.key(keys.connection_pk(each), keys.CONNECTION_SK) for each in connection_ids]
        return [key["pk"]["S"].removeprefix(prefix) for key in await self.delete_batch(doomed)]

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        """All rooms of a connection, read consistently."""
        pk = keys.connection_pk(connection_id)
        query: dict[str, Any] = {
            "TableName": self._name,
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :prefix)",
            "ExpressionAttributeValues": {":pk": {"S": pk}, ":prefix": {"S": keys.JOINED_ROOM_PREFIX}},
            "ProjectionExpression": "sk, #shard, present",
            "ExpressionAttributeNames": {"#shard": "shard"},  # a reserved word
            "ConsistentRead": True,
        }
        joined: list[JoinedRoom] = []
        while True:
            body = await self._service.call("Query", msgspec.json.encode(query))
            with reading_response():
                page = _lenient_query_decoder.decode(body)
            joined += [self._joined_room(pk, item) for item in page.items]
            if page.last_key is None:
                return joined
            query["ExclusiveStartKey"] = keys.key(pk, page.last_key.sk.S)

    def _joined_room(self, pk: str, item: dict[str, Any]) -> JoinedRoom:
        shard = keys.shard_of_item(item)
        if shard is None:
            self._damaged.report("joined_room", pk, "shard is not a whole number")
        return JoinedRoom(item["sk"]["S"].removeprefix(keys.JOINED_ROOM_PREFIX), shard, keys.present_user(item))

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        """Delete the items with these keys (at most 25, all different). Returns the keys that were not processed."""
        requests = [{"DeleteRequest": {"Key": key}} for key in doomed]
        body = msgspec.json.encode({"RequestItems": {self._name: requests}})
        response_body = await self._service.call("BatchWriteItem", body)
        with reading_response():
            response = _batch_write_decoder.decode(response_body)
        return [request.deletion.key for request in response.unprocessed.get(self._name, ())]


def _lenient_member(item: dict[str, Any], now: float) -> tuple[Member | None, bool, bool]:
    """The member, or None if it names no connection; whether it has expired; and whether the item was intact.

    Unreadable times count as absent: one message too many is better than one that is not delivered.
    """
    match item.get("sk"):
        case {"S": str(connection_id)} if connection_id:
            pass
        case _:
            return None, False, False
    numbers = {name: lenient_number(item[name]) for name in ("joined_at_ms", "expires_at", "frames") if name in item}
    intact = all(number is not None and "N" in item[name] for name, number in numbers.items())
    expires_at = numbers.get("expires_at")
    has_expired = expires_at is not None and expires_at <= now
    member = Member(connection_id, milliseconds(numbers.get("joined_at_ms") or 0), keys.frames_of(item))
    return member, has_expired, intact


def milliseconds(number: float) -> int:
    """A number as whole milliseconds; 0 if it is too large. DynamoDB's numbers may be fractions, and very large."""
    return int(number) if -_LARGEST_EXACT_INTEGER <= number <= _LARGEST_EXACT_INTEGER else 0
