"""The way of one broadcast: claim it, then split it, give it up, or deliver it with a run.

    expired? → claim → duplicate? → give up | offset → split | `run`: page members → deliver → checkpoint → acknowledge

A broadcast that ends in a receipt is claimed even if it has expired, and sends it before it is acknowledged.

What if we die at an await? Before the claim: nothing has happened. After it: the same message comes back, with a higher
receive count, and takes over the claim, the offset and the last checkpoint. Between sending parts (or dead letters) and
deleting the message: they are sent again under the same part names, so the second ones are duplicates. A message is
deleted only after an ending that leaves nothing to do.
"""

import dataclasses
import itertools
from collections.abc import Awaitable, Mapping
from enum import Enum, auto
from typing import Final, assert_never

import msgspec
import structlog
from msgspec import UNSET

from gatecast import tracing
from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from gatecast.room_settings import RoomSettings
from worker.decisions.claims import NotClaimed
from worker.decisions.history import NotAppended, lacks_offset, may_append
from worker.decisions.outcome import Outcome
from worker.decisions.parts import to_shards
from worker.decisions.receipts import ReceiptState
from worker.observe.damaged_items import DamagedItems
from worker.pipeline.active_runs import ActiveRuns, age_seconds
from worker.pipeline.capacity import Place
from worker.pipeline.claiming import claim_broadcast
from worker.pipeline.completions import Completions
from worker.pipeline.history import History
from worker.pipeline.lease import Lease, LeaseEnded, LeaseState
from worker.pipeline.pages import begin_page
from worker.pipeline.payloads import Undeliverable
from worker.pipeline.presence import Announcement
from worker.pipeline.room_settings import RoomSettingsCache
from worker.pipeline.run import Run
from worker.pipeline.services import Services
from worker.ports import Claim, DamagedProgress, MessageRejected, Page
from worker.resilience import retry_forever

log = structlog.get_logger()

MAX_RECEIVES_WITHOUT_PROGRESS: Final = 100


