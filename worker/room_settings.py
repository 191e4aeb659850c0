"""Room settings, remembered for a while: over how many shards a room is read."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from gatecast.table import RoomSettings
from worker.batching import Batcher
from worker.ports import MAX_BATCH_GET, MemberTable

CACHE_SECONDS: Final = 30.0
"""After `shards` was raised, wait at least this long before `join_shards` is."""
_MOST_ROOMS: Final = 10_000
_ASK_WITHIN_SECONDS: Final = 0.002


Lookup = asyncio.Future[RoomSettings | Exception]
"""A lookup that has begun."""


class RoomSettingsCache:
    def __init__(self, table: MemberTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, RoomSettings]] = OrderedDict()
        self._lookups: Batcher[str, RoomSettings | Exception] = Batcher(
            table.settings, most=MAX_BATCH_GET, wait_seconds=_ASK_WITHIN_SECONDS, urgent=True
        )

    def known(self, room: str) -> RoomSettings | None:
        """What is remembered of this room, if it is not too old."""
        known = self._known.get(room)
        return known[1] if known is not None and self._clock() - known[0] < CACHE_SECONDS else None

    def begin(self, room: str) -> Lookup:
        """Look this room up now; `of` can await it later."""
        return self._lookups.begin(room)

    async def of(self, room: str, lookup: Lookup | None = None) -> RoomSettings:
        """Raises what `Table.settings` raises. `lookup` is one that was begun a moment ago."""
        if (known := self.known(room)) is not None:
            return known
        asked_at = self._clock()
        settings = await (lookup or self._lookups.begin(room))
        if isinstance(settings, Exception):
            raise settings
        self._known[room] = (asked_at, settings)
        self._known.move_to_end(room)
        if len(self._known) > _MOST_ROOMS:
            self._known.popitem(last=False)
        return settings
