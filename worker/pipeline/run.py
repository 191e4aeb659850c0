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
from collections.abc import Awaitable, Coroutine
from typing import Any, Final

from msgspec import UNSET, UnsetType

from gatecast import tracing
from gatecast.broadcast import Broadcast
from gatecast.frames import Link
from gatecast.references import NEW_LINK_SECONDS
from worker.decisions.checkpoint import RENEW_SECONDS
from worker.decisions.outcome import Outcome
from worker.decisions.receipts import ReceiptState
from worker.delivery.bodies import TOO_LARGE
from worker.delivery.fanout import Delivery, Fanout
from worker.delivery.kicks import KickFanout
from worker.pipeline.capacity import Place
from worker.pipeline.checkpoints import Checkpoints
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.pages import begin_page
from worker.pipeline.remainders import Remainders, prior_rejections
from worker.pipeline.services import Services
from worker.ports import MAX_BATCH_GET, Claim, Page
from worker.resilience import retry_forever
from worker.transport.pool import RESPONSE_TIMEOUT_SECONDS

_STOP_SECONDS: Final = RESPONSE_TIMEOUT_SECONDS + 2
"""Maximum time that a broadcast that should stop waits for responses and for its missed deliveries to be stored."""


class Run:
    """The delivery of `broadcast`, which this worker holds under `lease` and, since `claimed_at`, under `claim`.

    `order` is the number of the run. `first_page` is the first page of members if its query has already been sent.
    `presence_frame` is the frame of a change of presence, if it is not the broadcast as it is. Once the pages show more
    than `max_members`, nothing more is delivered. `link` leads to the payload, if that is an object in S3, and is new.
    `receipt` is what has been counted so far, if the broadcast ends in a receipt.
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
        link: Link | UnsetType = UNSET,
        receipt: ReceiptState | None = None,
    ) -> None:
        self._services = services
        self._lease = lease
        self._claim = claim
        self._renewed_at = claimed_at
        self._place = place
        self._parked = False
        self._cut_short = False
        self._first_page = first_page
        self._max_members = max_members
        self._link_ends_at = math.inf if link is UNSET else services.clock() + NEW_LINK_SECONDS
        self._members_read = 0
        self._found_in = found_in = (broadcast.room, int(broadcast.shard or 0)) if broadcast.room else None
        self.fanout = (KickFanout if broadcast.close else Fanout)(
            broadcast,
            claim.start,
            services.clock,
            order=(int(broadcast.published_at_ms or 0), order),
            prior_rejections=prior_rejections(broadcast, services),
            totals=services.metrics.deliveries,
            gone=lambda delivery: services.reaper.offer(
                delivery.connection_id, found_in, delivery.joined_at_ms, locator=delivery.locator
            ),
            closed=lambda delivery: services.reaper.offer(
                delivery.connection_id, found_in, proven=True, locator=delivery.locator
            ),
            presence_frame=presence_frame,
            link=link,
        )
        self.checkpoints = Checkpoints(services, self.fanout, lease, claim, receipt)
        self._remainders = Remainders(services, self.fanout, self.checkpoints)

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
            self._expire_if_late()
            self._offer()
            # A resumed broadcast delivers to its pending members first; reading pages must not delay them.
            if self._claim.start.is_start and not fanout.exhausted and await self._add_first_page():
                await self._supervise()
            else:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(self._read_ahead(), name="read pages")
                    await self._supervise()
                    reading.cancel()
        finally:
            fanout.stop()
            self.checkpoints.report_cost()
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
            await self.checkpoints.write()

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
                        await self.checkpoints.write()
                    side_task.result()
                    side_task = None
                if side_task is None and not self._is_late and (call := self._next_side_task()) is not None:
                    side_task = asyncio.create_task(call, name="side task")
                    side_task.add_done_callback(lambda _: fanout.changed.set())
                if fanout.stopped and (self._is_late or not (fanout.in_flight or side_task)):
                    if side_task is not None:
                        side_task.cancel()
                        await asyncio.wait({side_task})
                    await self.checkpoints.write()
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
        self._expire_if_late()
        if fanout.checkpoint_schedule.due(self._services.clock()) or (
            fanout.stopped and fanout.checkpoint_schedule.since_snapshot
        ):
            await self.checkpoints.write()
        self._offer()

    def _expire_if_late(self) -> None:
        expires_at_ms = self.fanout.broadcast.expires_at_ms
        if isinstance(expires_at_ms, int) and self._services.wall_clock() * 1000 >= expires_at_ms:
            self.fanout.expire()

    def _next_side_task(self) -> Coroutine[Any, Any, None] | None:
        """The next task that makes calls other than posts. If it hangs, checkpoints continue, and a stop waits briefly.

        Cancelling it at any point is safe: until it is done, the affected deliveries stay unsettled and so remain in
        every checkpoint. At a stop only missed deliveries are stored, if there is time; if not, they are posted again.
        """
        fanout = self.fanout
        if self._services.clock() >= self._link_ends_at and not fanout.stopped:
            return self._renew_link()
        if fanout.unknown_age and not fanout.stopped:
            return self._look_up_ages()
        if fanout.missed and (missed := fanout.missed_to_store()):
            return self._dead_letter_missed(missed)
        slow = self._remainders.take(parked=self._parked)
        return self._remainders.hand_off(slow) if slow else None

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

    async def _renew_link(self) -> None:
        """Post a new link from now on, long before the one so far ends: clients need time to use it."""
        services = self._services
        link = await services.payloads.link(self.fanout.broadcast)
        if link is not UNSET:
            self.fanout.renew_link(link)
        self._link_ends_at = services.clock() + NEW_LINK_SECONDS

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
