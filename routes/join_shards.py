"""The number of shards over which a room's new members are spread."""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from gatecast import table
from routes.log import logger

CACHE_SECONDS: Final = 30.0
MAX_CACHED_ROOMS: Final = 10_000


class SupportsGetItem(Protocol):
    def get_item(self, **kwargs: Any) -> Any: ...


class _Cached(NamedTuple):
    read_at: float
    join_shards: int


class JoinShards:
    """Reads a room's settings item and caches it for 30 s, in this process.

    A stale value does no harm: an operator raises `shards`, over which the room is read, before `join_shards`, and
    neither ever shrinks.
    """

    def __init__(self, dynamodb: SupportsGetItem, table_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._clock = clock
        self._cached: dict[str, _Cached] = {}

    def get(self, room: str) -> int:
        """The room's `join_shards`. The SDK's errors pass through."""
        now = self._clock()
        cached = self._cached.get(room)
        if cached and now - cached.read_at < CACHE_SECONDS:
            return cached.join_shards
        found = self._dynamodb.get_item(
            TableName=self._table, Key=table.key(table.settings_pk(room), table.SETTINGS_SK)
        )
        damaged: list[str] = []
        join_shards = table.SettingsItem.from_item(found.get("Item"), damaged.append).join_shards or 1
        if damaged:  # the room's name is chosen by clients and therefore not logged; the worker's log has it
            logger.warning("settings.damaged", extra={"attributes": damaged})
        if len(self._cached) >= MAX_CACHED_ROOMS:
            self._cached.clear()
        self._cached[room] = _Cached(now, join_shards)
        return join_shards
