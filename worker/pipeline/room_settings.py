"""A cache of room settings.

What is cached are settings items: a room's own, its namespace's and the one for all rooms. So the latter two are read
once for all rooms, and a room without settings costs one key per lookup.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from gatecast.room_settings import RoomSettings, SettingsItem, settings_names
from worker.batcher import Batcher
from worker.ports import MAX_BATCH_GET, DependencyError, MemberSource

CACHE_SECONDS: Final = 30.0
"""After raising `shards`, wait at least this long before raising `join_shards`."""
_MAX_ITEMS: Final = 10_000
_GATHER_SECONDS: Final = 0.002

Lookup = asyncio.Future[SettingsItem | DependencyError]
"""A lookup of one item in progress."""


class RoomSettingsCache:
    """Reads settings items from `table`, many per call, and caches them for `CACHE_SECONDS`."""

    def __init__(self, table: MemberSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, SettingsItem]] = OrderedDict()
        self._reading: dict[str, Lookup] = {}
        self._lookups: Batcher[str, SettingsItem | DependencyError] = Batcher(
            self._read, max_items=MAX_BATCH_GET, wait_seconds=_GATHER_SECONDS, urgent=True
        )

    def cached(self, room: str) -> RoomSettings | None:
        """The room's settings, or None unless all of its items are cached and young enough."""
        items = [item for name in settings_names(room) if (item := self._cached_item(name)) is not None]
        return RoomSettings.from_items(items) if len(items) == len(settings_names(room)) else None

    def begin(self, room: str) -> None:
        """Start looking up what is not cached of this room's settings, for `get` to await."""
        for name in settings_names(room):
            if self._cached_item(name) is None:
                self._begin_item(name)

    async def get(self, room: str) -> RoomSettings:
        """The room's settings, cached or looked up. Raises DependencyError."""
        self.begin(room)
        return RoomSettings.from_items([await self._get_item(name) for name in settings_names(room)])

    async def _get_item(self, name: str) -> SettingsItem:
        cached = self._cached_item(name)
        if cached is not None:
            return cached
        item = await self._begin_item(name)
        if isinstance(item, DependencyError):
            raise item
        return item

    def _begin_item(self, name: str) -> Lookup:
        """The lookup of this item that is in progress, or a new one."""
        lookup = self._reading.get(name)
        if lookup is None:
            lookup = self._reading[name] = self._lookups.begin(name)
            lookup.add_done_callback(lambda _: self._reading.pop(name))
        return lookup

    async def _read(self, names: Sequence[str]) -> Sequence[SettingsItem | DependencyError]:
        """The items, which are cached before any caller receives its item."""
        started_at = self._clock()
        items = await self._table.settings(names)
        for name, item in zip(names, items, strict=True):
            if not isinstance(item, DependencyError):
                self._cache[name] = (started_at, item)
                self._cache.move_to_end(name)
        while len(self._cache) > _MAX_ITEMS:
            self._cache.popitem(last=False)
        return items

    def _cached_item(self, name: str) -> SettingsItem | None:
        entry = self._cache.get(name)
        return entry[1] if entry is not None and self._clock() - entry[0] < CACHE_SECONDS else None
