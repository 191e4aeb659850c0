"""What becomes of one broadcast: is it claimed, a duplicate, expired, to be split, given up, or delivered by a run?

    claim → (split | expired | duplicate | given up | `run`: page members → deliver → checkpoint …) → acknowledge

What if we die at an await? Before the claim: nothing has happened. After it: the same message comes back, with a higher
receive count, and takes the claim over with its last checkpoint. Between parts (or dead letters) and the deletion of
the message: they are sent again, under the same part names, and are duplicates. Only what `run` calls done is deleted.
"""

import asyncio
import itertools
from enum import Enum, auto
from heapq import nsmallest
from typing import Final

import msgspec
import structlog
from msgspec import UNSET

from gatecast import tracing
from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from worker.capacity import Place
from worker.lease import Lease, LeaseState
from worker.parts import to_shards
from worker.perseverance import persevere
from worker.ports import Claim, Claimant, NotClaimed
from worker.room_settings import RoomSettingsCache
from worker.run import Run, Services
from worker.sender import RejectedForGood

log = structlog.get_logger()

RECEIVES_WITHOUT_PROGRESS: Final = 100
_WAKE_SECONDS: Final = 0.25
_MAX_SHOWN: Final = 50


class Ending(Enum):
    """How a broadcast ended here, and so what becomes of its message."""

    COMPLETED = auto()
    SPLIT = auto()
    EXPIRED = auto()
    DUPLICATE = auto()
    GIVEN_UP = auto()
    """It is on the dead-letter queue as a whole."""
    RELEASED = auto()
    """Stopped where it was: another worker may go on at once."""
    LEFT = auto()
    """The lease is lost or somebody else's: hands off."""


class Broadcaster:
    """Runs broadcasts side by side."""

    def __init__(self, services: Services, settings: RoomSettingsCache) -> None:
        self._services = services
        self._settings = settings
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
        claimant = Claimant.of(lease.message, fifo=self._fifo)
        with tracing.span("claim"):
            claim = await persevere("claim", services.health, lambda: services.progress.claim(broadcast, claimant))
        if isinstance(claim, NotClaimed):
            return Ending.DUPLICATE if claim.duplicate else Ending.LEFT
        if claim.fresh_receives > RECEIVES_WITHOUT_PROGRESS and services.dead_letters.exist:
            return await self._give_up(broadcast, claim, "receives")
        if broadcast.room and broadcast.shard is UNSET:
            settings = await persevere("settings", services.health, lambda: self._settings.of(str(broadcast.room)))
            # What has begun on one shard, before there were more, has all its members there: it is not begun again.
            if settings.shards > 1 and claim.start.nowhere:
                return await self._split(broadcast, claim, settings.shards)
        with tracing.span("deliver"):
            return await self._deliver(broadcast, lease, claim, place)

    def _age_seconds(self, broadcast: Broadcast) -> float:
        return max(0.0, self._services.wall_clock() - int(broadcast.published_at_ms or 0) / 1000)

    def _expired(self, broadcast: Broadcast) -> bool:
        expires_at_ms = broadcast.expires_at_ms
        return isinstance(expires_at_ms, int) and self._services.wall_clock() * 1000 >= expires_at_ms

    async def _give_up(self, broadcast: Broadcast, claim: Claim, reason: str) -> Ending:
        """Keep it whole as a dead letter. Sent again, it goes on from its checkpoint."""
        services = self._services
        if not await persevere("claim", services.health, lambda: services.progress.release(claim)):
            return Ending.LEFT
        await services.dead_letters.broadcast(broadcast, reason)
        log.error("broadcast.given_up", reason=reason, receives=claim.receives)
        return Ending.GIVEN_UP

    async def _split(self, broadcast: Broadcast, claim: Claim, shards: int) -> Ending:
        """One part per shard, under fixed names: splitting twice does no harm."""
        parts = (queue_message(part, fifo=self._fifo) for part in to_shards(broadcast, shards))
        try:
            await self._services.sender.send_all(parts)
        except RejectedForGood:
            if not self._services.dead_letters.exist:
                raise
            return await self._give_up(broadcast, claim, "undelivered")
        return Ending.SPLIT

    async def _deliver(self, broadcast: Broadcast, lease: Lease, claim: Claim, place: Place) -> Ending:
        run = Run(self._services, broadcast, lease, claim=claim, place=place, order=next(self._order))
        if self._cutting_short:
            run.cut_short()
        self._runs.add(run)
        try:
            settled = await run.deliver()
        finally:
            self._runs.discard(run)
        if not settled:
            return _unfinished(lease)
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


def _unfinished(lease: Lease) -> Ending:
    return Ending.LEFT if lease.state is LeaseState.LOST else Ending.RELEASED
