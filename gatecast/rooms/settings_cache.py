"""A cache of room settings.

What is cached are settings items: a room's own, its namespace's and the one for all rooms. So the latter two are read
once for all rooms, and a room without settings costs one key per lookup.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, Protocol

from gatecast import table
from gatecast.room_settings import RoomSettings, SettingsItem, settings_names
from gatecast.rooms.backoff import Backoff, busy
from gatecast.rooms.observer import LOG, Observer

CACHE_SECONDS: Final = 30.0
"""After raising `shards`, wait at least this long before raising `join_shards`."""
MAX_CACHED_ITEMS: Final = 10_000
MAX_BATCH_GET: Final = 100


class SupportsBatchGetItem(Protocol):
    def batch_get_item(self, **kwargs: Any) -> Any: ...


class RoomSettingsCache:
    """Reads settings items, many per call, and caches them for 30 s, in this process. Thread-safe.

    A stale value does no harm: an operator raises `shards`, over which the room is read, before `join_shards`, and
    neither ever shrinks.
    """

    def __init__(
        self,
        dynamodb: SupportsBatchGetItem,
        table_name: str,
        backoff: Backoff | None = None,
        observer: Observer = LOG,
    ) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._backoff = backoff or Backoff()
        self._observer = observer
        self._cached: OrderedDict[str, tuple[float, SettingsItem]] = OrderedDict()
        self._logged: set[str] = set()
        self._lock = threading.Lock()

    def get(self, rooms: Sequence[str]) -> dict[str, RoomSettings]:
        """The settings of these rooms, with one call for up to 49 rooms that are not cached.

        The SDK's errors pass through; raises RequestRejected (unavailable) if DynamoDB leaves keys unprocessed.
        """
        names = list(dict.fromkeys(name for room in rooms for name in settings_names(room)))
        items = self._from_cache(names)
        missing = [name for name in names if name not in items]
        for start in range(0, len(missing), MAX_BATCH_GET):
            items |= self._read(missing[start : start + MAX_BATCH_GET])
        return {room: RoomSettings.from_items(map(items.__getitem__, settings_names(room))) for room in rooms}

    def _from_cache(self, names: Sequence[str]) -> dict[str, SettingsItem]:
        oldest = self._backoff.clock() - CACHE_SECONDS
        with self._lock:
            cached = {name: self._cached[name] for name in names if name in self._cached}
        return {name: item for name, (read_at, item) in cached.items() if read_at > oldest}

    def _read(self, names: Sequence[str]) -> dict[str, SettingsItem]:
        """Reads at most 100 items and caches them; for a name without an item its settings are empty."""
        read_at = self._backoff.clock()
        found: dict[str, dict[str, Any]] = {}
        wanted: Any = {"Keys": [table.key(table.settings_pk(name), table.SETTINGS_SK) for name in names]}
        for _ in self._backoff.start():
            response = self._dynamodb.batch_get_item(RequestItems={self._table: wanted})
            found |= {item["pk"]["S"]: item for item in response.get("Responses", {}).get(self._table, ())}
            wanted = response.get("UnprocessedKeys", {}).get(self._table)
            if not wanted:
                break
        else:
            raise busy()
        items = {name: self._parse(found.get(table.settings_pk(name))) for name in names}
        with self._lock:
            for name, item in items.items():
                self._cached[name] = (read_at, item)
                self._cached.move_to_end(name)
            while len(self._cached) > MAX_CACHED_ITEMS:
                self._cached.popitem(last=False)
        return items

    def _parse(self, item: dict[str, Any] | None) -> SettingsItem:
        damaged: list[str] = []
        settings = SettingsItem.from_item(item, damaged.append)
        if damaged:
            self._observer.count_damaged(len(damaged))
        # once, or each room would be a line; its name is chosen by clients and not logged: the worker's log has it
        if unknown := [attribute for attribute in damaged if attribute not in self._logged]:
            self._logged.update(unknown)
            self._observer.warn("settings.damaged", attributes=unknown)
        return settings
