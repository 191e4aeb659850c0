"""What becomes of one broadcast: is it claimed, a duplicate, expired, to be split, given up, or delivered by a run?

    claim → (split | expired | duplicate | given up | `run`: page members → deliver → checkpoint …) → acknowledge

What if we die at an await? Before the claim: nothing has happened. After it: the same message comes back, with a higher
receive count, and takes the claim over with its last checkpoint. Between parts (or dead letters) and the deletion of
the message: they are sent again, under the same part names, and are duplicates. Only what `run` calls done is deleted.
"""

import asyncio
import itertools
from collections.abc import Awaitable
from enum import Enum, auto
from heapq import nsmallest
from typing import Final, assert_never
from uuid import uuid4

import msgspec
import structlog
from msgspec import UNSET

from gatecast import tracing
from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from gatecast.table import RoomSettings
from worker.decisions.claims import Claimant, NotClaimed
from worker.decisions.parts import to_shards
from worker.observe.damaged_items import DamagedItems
from worker.pipeline.capacity import Place
from worker.pipeline.completions import Completions
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.room_settings import Lookup, RoomSettingsCache
from worker.pipeline.run import Run, Services
from worker.ports import Claim, DamagedProgress, MessageRejected, Page
from worker.resilience import retry_forever

log = structlog.get_logger()

RECEIVES_WITHOUT_PROGRESS: Final = 100
_HELD_SECONDS: Final = 0.5
"""So long the end of another message's broadcast is waited for here: most last no longer."""
_DAMAGED_READS: Final = 3
"""Times that a progress item is read before it counts as damaged: the response may have been the damaged one."""
_DAMAGED_SECONDS: Final = 0.5
_WAKE_SECONDS: Final = 0.25
_MAX_SHOWN: Final = 50


class Ending(Enum):
    """How a broadcast ended here, and so what becomes of its message."""

    COMPLETED = auto()
    SPLIT = auto()
    EXPIRED = auto()
    DUPLICATE = auto()
    """It had been completed before."""
    HELD = auto()
    """Another message of the same broadcast has it: ask again in a while."""
    GIVEN_UP = auto()
    """It is on the dead-letter queue as a whole."""
    RELEASED = auto()
    """Stopped where it was: another worker may go on at once."""
    LEFT = auto()
    """The lease is lost or somebody else's: hands off."""


