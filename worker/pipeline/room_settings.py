"""A cache of room settings: over how many shards a room is read."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from gatecast.table import RoomSettings
from worker.batcher import Batcher
from worker.ports import MAX_BATCH_GET, DependencyError, MemberTable

CACHE_SECONDS: Final = 30.0
"""After raising `shards`, wait at least this long before raising `join_shards`."""
_MAX_ROOMS: Final = 10_000
_GATHER_SECONDS: Final = 0.002


Lookup = asyncio.Future[RoomSettings | DependencyError]
"""A lookup in progress."""


class RoomSettingsCache:
    """Reads rooms' settings from `table`, many per call, and caches them for `CACHE_SECONDS`."""

    def __init__(self, table: MemberTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, RoomSettings]] = OrderedDict()
        self._lookups: Batcher[str, RoomSettings | DependencyError] = Batcher(
            table.settings, max_items=MAX_BATCH_GET, wait_seconds=_GATHER_SECONDS, urgent=True
        )

    def cached(self, room: str) -> RoomSettings | None:
        """The room's settings, or None if they are not cached or too old."""
        entry = self._cache.get(room)
        return entry[1] if entry is not None and self._clock() - entry[0] < CACHE_SECONDS else None

    def begin(self, room: str) -> Lookup:
        """Start looking up this room; pass the result to `get` to await it."""
        return self._lookups.begin(room)

    async def get(self, room: str, lookup: Lookup | None = None) -> RoomSettings:
        """The room's settings, cached or looked up. `lookup` is one that `begin` has just returned.

        Raises DependencyError.
        """
        if (cached := self.cached(room)) is not None:
            return cached
        started_at = self._clock()
        settings = await (lookup or self._lookups.begin(room))
        if isinstance(settings, DependencyError):
            raise settings
        self._cache[room] = (started_at, settings)
        self._cache.move_to_end(room)
        if len(self._cache) > _MAX_ROOMS:
            self._cache.popitem(last=False)
        return settings
