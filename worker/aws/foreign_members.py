"""DynamoDB: members by page from a table or index of the operator's own, and the deletion of their items.

GATECAST_MEMBERS (`members_setting`) names its attributes. Everything else stays in Gatecast's own table: progress,
histories, and settings of rooms. There are no connection items, so clients use the dialect v1, and nothing is known of
connections that a broadcast names. Members whose item has expired are left out: what expiry means there is not known,
so nobody is disconnected for it.

No item makes a page fail. One without a connection id is reported, and left out.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from gatecast import table as keys
from gatecast.room_settings import SettingsItem
from gatecast.table import lenient_number, text_of
from worker.aws.errors import CONDITION_FAILED, ServiceError, reading_response
from worker.aws.json_service import JsonService
from worker.aws.table import Table, begin_page, milliseconds
from worker.decisions.locator import MAX_USER_CHARACTERS, Locator, prefix
from worker.members_check import MembersKeys, assumed_keys, check
from worker.members_setting import InvalidMembers, MembersSource
from worker.observe.damaged_items import DamagedItems
from worker.ports import Connection, DependencyError, Member, Page

log = structlog.get_logger()

_PAGE_MEMBERS: Final = 1_000
"""Bounds the time for which decoding a page stops the event loop, to a few milliseconds."""
_FIRST_MILLISECONDS: Final = 100_000_000_000
"""From here on a time is in milliseconds, below in seconds: 1973, or the year 5138."""
_ACCESS_DENIED: Final = "AccessDeniedException"
_NOT_FOUND: Final = "ResourceNotFoundException"


class _Query(msgspec.Struct):
    items: list[dict[str, Any]] = msgspec.field(name="Items")
    last_key: dict[str, dict[str, Any]] | None = msgspec.field(name="LastEvaluatedKey", default=None)


class _Description(msgspec.Struct):
    table: dict[str, Any] = msgspec.field(name="Table")


_query_decoder: Final = msgspec.json.Decoder(_Query)
_description_decoder: Final = msgspec.json.Decoder(_Description)


async def find_keys(service: JsonService, source: MembersSource) -> MembersKeys:
    """The keys of the table, or of the index, as DynamoDB describes them; if the worker may not ask, assumed ones.

    Raises InvalidMembers if there is no such table, or another one than the setting says, and DependencyError.
    """
    try:
        body = await service.call("DescribeTable", msgspec.json.encode({"TableName": source.table}))
    except ServiceError as error:
        if error.code == _NOT_FOUND:
            raise InvalidMembers(
                f"table is {source.table!r}: expected a table that exists in the worker's account and Region"
            ) from None
        if error.code != _ACCESS_DENIED:
            raise
        assumed = assumed_keys(source)
        log.warning("members.unchecked", table=source.table, reason=error.reason, assumed_key=list(assumed.table_key))
        return assumed
    with reading_response():
        return check(source, _description_decoder.decode(body).table)


class ForeignTable:
    """The members of rooms in the source. `own` is Gatecast's table. Every call raises what `JsonService` raises.

    `wall_clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        service: JsonService,
        own: Table,
        source: MembersSource,
        source_keys: MembersKeys,
        *,
        wall_clock: Callable[[], float] = time.time,
        damaged: DamagedItems | None = None,
    ) -> None:
        self._service = service
        self._own = own
        self._source = source
        self._keys = source_keys
        self._wall_clock = wall_clock
        self._damaged = damaged or DamagedItems(Counter())
        pattern = source.pk_value
        self.prefix = prefix(source.table, source.index or "", source.pk, *pattern.parts, "", *source_keys.locator)
        """What all locators in this source begin with."""
        self._user = source.user if source.gone_queue_url else None
        self._query = self._make_query()

    def _make_query(self) -> dict[str, Any]:
        """The part of the query that is the same for all rooms."""
        source = self._source
        optional = (source.expires_at, source.joined_at_ms, self._user)
        read = dict.fromkeys((source.connection_id, *self._keys.locator, *filter(None, optional)))
        names = {name: f"#{number}" for number, name in enumerate((source.pk, *read))}
        condition = f"{names[source.pk]} = :pk"
        if source.sk_prefix:
            condition += f" AND begins_with({names[str(source.sk)]}, :prefix)"
        return {
            "TableName": source.table,
            **({"IndexName": source.index} if source.index else {}),
            "KeyConditionExpression": condition,
            "ProjectionExpression": ", ".join(names[name] for name in read),
            "ExpressionAttributeNames": {placeholder: name for name, placeholder in names.items()},
            "ConsistentRead": self._keys.is_consistent,
            "Limit": _PAGE_MEMBERS,
        }

    def begin_page(self, room: str, shard: int, after: str = "") -> "asyncio.Future[Page]":
        """Start reading the page of members after the locator `after` (empty: from the start). It need not be awaited.

        A table, and a local index, is read consistently. A global index cannot be: it may not contain yet who has
        joined a moment ago, and may still contain who has left.
        """
        source = self._source
        if shard and not source.pk_value.has_shards:  # all members are in shard 0
            nobody: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
            nobody.set_result(Page([], None))
            return nobody
        pk = source.pk_value.value(room, shard)
        values = {":pk": {"S": pk}} | ({":prefix": {"S": source.sk_prefix}} if source.sk_prefix else {})
        query = {**self._query, "ExpressionAttributeValues": values}
        if after:
            query["ExclusiveStartKey"] = {source.pk: {"S": pk}, **Locator.decode(after).attributes}
        return begin_page(self._service, query, lambda body: self._page(pk, body))

    def _page(self, pk: str, body: bytes) -> Page:
        with reading_response():
            page = _query_decoder.decode(body)
        now = self._wall_clock()
        members: dict[str, Member] = {}
        damage: Counter[str] = Counter()
        for item in page.items:
            member = self._member(item, now, damage)
            if member is not None:
                members.setdefault(member.connection_id, member)
        for reason, items in damage.items():
            self._damaged.report("membership", pk, reason, items=items)
        after = None
        if page.last_key is not None:
            after = Locator({k: v for k, v in page.last_key.items() if k != self._source.pk}).encode(self.prefix)
        return Page(list(members.values()), after)

    def _member(self, item: dict[str, Any], now: float, damage: Counter[str]) -> Member | None:
        """The member; None if it has expired or names no connection. What is wrong is counted in `damage`.

        Unreadable times count as absent: one message too many is better than one that is not delivered.
        """
        source = self._source
        connection_id = text_of(item.get(source.connection_id))
        if not connection_id or not (connection_id := connection_id.removeprefix(source.id_prefix)):
            damage[f"{source.connection_id} is no text that contains a connection id"] += 1
            return None
        times = []
        for name in (source.expires_at, source.joined_at_ms):
            number = lenient_number(item[name]) if name is not None and name in item else None
            if number is None and name is not None and name in item:
                damage[f"{name} is not a number"] += 1
            times.append(number)
        expires_at, joined_at = times
        if expires_at is not None and _to_milliseconds(expires_at) <= now * 1000:
            return None
        missing = [name for name in self._keys.locator if name not in item]
        if missing:
            damage[f"{' and '.join(missing)}: no such attribute, but the table's key contains it by the setting"] += 1
        attributes = {name: item[name] for name in self._keys.locator if name in item}
        user = text_of(item.get(self._user)) if self._user is not None else None
        locator = Locator(attributes, user if user and len(user) <= MAX_USER_CHARACTERS else "")
        joined_at_ms = 0 if joined_at is None else milliseconds(_to_milliseconds(joined_at))
        return Member(connection_id, joined_at_ms, locator=locator.encode(self.prefix))

    async def settings(self, names: Sequence[str]) -> list[SettingsItem | DependencyError]:
        """Like `Table.settings`. Settings that cannot be followed here are reported, and count as not set."""
        return [
            item if isinstance(item, DependencyError) else self._settings(name, item)
            for name, item in zip(names, await self._own.settings(names), strict=True)
        ]

    def _settings(self, name: str, item: SettingsItem) -> SettingsItem:
        ignored: dict[str, None] = {}
        if not self._source.pk_value.has_shards:
            ignored |= {each: None for each in ("shards", "join_shards") if (getattr(item, each) or 1) > 1}
        if item.presence:
            ignored["presence"] = None
        if ignored:
            reason = f"{' and '.join(ignored)}: not with GATECAST_MEMBERS (shards need {{shard}} in its pk_value)"
            self._damaged.report("settings", keys.settings_pk(name), reason)
        return item._replace(**ignored)

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        """Nothing is known of connections."""
        del connection_ids
        return {}

    async def delete(self, connection_id: str, found_in: tuple[str, int] | None, locator: str) -> bool:
        """Delete this connection's item, found in this room and shard and by this locator, if each is known.

        If it names another connection meanwhile, or does not exist, nothing happens. Returns False if what is known
        does not lead to an item.
        """
        key = self._key(connection_id, found_in, locator)
        if key is None:
            return False
        stored_id = f"{self._source.id_prefix}{connection_id}"
        request = {
            "TableName": self._source.table,
            "Key": key,
            "ConditionExpression": "#id = :id",
            "ExpressionAttributeNames": {"#id": self._source.connection_id},
            "ExpressionAttributeValues": {":id": {"S": stored_id}},
        }
        try:
            await self._service.call("DeleteItem", msgspec.json.encode(request))
        except ServiceError as error:
            if error.code != CONDITION_FAILED:
                raise
        return True

    def _key(
        self, connection_id: str, found_in: tuple[str, int] | None, locator: str
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """The key of an item in the table; None if not all of its attributes are known."""
        source = self._source
        known: dict[str, Mapping[str, Any]] = {source.connection_id: {"S": f"{source.id_prefix}{connection_id}"}}
        if found_in is not None:
            known[source.pk] = {"S": source.pk_value.value(*found_in)}
        if locator:
            known |= Locator.decode(locator).attributes
        try:
            return {name: known[name] for name in self._keys.table_key}
        except KeyError:
            return None


def _to_milliseconds(number: float) -> float:
    """A time since the epoch in milliseconds, given in seconds or milliseconds."""
    return number if number >= _FIRST_MILLISECONDS else number * 1000
