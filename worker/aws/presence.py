"""DynamoDB: who is present in a room, and how many members it has.

All calls go through `JsonService`. No item makes a call fail: an unreadable time is one that keeps its user present.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from gatecast import table as keys
from gatecast.presence import PresenceItem, is_present, user_query
from worker.aws.errors import reading_response
from worker.aws.json_service import JsonService
from worker.ports import Count


class _Query(msgspec.Struct):
    items: list[dict[str, Any]] = msgspec.field(name="Items")
    last_key: dict[str, Any] | None = msgspec.field(name="LastEvaluatedKey", default=None)


_query_decoder: Final = msgspec.json.Decoder(_Query)


class PresenceTable:
    """Every call raises what `JsonService` raises. `wall_clock` gives seconds since the epoch."""

    def __init__(self, service: JsonService, name: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self._name = name
        self._wall_clock = wall_clock

    async def is_present(self, room: str, user: str) -> bool:
        """Whether any presence item of this user in the room has not expired, read consistently."""
        query = user_query(self._name, room, user)
        while True:
            body = await self._service.call("Query", msgspec.json.encode(query))
            with reading_response():
                page = _query_decoder.decode(body)
            items = [item for item in map(PresenceItem.from_item, page.items) if item is not None]
            if is_present(items, self._wall_clock()):
                return True
            if page.last_key is None:
                return False
            query["ExclusiveStartKey"] = page.last_key

    async def write_counts(self, counts: Sequence[Count]) -> None:
        """Write these counts (at most 25, of different shards). Those that are not processed are dropped."""
        items = [
            keys.count_item(each.room, each.shard, members=each.members, counted_at_ms=each.counted_at_ms)
            for each in counts
        ]
        requests = [{"PutRequest": {"Item": item}} for item in items]
        await self._service.call("BatchWriteItem", msgspec.json.encode({"RequestItems": {self._name: requests}}))
