"""One broadcast in progress: page its members, deliver to them, write checkpoints, and dead-letter missed deliveries.

    holds a place ── only deliveries waiting for a retry are left ──▶ parked
          │                                                             │
          └── every member has an outcome, or is part of a remainder ───┴──▶ settled

    in either state:  lease ENDING ── responses have arrived, or time is up; last checkpoint written ──▶ stopped
                      lease LOST ── nothing more is done ──▶ lost

If too many runs are parked, or too many deliveries of one wait, the waiting deliveries leave as a remainder. A settled
run has stored every missed delivery as a dead letter. What if we die at an await? The worker that takes the message
over resumes from the latest checkpoint, which contains every member that is not settled.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog
from msgspec import UNSET

from gatecast import tracing
from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from worker.decisions.checkpoint import RENEW_SECONDS
from worker.decisions.outcome import Outcome
from worker.decisions.parts import REMAINDER_PREFIX, can_name, fitting
from worker.decisions.stall import PriorRejections
from worker.delivery.bodies import TOO_LARGE
from worker.delivery.engine import DeliveryEngine
from worker.delivery.fanout import MAX_WAITING, Delivery, Fanout
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.capacity import Place
from worker.pipeline.closer import Closer
from worker.pipeline.counts import Counts
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.pages import begin_page
from worker.pipeline.presence import Announcer
from worker.pipeline.reaper import Reaper
from worker.pipeline.sender import Sender
from worker.ports import MAX_BATCH_GET, Claim, MemberTable, MessageRejected, Page, ProgressStore
from worker.resilience import retry_forever
from worker.transport.pool import RESPONSE_TIMEOUT_SECONDS

log = structlog.get_logger()

_MIN_REMAINDER_SECONDS: Final = 15
_MAX_REMAINDER_SECONDS: Final = 300
_MAX_CARRIED_SECONDS: Final = 3600.0
_STOP_SECONDS: Final = RESPONSE_TIMEOUT_SECONDS + 2
"""Maximum time that a broadcast that should stop waits for responses and for its missed deliveries to be stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every run uses. `clock` returns monotonic seconds, `wall_clock` seconds since the epoch."""

    sender: Sender
    table: MemberTable
    progress: ProgressStore
    dead_letters: DeadLetters
    engine: DeliveryEngine
    reaper: Reaper
    closer: Closer
    announcer: Announcer
    counts: Counts
    health: Health
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


class Run:
    """The delivery of `broadcast`, which this worker holds under `lease` and, since `claimed_at`, under `claim`.

    `order` is the number of the run. `first_page` is the first page of members if its query has already been sent.
    `presence_frame` is the frame of a change of presence, if it is not the broadcast as it is. Once the pages show more
    than `max_members`, nothing more is delivered.
    """

    def __init__(
        self,
        services: Services,
        broadcast: Broadcast,
        lease: Lease,
        *,
        claim: Claim,
        claimed_at: float,
        place: Place,
        order: int,
        first_page: Awaitable[Page] | None = None,
        presence_frame: bytes | None = None,
        max_members: float = math.inf,
    ) -> None:
        self._services = services
        self._lease = lease
        self._claim = claim
        self._renewed_at = claimed_at
        self._place = place
        self._parked = False
        # A FIFO queue neither delays single messages nor lets them overtake, so there are no remainders on one.
        self._remainders = not is_fifo(services.sender.url)
        self._cut_short = False
        self._first_page = first_page
        self._max_members = max_members
        self._members_read = 0
        self._found_in = found_in = (broadcast.room, int(broadcast.shard or 0)) if broadcast.room else None
        self.fanout = Fanout(
            broadcast,
            claim.start,
            services.clock,
            order=(int(broadcast.published_at_ms or 0), order),
            prior_rejections=self._prior_rejections(broadcast),
            totals=services.metrics.deliveries,
            gone=lambda delivery: services.reaper.offer(delivery.connection_id, found_in, delivery.joined_at_ms),
            presence_frame=presence_frame,
        )

    def cut_short(self) -> None:
        """Stop waiting for responses: there is only time to write the position."""
        self._cut_short = True
        self.wake()

    def wake(self) -> None:
        self.fanout.changed.set()

    async def deliver(self) -> bool:
        """Deliver until settled or stopped. Returns whether all is settled; if not, the lease is ending or lost."""
        fanout, lease = self.fanout, self._lease
        lease.on_change = fanout.stop
        if lease.state is not LeaseState.HELD:
            fanout.stop()
        try:
            await self._renew()
            self._offer()
            # A resumed broadcast delivers to its pending members first; reading pages must not delay them.
            if self._claim.start.is_start and await self._add_first_page():
                await self._supervise()
            else:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(self._read_ahead(), name="read pages")
                    await self._supervise()
                    reading.cancel()
        finally:
            fanout.stop()
            tracing.set_attributes(
                **{f"gatecast_{outcome}": count for outcome, count in fanout.counts.items() if count}
            )
            lease.on_change = None
        return fanout.settled and lease.state is not LeaseState.LOST

    def _offer(self) -> None:
        if self.fanout.available:
            self._services.engine.offer(self.fanout)

    async def _renew(self) -> None:
        """Renew the claim before the first post: if reading took long, another message may have taken it over."""
        now = self._services.clock()
        if now - self._renewed_at >= RENEW_SECONDS:
            self._renewed_at = now
            await self._write_checkpoint()

    # Pages

    async def _add_first_page(self) -> bool:
        last = await self._add_page("")
        await self._renew()
        self._offer()
        return last

    async def _add_page(self, after: str) -> bool:
        """Read and add the page after the key `after`. Returns whether it was the last one."""
        fanout = self.fanout
        with tracing.span("page"):
            page = await retry_forever("table", self._services.health, lambda: self._page(after))
            tracing.set_attributes(gatecast_members=len(page.members))
        page = self._looked_through(page)
        fanout.add_page(page.members, last=page.after is None, read_to=page.after or "")
        return fanout.exhausted

    def _looked_through(self, page: Page) -> Page:
        """The page, or an empty last one if there are too many members. Members are counted, expired ones passed on."""
        self._members_read += len(page.members)
        if self._found_in is not None:
            self._services.closer.offer(page.expired, self._found_in)
            if page.after is None and self._claim.start.is_start:
                self._services.counts.read(*self._found_in, self._members_read)
        return page if self._members_read <= self._max_members else Page([], None)

    async def _page(self, after: str) -> Page:
        begun, self._first_page = self._first_page, None
        if begun is not None and not after:
            return await begun
        return await begin_page(self._services.table, self.fanout.broadcast, after)

    async def _read_ahead(self) -> None:
        """Read pages ahead of the deliveries, whenever few members are left to deliver."""
        fanout = self.fanout
        while not fanout.exhausted:
            while fanout.needs_page:
                await self._add_page(fanout.read_to)
                self._offer()
            await fanout.page_needed.wait()
            fanout.page_needed.clear()

    # While deliveries run

    async def _supervise(self) -> None:
        """Checkpoint, park and run side tasks while deliveries run. Returns when settled or stopped."""
        fanout = self.fanout
        side_task: asyncio.Task[None] | None = None
        try:
            while not fanout.settled and self._lease.state is not LeaseState.LOST:
                fanout.changed.clear()
                self._parked = fanout.only_waiting and not fanout.stopped and self._place.park(fanout.held_bytes)
                if side_task is not None and side_task.done():
                    if side_task.exception() is not None:  # checkpoint first, so that a redelivery repeats no posts
                        await self._write_checkpoint()
                    side_task.result()
                    side_task = None
                if side_task is None and not self._is_late and (call := self._next_side_task()) is not None:
                    side_task = asyncio.create_task(call, name="side task")
                    side_task.add_done_callback(lambda _: fanout.changed.set())
                if fanout.stopped and (self._is_late or not (fanout.in_flight or side_task)):
                    if side_task is not None:
                        side_task.cancel()
                        await asyncio.wait({side_task})
                    await self._write_checkpoint()
                    return
                await self._housekeeping()
                await fanout.changed.wait()
        finally:
            if side_task is not None:
                side_task.cancel()

    @property
    def _is_late(self) -> bool:
        return self._cut_short or self._services.clock() - self.fanout.stopped_at > _STOP_SECONDS

    async def _housekeeping(self) -> None:
        fanout = self.fanout
        expires_at_ms = fanout.broadcast.expires_at_ms
        if isinstance(expires_at_ms, int) and self._services.wall_clock() * 1000 >= expires_at_ms:
            fanout.expire()
        if fanout.checkpoint_schedule.due(self._services.clock()) or (
            fanout.stopped and fanout.checkpoint_schedule.since_snapshot
        ):
            await self._write_checkpoint()
        self._offer()

    def _next_side_task(self) -> Coroutine[Any, Any, None] | None:
        """The next task that makes calls other than posts. If it hangs, checkpoints continue, and a stop waits briefly.

        Cancelling it at any point is safe: until it is done, the affected deliveries stay unsettled and so remain in
        every checkpoint. At a stop only missed deliveries are stored, if there is time; if not, they are posted again.
        """
        fanout = self.fanout
        if fanout.unknown_age and not fanout.stopped:
            return self._look_up_ages()
        if fanout.missed and (missed := fanout.missed_to_store()):
            return self._dead_letter_missed(missed)
        slow = self._remainder_candidates()
        return self._hand_off_remainder(slow) if slow else None

    def _remainder_candidates(self) -> list[Delivery]:
        """Slow deliveries that should continue as a broadcast of their own, so that they hold up no others."""
        fanout = self.fanout
        if fanout.stopped or not self._remainders:
            return []
        too_many = fanout.waiting >= MAX_WAITING or (fanout.only_waiting and not self._parked)
        if not too_many:
            return []
        return [delivery for delivery in fanout.slow(MAX_WAITING) if can_name(delivery.connection_id)]

    async def _write_checkpoint(self) -> None:
        fanout, claim = self.fanout, self._claim
        fanout.checkpoint_schedule.snapshot(self._services.clock())
        checkpoint = fanout.checkpoint()
        made_progress = fanout.made_progress

        async def write() -> bool:
            return await self._services.progress.write_checkpoint(claim, checkpoint, made_progress=made_progress)

        if await retry_forever("checkpoint", self._services.health, write):
            fanout.checkpoint_schedule.written()
            self._services.metrics.checkpoints += 1
        else:
            self._lease.transition(LeaseState.LOST)

    # Side tasks

    async def _dead_letter_missed(self, missed: list[tuple[Delivery, Outcome]]) -> None:
        fanout = self.fanout
        by_reason: dict[Outcome, list[str]] = {}
        for delivery, reason in missed:
            if delivery.body is not TOO_LARGE:
                by_reason.setdefault(reason, []).append(delivery.connection_id)
        with tracing.span("settle", gatecast_missed=len(missed)):
            if by_reason:
                await self._services.dead_letters.store_missed(fanout.broadcast, by_reason)
            if any(delivery.body is TOO_LARGE for delivery, _ in missed):
                await self._services.dead_letters.store_too_large(fanout.broadcast)
        fanout.confirm_missed(missed)

    async def _hand_off_remainder(self, slow: list[Delivery]) -> None:
        """Send slow deliveries to the queue as a broadcast of their own, with a delay that grows each time."""
        fanout, services = self.fanout, self._services
        tried = self._retry_history(slow)
        for delivery in slow:  # the engine ignores them from here on, but checkpoints still contain them
            fanout.stop_waiting(delivery)
        seconds = services.wall_clock() - tried[1] / 1000
        delay = round(min(max(seconds, _MIN_REMAINDER_SECONDS), _MAX_REMAINDER_SECONDS))
        waiting = {delivery.connection_id: delivery for delivery in slow}
        try:
            for remainder in fitting(fanout.broadcast, list(waiting), REMAINDER_PREFIX, tried):
                await services.sender.send(queue_message(remainder, fifo=False), delay_seconds=delay)
                fanout.hand_off([waiting.pop(each) for each in remainder.connections or ()])
                services.metrics.remainders += 1
        except MessageRejected as rejected:
            log.error("remainder.rejected", id=fanout.broadcast.id, code=rejected.code)  # noqa: TRY400
            self._remainders = False
            for delivery in waiting.values():
                services.engine.retry_later(delivery)

    def _retry_history(self, slow: list[Delivery]) -> tuple[int, int, float]:
        """What holds for all of them: rejected probes, since when (milliseconds since the epoch), and the evidence."""
        now = self._services.clock()
        records = [delivery.stalled for delivery in slow]
        stalled = [record for record in records if record is not None]
        since = max((record.since for record in stalled), default=now)
        since_ms = int((self._services.wall_clock() - (now - since)) * 1000)
        if len(stalled) < len(slow):
            return 0, since_ms, 0.0
        return min(each.rejected for each in stalled), since_ms, min(each.evidence for each in stalled)

    def _prior_rejections(self, broadcast: Broadcast) -> PriorRejections | None:
        """The retry history that an earlier worker passed on for all of the connections, on this worker's clock."""
        if broadcast.tried is UNSET or not broadcast.tried[0]:
            return None
        probes, since_ms, evidence = broadcast.tried
        seconds = min(max(0.0, self._services.wall_clock() - since_ms / 1000), _MAX_CARRIED_SECONDS)
        return PriorRejections(probes, self._services.clock() - seconds, evidence)

    async def _look_up_ages(self) -> None:
        """Look up when connections that returned 410 were established: `$connect` may still be running for young ones.

        Only a broadcast to `connections` needs this.
        """
        fanout, services = self.fanout, self._services
        batch, fanout.unknown_age = fanout.unknown_age[:MAX_BATCH_GET], fanout.unknown_age[MAX_BATCH_GET:]
        ids = [delivery.connection_id for delivery in batch]
        connected = await retry_forever("ages", services.health, lambda: services.table.connections(ids))
        for delivery in batch:
            found = connected.get(delivery.connection_id)
            delivery.joined_at_ms = found.connected_at_ms if found is not None else 0
            services.engine.decide_gone(delivery)
