"""What a broadcast of presence becomes when it is delivered: a frame, or nothing.

    claimed → setting? → who is present? → frame → members → posts
                 └── off ───┴── no user to announce ──┴── too many members ──▶ completed without posts

A departure's broadcast names users who may have departed. Whether they are absent is read after the claim, and again
when another worker resumes the broadcast. The event's time is taken before the read, so that of two events about a user
the one with the later time is true (`gatecast.presence`). Joins are announced as they are: the routes have read the
table already. Where both are in one broadcast, both are read.

In a room with more members than its setting allows, nothing is announced. No worker reads all members of a split room,
so each part judges by its own shard: it is delivered while the shard has no more members than a room at the limit may
have there by chance (`max_members`). So a room within its limit is served on all shards, one at twice a large limit on
none, and the posts of an event are bounded.

What if we die at a read? Nothing has been posted, and another worker reads again.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from msgspec import UNSET

from gatecast import frames
from gatecast.broadcast import Broadcast
from gatecast.presence import DEPARTURE_DELAY_SECONDS, departed_users, is_announced
from gatecast.room_settings import RoomSettings
from worker.observe.health import Health
from worker.pipeline.room_settings import RoomSettingsCache
from worker.ports import PresenceStore
from worker.resilience import retry_forever

_QUERY_CONCURRENCY: Final = 8
_DEVIATIONS: Final = 5
"""Standard deviations above the mean: by chance a shard has more members about once in 100,000 times."""


class Announcement(NamedTuple):
    """How a broadcast is delivered: its frame, if it is one of presence, and up to which number of members."""

    frame: bytes | None = None
    max_members: float = math.inf
    """Of the broadcast's room or shard."""


_OTHER: Final = Announcement()
"""Of a broadcast that has another payload."""


class Announcer:
    """Prepares the delivery of broadcasts of presence. `wall_clock` gives seconds since the epoch."""

    def __init__(
        self,
        store: PresenceStore,
        room_settings: RoomSettingsCache,
        health: Health,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._room_settings = room_settings
        self._health = health
        self._wall_clock = wall_clock

    async def announcement(self, broadcast: Broadcast) -> Announcement | None:
        """How the broadcast is delivered; None if there is nothing to announce. Failed reads are retried forever."""
        change = broadcast.presence
        if change is UNSET:
            return _OTHER
        room = str(broadcast.room or broadcast.origin_room)
        settings = await retry_forever("settings", self._health, partial(self._room_settings.get, room))
        if not is_announced(None, settings.presence):
            return None
        joined, departed = change.joined, change.departed
        at_ms = int(broadcast.published_at_ms or 0)
        now_ms = int(self._wall_clock() * 1000)  # before the read
        if departed or now_ms - at_ms > DEPARTURE_DELAY_SECONDS * 1000:
            # A late event may reach a member who has joined since, and who has no later one to compare it with.
            at_ms = now_ms if departed else at_ms
            present = await self._present(room, {*joined, *departed})
            joined = tuple(user for user in joined if user in present)
            departed = departed_users(departed, present)
        if not joined and not departed:
            return None
        frame = frames.presence(room, joined=joined, departed=departed, at_ms=at_ms)
        return Announcement(frame, max_members(broadcast, settings))

    async def _present(self, room: str, users: Iterable[str]) -> set[str]:
        """Those of the users who are present in the room."""
        slots = asyncio.Semaphore(_QUERY_CONCURRENCY)
        present = set()

        async def look_up(user: str) -> None:
            async with slots:
                if await retry_forever("table", self._health, partial(self._store.is_present, room, user)):
                    present.add(user)

        async with asyncio.TaskGroup() as group:
            for user in users:
                group.create_task(look_up(user), name="presence")
        return present


def delay_seconds(broadcast: Broadcast, *, fifo: bool) -> int:
    """How long the broadcast was delayed on purpose before it could be received first."""
    is_departure = broadcast.presence is not UNSET and bool(broadcast.presence.departed)
    return DEPARTURE_DELAY_SECONDS if is_departure and not fifo else 0


def max_members(broadcast: Broadcast, settings: RoomSettings) -> float:
    """The number of members of the broadcast's room, or shard, up to which it is delivered.

    Members are spread over the shards at random, so their number on one shard has a Poisson distribution. A remainder
    or dead letter to `connections` belongs to a broadcast whose members have been counted.
    """
    if broadcast.connections:
        return math.inf
    if broadcast.shard is UNSET:
        return settings.presence
    mean = settings.presence / settings.shards
    return min(settings.presence, math.ceil(mean + _DEVIATIONS * math.sqrt(mean) + 1))
