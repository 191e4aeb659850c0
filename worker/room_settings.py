"""Room settings, remembered for a while: over how many shards a room is read."""

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


class RoomSettingsCache:
    def __init__(self, table: MemberTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, RoomSettings]] = OrderedDict()
        self._lookups: Batcher[str, RoomSettings | Exception] = Batcher(
            table.settings, most=MAX_BATCH_GET, wait_seconds=_ASK_WITHIN_SECONDS
        )

    async def of(self, room: str) -> RoomSettings:
        """Raises what `Table.settings` raises."""
        known = self._known.get(room)
        if known is not None and self._clock() - known[0] < CACHE_SECONDS:
            return known[1]
        asked_at = self._clock()
        settings = await self._lookups.ask(room)
        if isinstance(settings, Exception):
            raise settings
        self._known[room] = (asked_at, settings)
        self._known.move_to_end(room)
        if len(self._known) > _MOST_ROOMS:
            self._known.popitem(last=False)
        return settings
