"""How many members rooms with presence have, written down by the worker that has read all of them anyway.

Counting is best effort and never part of a broadcast: `read` makes no call and has no result. Counts wait here until
`run` writes them, many per call and at most one per shard and INTERVAL_SECONDS. What cannot be written, or would be too
much, is dropped: the next broadcast counts again. So is a count of a room whose settings are not cached, so that rooms
without presence cost no call. If the worker ends, the counts that wait are lost.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Final

import structlog

from gatecast.table import MAX_BATCH_WRITE
from worker.pipeline.room_settings import RoomSettingsCache
from worker.ports import Count, DependencyError, PresenceStore

log = structlog.get_logger()

INTERVAL_SECONDS: Final = 10.0
_GATHER_SECONDS: Final = 0.25
"""Time between two calls: long enough to fill them, short enough for a count to be young when it is read."""
_RETRY_SECONDS: Final = 10.0
_MAX_WAITING: Final = 1_000
_MAX_REMEMBERED: Final = 20_000
"""Shards whose last count is remembered; beyond that, some are written more often."""


class Counts:
    """Counts are passed to `read` and written while `run` runs. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        store: PresenceStore,
        room_settings: RoomSettingsCache,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._room_settings = room_settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: OrderedDict[tuple[str, int], Count] = OrderedDict()
        self._counted_at: OrderedDict[tuple[str, int], float] = OrderedDict()
        """When a count of each shard was last accepted, in this order."""
        self._changed = asyncio.Event()

    def read(self, room: str, shard: int, members: int) -> None:
        """All members of this shard have been read; there were this many."""
        settings = self._room_settings.cached(room)
        if settings is None or not settings.presence or len(self._waiting) >= _MAX_WAITING:
            return
        now = self._clock()
        key = (room, shard)
        if now - self._counted_at.get(key, float("-inf")) < INTERVAL_SECONDS:
            return
        self._counted_at[key] = now
        self._counted_at.move_to_end(key)
        if len(self._counted_at) > _MAX_REMEMBERED:
            self._counted_at.popitem(last=False)
        self._waiting[key] = Count(room, shard, members, int(self._wall_clock() * 1000))
        self._changed.set()

    async def run(self) -> None:
        """Write counts until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            batch = dict(islice(self._waiting.items(), MAX_BATCH_WRITE))
            try:
                await self._store.write_counts(list(batch.values()))
            except DependencyError as error:
                log.debug("counts.not_written", reason=error.reason, counts=len(self._waiting))
                self._waiting.clear()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                for key in batch:
                    del self._waiting[key]
            if not self._waiting:
                self._changed.clear()