class Ending(Enum):
    """How a broadcast ended on this worker, which decides what happens to its message."""

    COMPLETED = auto()
    SPLIT = auto()
    EXPIRED = auto()
    DUPLICATE = auto()
    """It was already completed."""
    HELD = auto()
    """Another message of the same broadcast holds the claim: retry later."""
    DEFERRED = auto()
    """A setting or a permission is missing, and there is no dead-letter queue: retry later."""
    GIVEN_UP = auto()
    """It was stored on the dead-letter queue as a whole."""
    RELEASED = auto()
    """It stopped where it was: another worker may resume it at once."""
    ABANDONED = auto()
    """The lease is lost, or another worker has taken the broadcast over: do nothing with its message."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Started:
    """A broadcast that was claimed. `first_page` is the first page of members if its query has already been sent."""

    lease: Lease
    place: Place
    claim: Claim
    claimed_at: float
    order: int
    first_page: Awaitable[Page] | None
    is_late: bool
    """Whether it had expired when it was received: then it is only claimed because it ends in a receipt."""


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
        self._order = itertools.count()
        self.active = ActiveRuns(services)

    async def run(self, broadcast: Broadcast, lease: Lease, place: Place) -> Ending:
        """Work on a broadcast until nothing is left to do here. Failed calls to dependencies are retried forever."""
        if lease.state is not LeaseState.HELD:
            return _unfinished(lease)
        is_late = self._has_expired(broadcast)
        if is_late and not await self._ends_in_receipt(broadcast):
            return Ending.EXPIRED
        if broadcast.published_at_ms is UNSET:
            broadcast = msgspec.structs.replace(broadcast, published_at_ms=lease.message.sent_at_ms)
        order = next(self._order)
        first_page = None if is_late else self._begin_reading(broadcast, lease)
        claimed_at = self._services.clock()
        try:
            with tracing.span("claim"):
                claim = await claim_broadcast(broadcast, lease.message, self._services)
        except DamagedProgress as damaged:
            return await self._give_up_damaged(_with_offset(broadcast, damaged.offset), str(damaged))
        if isinstance(claim, NotClaimed):
            return _ending_without_claim(claim)
        state = claim.start.receipt
        try:
            if state is not None and state.has_ended:
                return await self._end_with_receipt(broadcast, claim, state, lease)
            started = _Started(lease, place, claim, claimed_at, order, first_page, is_late)
            return await self._run_claimed(broadcast, started)
        except LeaseEnded:
            return _unfinished(lease)

    async def _run_claimed(self, broadcast: Broadcast, started: "_Started") -> Ending:
        """Continue a broadcast that was received as it is, and has been claimed."""
        claim, lease, first_page = started.claim, started.lease, started.first_page
        received = broadcast
        broadcast, announcement = _with_offset(broadcast, claim.offset), Announcement()
        if not started.is_late:
            prepared = await self._prepare(broadcast, claim, lease)
            if isinstance(prepared, Ending):
                return prepared
            broadcast, announcement = prepared
        settings = await self._settings_to_start(broadcast)
        receipt = self._services.receipts.begin(broadcast, settings, claim.start)
        if receipt is not None:
            broadcast = msgspec.structs.replace(broadcast, receipt=True)  # so do its parts
        if not started.is_late:
            appended = await self._append(broadcast, claim, lease, started.order, settings.history_seconds)
            if isinstance(appended, Ending):
                return appended
            broadcast = appended
        # A broadcast that began when there was one shard finds all its members there: it resumes and is not split. One
        # that expires before it begins is not split either, unless its parts are expected already.
        splits = settings.shards > 1 and claim.start.is_start
        if splits and (not started.is_late or (receipt is not None and receipt.begun_by)):
            return await self._split(broadcast, claim, lease, settings.shards, receipt)
        if not claim.start.is_start or broadcast.offset != received.offset:
            first_page = None  # members are read after the message has been written to the room's history
        with tracing.span("deliver"):
            run = Run(
                self._services,
                broadcast,
                lease,
                claim=claim,
                claimed_at=started.claimed_at,
                place=started.place,
                order=started.order,
                first_page=first_page,
                presence_frame=announcement.frame,
                max_members=announcement.max_members,
                link=UNSET if started.is_late else await self._services.payloads.link(broadcast),
                receipt=receipt,
            )
            return await self._deliver(run, lease, claim, is_late=started.is_late)

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

    async def _prepare(
        self, broadcast: Broadcast, claim: Claim, lease: Lease
    ) -> tuple[Broadcast, Announcement] | Ending:
        """What is delivered, and how; or how the broadcast ends without a delivery."""
        if self._makes_no_progress(claim):
            return await self._give_up(broadcast, claim, "receives")
        try:
            broadcast = await self._services.payloads.find(broadcast, lease)
        except Undeliverable as undeliverable:
            reason, why = undeliverable.reason, undeliverable.why
            if undeliverable.may_pass and not self._services.dead_letters.configured:
                log.error("broadcast.deferred", id=broadcast.id, part=broadcast.part, reason=reason, why=why)  # noqa: TRY400
                return Ending.DEFERRED
            return await self._give_up(broadcast, claim, reason, why)
        announcement = await self._services.announcer.announcement(broadcast)
        return (broadcast, announcement) if announcement is not None else await self._complete(broadcast, claim, {})

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

    async def _ends_in_receipt(self, broadcast: Broadcast) -> bool:
        """Whether a broadcast that has not begun ends in a receipt."""
        receipts = self._services.receipts
        return receipts.configured and receipts.wanted(broadcast, await self._settings_to_start(broadcast))

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

    def _has_expired(self, broadcast: Broadcast) -> bool:
        expires_at_ms = broadcast.expires_at_ms
        return isinstance(expires_at_ms, int) and self._services.wall_clock() * 1000 >= expires_at_ms

    async def _give_up(self, broadcast: Broadcast, claim: Claim, reason: str, why: str = "") -> Ending:
        """Store it as a dead letter as a whole. A redrive, or another message of it, resumes it from its checkpoint."""
        services = self._services
        if not await retry_forever("claim", services.health, lambda: services.progress.release(claim)):
            return Ending.ABANDONED
        await services.dead_letters.store_whole(broadcast, reason, why)
        log.error(
            "broadcast.given_up",
            id=broadcast.id,
            part=broadcast.part,
            reason=reason,
            receives=claim.receive_count,
            **({"why": why} if why else {}),
        )
        return Ending.GIVEN_UP

    async def _split(
        self, broadcast: Broadcast, claim: Claim, lease: Lease, shards: int, receipt: ReceiptState | None
    ) -> Ending:
        """Send one part per shard. Parts have fixed names, so splitting twice is harmless."""
        receipts, parts = self._services.receipts, list(to_shards(broadcast, shards))
        if receipt is not None:
            receipt = await receipts.expect_shards(broadcast, claim, receipt, parts)
            if receipt is None:
                return Ending.ABANDONED
        try:
            await self._services.sender.send_all(queue_message(part, fifo=self._fifo) for part in parts)
        except MessageRejected:
            if not self._services.dead_letters.configured:
                raise
            return await self._give_up(broadcast, claim, "undelivered")
        if receipt is not None and not await receipts.end_split(broadcast, claim, receipt, lease):
            return Ending.ABANDONED
        await self._completions.add(claim)
        return Ending.SPLIT

    async def _deliver(self, run: Run, lease: Lease, claim: Claim, *, is_late: bool) -> Ending:
        with self.active.including(run):
            settled = await run.deliver()
        if not settled:
            return _unfinished(lease)
        broadcast, outcomes = run.fanout.broadcast, run.fanout.outcomes
        if run.checkpoints.has_receipt:
            receipt = await run.checkpoints.end(round(age_seconds(broadcast, self._services) * 1000))
            if receipt is None:
                return Ending.ABANDONED
            await self._services.receipts.end(broadcast, receipt, lease)
        if is_late:
            await self._completions.add(claim)
            return Ending.EXPIRED
        return await self._complete(broadcast, claim, outcomes.by_outcome, outcomes.billed_units)

    async def _end_with_receipt(
        self, broadcast: Broadcast, claim: Claim, receipt: ReceiptState, lease: Lease
    ) -> Ending:
        """End a broadcast of which an earlier worker has settled everything, but perhaps not sent the receipt."""
        await self._services.receipts.end(broadcast, receipt, lease)
        await self._completions.add(claim)
        log.info("broadcast.completed", part=broadcast.part, counted_before=receipt.sums.members)
        return Ending.COMPLETED

    async def _complete(
        self, broadcast: Broadcast, claim: Claim, counts: Mapping[Outcome, int], billed_units: int = 0
    ) -> Ending:
        await self._completions.add(claim)
        seconds = age_seconds(broadcast, self._services)
        if broadcast.close is UNSET:  # it takes as long as its share of the rate does, whose objective is another one
            self._services.metrics.broadcast_duration.observe(seconds)
        log.info(
            "broadcast.completed",
            part=broadcast.part,
            seconds=round(seconds, 3),
            **{str(outcome): count for outcome, count in counts.items() if count},
            billed_units=billed_units,
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