class Broadcaster:
    """Runs broadcasts side by side."""

    def __init__(
        self, services: Services, room_settings: RoomSettingsCache, completions: Completions, damaged: DamagedItems
    ) -> None:
        self._services = services
        self._room_settings = room_settings
        self._completions = completions
        self._damaged = damaged
        self._fifo = is_fifo(services.sender.url)
        self._runs: set[Run] = set()
        self._order = itertools.count()
        self._cutting_short = False

    async def wake_periodically(self) -> None:
        """Wake every run once in a while, so that none needs a timer of its own. Until cancelled."""
        while True:
            await asyncio.sleep(_WAKE_SECONDS)
            for run in self._runs:
                run.wake()

    def cut_short(self) -> None:
        """Wait for no more responses: there is just time to write down how far each broadcast has come."""
        self._cutting_short = True
        for run in self._runs:
            run.cut_short()

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be posted again."""
        return sum(run.fanout.waiting for run in self._runs)

    def running(self) -> list[dict[str, object]]:
        """The oldest of those that are being delivered, `_MAX_SHOWN` at most, for people to look at."""
        now = self._services.clock()
        fanouts = (run.fanout for run in self._runs)
        return [
            {
                "id": fanout.broadcast.id,
                "part": fanout.broadcast.part,
                "target": "room" if fanout.broadcast.room else "connections",
                "age_seconds": round(self._age_seconds(fanout.broadcast), 3),
                "running_seconds": round(now - fanout.started_at, 3),
                **{str(outcome): count for outcome, count in fanout.counts.items()},
                "in_flight": fanout.in_flight,
                "waiting": fanout.waiting,
                "read_ahead": fanout.read_ahead,
                "all_read": fanout.exhausted,
            }
            for fanout in nsmallest(_MAX_SHOWN, fanouts, key=lambda fanout: fanout.started_at)
        ]

    async def run(self, broadcast: Broadcast, lease: Lease, place: Place) -> Ending:
        """Returns when nothing more is to be done here. Dependencies that fail are waited for."""
        if lease.state is not LeaseState.HELD:
            return _unfinished(lease)
        if self._expired(broadcast):
            return Ending.EXPIRED
        if broadcast.published_at_ms is UNSET:
            broadcast = msgspec.structs.replace(broadcast, published_at_ms=lease.message.sent_at_ms)
        services = self._services
        # The first page and the settings are read beside the claim; only posts have to wait for it.
        room = str(broadcast.room or "")
        looks_up = bool(room) and broadcast.shard is UNSET and self._room_settings.cached(room) is None
        lookup = self._room_settings.begin(room) if looks_up else None
        first_page = self._begin_first_page(broadcast, lease)
        claimed_at = services.clock()
        try:
            with tracing.span("claim"):
                claim = await self._claim(broadcast, lease)
        except DamagedProgress as damaged:
            return await self._give_up_damaged(broadcast, str(damaged))
        if isinstance(claim, NotClaimed):
            return _not_ours(claim)
        if claim.fresh_receives > RECEIVES_WITHOUT_PROGRESS and services.dead_letters.configured:
            return await self._give_up(broadcast, claim, "receives")
        if broadcast.room and broadcast.shard is UNSET:
            settings = await self._find_room_settings(room, lookup)
            # What has begun on one shard, before there were more, has all its members there: it is not begun again.
            if settings.shards > 1 and claim.start.is_start:
                return await self._split(broadcast, claim, settings.shards)
        with tracing.span("deliver"):
            run = Run(
                services,
                broadcast,
                lease,
                claim=claim,
                claimed_at=claimed_at,
                place=place,
                order=next(self._order),
                first_page=first_page if claim.start.is_start else None,
            )
            return await self._deliver(run, lease, claim)

    def _begin_first_page(self, broadcast: Broadcast, lease: Lease) -> Awaitable[Page] | None:
        """Unless it is known to be of no use: to parts of a room, or to what goes on from a checkpoint."""
        if not broadcast.room or lease.message.receives > 1:
            return None
        if isinstance(broadcast.shard, int):
            return self._services.table.begin_page(broadcast.room, broadcast.shard)
        known = self._room_settings.cached(broadcast.room)
        if known is not None and known.shards > 1:
            return None
        return self._services.table.begin_page(broadcast.room, 0)

    async def _find_room_settings(self, room: str, lookup: Lookup | None) -> RoomSettings:
        async def find() -> RoomSettings:
            nonlocal lookup
            begun, lookup = lookup, None
            return await self._room_settings.get(room, begun)

        return await retry_forever("settings", self._services.health, find)

    async def _claim(self, broadcast: Broadcast, lease: Lease) -> Claim | NotClaimed:
        """Raises DamagedProgress for an item that could not be read time and again."""
        services = self._services
        message = lease.message
        waited = message.receives - 1 if self._fifo else 0  # it may have been received only to wait for others
        claimant = Claimant(message.id, message.receives, uuid4().hex, waited)

        async def claim() -> Claim | NotClaimed:
            return await retry_forever("claim", services.health, lambda: services.progress.claim(broadcast, claimant))

        for _ in range(_DAMAGED_READS - 1):
            try:
                claimed = await claim()
            except DamagedProgress:
                await asyncio.sleep(_DAMAGED_SECONDS)
            else:
                break
        else:
            claimed = await claim()
        if claimed is NotClaimed.HELD:
            await asyncio.sleep(_HELD_SECONDS)
            claimed = await claim()
        return claimed

    async def _give_up_damaged(self, broadcast: Broadcast, pk: str) -> Ending:
        """Nobody knows how far it has come. Sent again, it begins anew; without dead letters it does so at once."""
        services = self._services
        self._damaged.report("progress", pk, "no claim or checkpoint of a worker")
        await retry_forever("claim", services.health, lambda: services.progress.forget(broadcast))
        if not services.dead_letters.configured:
            return Ending.RELEASED
        await services.dead_letters.broadcast(broadcast, "damaged")
        log.error("broadcast.given_up", reason="damaged")
        return Ending.GIVEN_UP

    def _age_seconds(self, broadcast: Broadcast) -> float:
        return max(0.0, self._services.wall_clock() - int(broadcast.published_at_ms or 0) / 1000)

    def _expired(self, broadcast: Broadcast) -> bool:
        expires_at_ms = broadcast.expires_at_ms
        return isinstance(expires_at_ms, int) and self._services.wall_clock() * 1000 >= expires_at_ms

    async def _give_up(self, broadcast: Broadcast, claim: Claim, reason: str) -> Ending:
        """Keep it whole as a dead letter. Sent again, it goes on from its checkpoint."""
        services = self._services
        if not await retry_forever("claim", services.health, lambda: services.progress.release(claim)):
            return Ending.LEFT
        await services.dead_letters.broadcast(broadcast, reason)
        log.error("broadcast.given_up", reason=reason, receives=claim.receives)
        return Ending.GIVEN_UP

    async def _split(self, broadcast: Broadcast, claim: Claim, shards: int) -> Ending:
        """One part per shard, under fixed names: splitting twice does no harm."""
        parts = (queue_message(part, fifo=self._fifo) for part in to_shards(broadcast, shards))
        try:
            await self._services.sender.send_all(parts)
        except MessageRejected:
            if not self._services.dead_letters.configured:
                raise
            return await self._give_up(broadcast, claim, "undelivered")
        await self._completions.add(claim)
        return Ending.SPLIT

    async def _deliver(self, run: Run, lease: Lease, claim: Claim) -> Ending:
        if self._cutting_short:
            run.cut_short()
        self._runs.add(run)
        try:
            settled = await run.deliver()
        finally:
            self._runs.discard(run)
        if not settled:
            return _unfinished(lease)
        await self._completions.add(claim)
        self._completed(run)
        return Ending.COMPLETED

    def _completed(self, run: Run) -> None:
        broadcast = run.fanout.broadcast
        seconds = self._age_seconds(broadcast)
        self._services.metrics.broadcast_duration.observe(seconds)
        log.info(
            "broadcast.completed",
            part=broadcast.part,
            seconds=round(seconds, 3),
            **{str(outcome): count for outcome, count in run.fanout.counts.items() if count},
        )


def _not_ours(reason: NotClaimed) -> Ending:
    match reason:
        case NotClaimed.COMPLETED:
            return Ending.DUPLICATE
        case NotClaimed.HELD:
            return Ending.HELD
        case NotClaimed.SUPERSEDED:
            return Ending.LEFT
        case _:
            assert_never(reason)


def _unfinished(lease: Lease) -> Ending:
    return Ending.LEFT if lease.state is LeaseState.LOST else Ending.RELEASED
