"""The way of one broadcast: claim it, then split it, give it up, or deliver it with a run.

    expired? → claim → duplicate? → give up | offset → split | `run`: page members → deliver → checkpoint → acknowledge

What if we die at an await? Before the claim: nothing has happened. After it: the same message comes back, with a higher
receive count, and takes over the claim, the offset and the last checkpoint. Between sending parts (or dead letters) and
deleting the message: they are sent again under the same part names, so the second ones are duplicates. A message is
deleted only after an ending that leaves nothing to do.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Mapping
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
from gatecast.room_settings import RoomSettings
from worker.decisions.claims import Claimant, NotClaimed
from worker.decisions.history import NotAppended, lacks_offset, may_append
from worker.decisions.outcome import Outcome
from worker.decisions.parts import to_shards
from worker.observe.damaged_items import DamagedItems
from worker.pipeline.capacity import Place
from worker.pipeline.completions import Completions
from worker.pipeline.history import History
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.pages import begin_page
from worker.pipeline.presence import Announcement, delay_seconds
from worker.pipeline.room_settings import RoomSettingsCache
from worker.pipeline.run import Run, Services
from worker.ports import Claim, DamagedProgress, MessageRejected, Page
from worker.resilience import retry_forever

log = structlog.get_logger()

MAX_RECEIVES_WITHOUT_PROGRESS: Final = 100
_HELD_SECONDS: Final = 0.5
"""How long to wait if another message holds the claim, before claiming again: most broadcasts take less time."""
_DAMAGED_READS: Final = 3
"""How often a progress item is read before it counts as damaged: the damage may have been in the response only."""
_DAMAGED_SECONDS: Final = 0.5
_WAKE_SECONDS: Final = 0.25
_MAX_SHOWN: Final = 50


class Ending(Enum):
    """How a broadcast ended on this worker, which decides what happens to its message."""

    COMPLETED = auto()
    SPLIT = auto()
    EXPIRED = auto()
    DUPLICATE = auto()
    """It was already completed."""
    HELD = auto()
    """Another message of the same broadcast holds the claim: retry later."""
    GIVEN_UP = auto()
    """It was stored on the dead-letter queue as a whole."""
    RELEASED = auto()
    """It stopped where it was: another worker may resume it at once."""
    ABANDONED = auto()
    """The lease is lost, or another worker has taken the broadcast over: do nothing with its message."""


class Broadcaster:
    """Runs broadcasts concurrently."""

    def __init__(
        self,
        services: Services,
        room_settings: RoomSettingsCache,
        history: History,
        completions: Completions,
        damaged: DamagedItems,
    ) -> None:
        self._services = services
        self._room_settings = room_settings
        self._history = history
        self._completions = completions
        self._damaged = damaged
        self._fifo = is_fifo(services.sender.url)
        self._runs: set[Run] = set()
        self._order = itertools.count()
        self._cutting_short = False

    async def wake_periodically(self) -> None:
        """Wake every run periodically, so that none needs a timer of its own. Runs until cancelled."""
        while True:
            await asyncio.sleep(_WAKE_SECONDS)
            for run in self._runs:
                run.wake()

    def cut_short(self) -> None:
        """Stop waiting for responses: there is only time to write the position of each broadcast."""
        self._cutting_short = True
        for run in self._runs:
            run.cut_short()

    @property
    def waiting(self) -> int:
        """The number of deliveries that wait for a retry."""
        return sum(run.fanout.waiting for run in self._runs)

    def running(self) -> list[dict[str, object]]:
        """The broadcasts being delivered, for people to look at: the `_MAX_SHOWN` that have run longest."""
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
        """Work on a broadcast until nothing is left to do here. Failed calls to dependencies are retried forever."""
        if lease.state is not LeaseState.HELD:
            return _unfinished(lease)
        if self._has_expired(broadcast):
            return Ending.EXPIRED
        if broadcast.published_at_ms is UNSET:
            broadcast = msgspec.structs.replace(broadcast, published_at_ms=lease.message.sent_at_ms)
        order = next(self._order)
        first_page = self._begin_reading(broadcast, lease)
        claimed_at = self._services.clock()
        try:
            with tracing.span("claim"):
                claim = await self._claim(broadcast, lease)
        except DamagedProgress as damaged:
            return await self._give_up_damaged(_with_offset(broadcast, damaged.offset), str(damaged))
        if isinstance(claim, NotClaimed):
            return _ending_without_claim(claim)
        received, broadcast = broadcast, _with_offset(broadcast, claim.offset)
        announcement = await self._prepare(broadcast, claim)
        if isinstance(announcement, Ending):
            return announcement
        settings = await self._settings_to_start(broadcast)
        appended = await self._append(broadcast, claim, lease, order, settings.history_seconds)
        if isinstance(appended, Ending):
            return appended
        broadcast = appended
        # A broadcast that began when there was one shard finds all its members there: it resumes and is not split.
        if settings.shards > 1 and claim.start.is_start:
            return await self._split(broadcast, claim, settings.shards)
        if not claim.start.is_start or broadcast.offset != received.offset:
            first_page = None  # members are read after the message has been written to the room's history
        with tracing.span("deliver"):
            run = Run(
                self._services,
                broadcast,
                lease,
                claim=claim,
                claimed_at=claimed_at,
                place=place,
                order=order,
                first_page=first_page,
                presence_frame=announcement.frame,
                max_members=announcement.max_members,
            )
            return await self._deliver(run, lease, claim)

    def _begin_reading(self, broadcast: Broadcast, lease: Lease) -> Awaitable[Page] | None:
        """Start reading, while the claim is written, what is needed after it: settings, head, or the first page.

        Returns the page. It is not read if a split, a checkpoint or an offset is known to make it useless.
        """
        may_begin = lease.message.receive_count == 1
        room = broadcast.room
        if room and broadcast.shard is UNSET:
            known = self._room_settings.cached(room)
            self._room_settings.begin(room)
            history_seconds = known.history_seconds if known is not None else int(self._history.remembers(room))
            if may_append(broadcast, is_start=True, history_seconds=history_seconds):
                self._history.begin(room)
                return None
            may_begin = may_begin and (known is None or known.shards == 1)
        return begin_page(self._services.table, broadcast) if may_begin else None

    async def _prepare(self, broadcast: Broadcast, claim: Claim) -> Announcement | Ending:
        """How the broadcast is delivered; or how it ends without a delivery."""
        if self._makes_no_progress(claim):
            return await self._give_up(broadcast, claim, "receives")
        announcement = await self._services.announcer.announcement(broadcast)
        return announcement if announcement is not None else await self._complete(broadcast, claim, {})

    async def _append(
        self, broadcast: Broadcast, claim: Claim, lease: Lease, order: int, history_seconds: int
    ) -> Broadcast | Ending:
        """The broadcast, with its offset if the room has history; or how it ends without one."""
        if not may_append(broadcast, is_start=claim.start.is_start, history_seconds=history_seconds):
            if broadcast.room and lacks_offset(broadcast):
                await self._history.omit(broadcast.room, has_history=history_seconds > 0)
            return broadcast
        with tracing.span("append"):
            result = await self._history.append(broadcast, claim, lease, order=order, history_seconds=history_seconds)
        match result:
            case int(offset):
                return _with_offset(broadcast, offset)
            case NotAppended.TAKEN_OVER:
                return Ending.ABANDONED
            case NotAppended.STOPPED:
                return _unfinished(lease)
            case NotAppended.REJECTED:
                await self._history.omit(str(broadcast.room), has_history=True)
                return broadcast
            case _:
                assert_never(result)

    async def _claim(self, broadcast: Broadcast, lease: Lease) -> Claim | NotClaimed:
        """Claim the broadcast. Raises DamagedProgress if the progress item was damaged in every read."""
        services = self._services
        message = lease.message
        waited = message.receive_count - 1 if self._fifo else 0  # each may have been received only to wait for others
        claimant = Claimant(message.id, message.receive_count, uuid4().hex, waited)

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
        """Dead-letter a broadcast whose position cannot be read. A redrive starts it from the beginning.

        Without a dead-letter queue it is released, and so starts from the beginning at once. Its offset is kept in both
        cases, if it can be read: no message is appended twice.
        """
        services = self._services
        self._damaged.report("progress", pk, "no claim or checkpoint of a worker")
        await retry_forever("claim", services.health, lambda: services.progress.reset(broadcast))
        if not services.dead_letters.configured:
            return Ending.RELEASED
        await services.dead_letters.store_broadcast(broadcast, "damaged")
        log.error("broadcast.given_up", reason="damaged")
        return Ending.GIVEN_UP

    def _makes_no_progress(self, claim: Claim) -> bool:
        """Whether the broadcast should be given up: too many receives without progress, and a dead-letter queue."""
        return (
            claim.receives_without_progress > MAX_RECEIVES_WITHOUT_PROGRESS and self._services.dead_letters.configured
        )

    async def _settings_to_start(self, broadcast: Broadcast) -> RoomSettings:
        """The room's settings; those of a room without any for a part, and for a broadcast to connections."""
        room = broadcast.room
        if not room or broadcast.shard is not UNSET:
            return RoomSettings()
        return await retry_forever("settings", self._services.health, lambda: self._room_settings.get(room))

    def _age_seconds(self, broadcast: Broadcast) -> float:
        due_at = int(broadcast.published_at_ms or 0) / 1000 + delay_seconds(broadcast, fifo=self._fifo)
        return max(0.0, self._services.wall_clock() - due_at)

    def _has_expired(self, broadcast: Broadcast) -> bool:
        expires_at_ms = broadcast.expires_at_ms
        return isinstance(expires_at_ms, int) and self._services.wall_clock() * 1000 >= expires_at_ms

    async def _give_up(self, broadcast: Broadcast, claim: Claim, reason: str) -> Ending:
        """Store it as a dead letter as a whole. A redrive resumes it from its checkpoint."""
        services = self._services
        if not await retry_forever("claim", services.health, lambda: services.progress.release(claim)):
            return Ending.ABANDONED
        await services.dead_letters.store_broadcast(broadcast, reason)
        log.error("broadcast.given_up", reason=reason, receives=claim.receive_count)
        return Ending.GIVEN_UP

    async def _split(self, broadcast: Broadcast, claim: Claim, shards: int) -> Ending:
        """Send one part per shard. Parts have fixed names, so splitting twice is harmless."""
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
        return await self._complete(run.fanout.broadcast, claim, run.fanout.counts)

    async def _complete(self, broadcast: Broadcast, claim: Claim, counts: Mapping[Outcome, int]) -> Ending:
        await self._completions.add(claim)
        seconds = self._age_seconds(broadcast)
        self._services.metrics.broadcast_duration.observe(seconds)
        log.info(
            "broadcast.completed",
            part=broadcast.part,
            seconds=round(seconds, 3),
            **{str(outcome): count for outcome, count in counts.items() if count},
        )
        return Ending.COMPLETED


def _with_offset(broadcast: Broadcast, offset: int | None) -> Broadcast:
    """The broadcast with its offset, if it is known and not in the broadcast already."""
    if offset is None or broadcast.offset is not UNSET:
        return broadcast
    return msgspec.structs.replace(broadcast, offset=offset)


def _ending_without_claim(reason: NotClaimed) -> Ending:
    match reason:
        case NotClaimed.COMPLETED:
            return Ending.DUPLICATE
        case NotClaimed.HELD:
            return Ending.HELD
        case NotClaimed.SUPERSEDED:
            return Ending.ABANDONED
        case _:
            assert_never(reason)


def _unfinished(lease: Lease) -> Ending:
    return Ending.ABANDONED if lease.state is LeaseState.LOST else Ending.RELEASED
