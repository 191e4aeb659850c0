"""One broadcast in progress: its members are paged and delivered, its position is written, its misses are kept.

                 HELD ────────────── asked to stop ─────────────▶ ENDING
    lease:        │                                                  │      the last checkpoint is written
                  └── not extended in time, or somebody else has it ─┴─▶ LOST    nothing more is done

    run:    has a place ── only waits for single connections ──▶ parked ──▶ settled
                  │ too many are parked: those that wait leave as a remainder │
                  └───────────────────────────────────────────────────────────┘

A run ends settled (every member has an outcome, and every missed one is safe on the dead-letter queue), stopped with
its position written, or lost. What if we die at an await? Whoever takes the message over goes on from the latest
checkpoint, in which every member is that is not settled.
"""

import asyncio
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
from worker.decisions.parts import REMAINDER_PREFIX, can_name, to_connections
from worker.decisions.stall import Refused
from worker.delivery.engine import DeliveryEngine
from worker.delivery.fanout import MAX_WAITING, Delivery, Fanout
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.capacity import Place
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.reaper import Reaper
from worker.pipeline.sender import Sender
from worker.ports import MAX_BATCH_GET, Claim, Member, MemberTable, MessageRejected, Page, ProgressStore
from worker.resilience import retry_forever
from worker.transport.pool import RESPONSE_TIMEOUT_SECONDS

log = structlog.get_logger()

_MIN_REMAINDER_SECONDS: Final = 15
_MAX_REMAINDER_SECONDS: Final = 300
_MAX_TRIED_SECONDS: Final = 3600.0
_STOP_SECONDS: Final = RESPONSE_TIMEOUT_SECONDS + 2
"""How long a broadcast that should stop waits, at most, for responses and for its misses to be safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every broadcast needs. `clock` gives monotonic seconds, `wall_clock` seconds since the epoch."""

    sender: Sender
    table: MemberTable
    progress: ProgressStore
    dead_letters: DeadLetters
    engine: DeliveryEngine
    reaper: Reaper
    health: Health
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


class Run:
    """The delivery of `broadcast`, which this worker holds by `lease` and, since `claimed_at`, by `claim`.

    `order` counts runs. `first_page` is its first page, if that has been asked for already.
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
    ) -> None:
        self._services = services
        self._lease = lease
        self._claim = claim
        self._renewed_at = claimed_at
        self._place = place
        self._parked = False
        self._remainders = not is_fifo(services.sender.url)  # a FIFO queue neither delays one nor lets it overtake
        self._cut_short = False
        self._first_page = first_page
        found_in = (broadcast.room, int(broadcast.shard or 0)) if broadcast.room else None
        self.fanout = Fanout(
            broadcast,
            claim.start,
            services.clock,
            order=(int(broadcast.published_at_ms or 0), order),
            carried=self._carried(broadcast),
            totals=services.metrics.deliveries,
            gone=lambda delivery: services.reaper.offer(delivery.connection_id, found_in, delivery.joined_at_ms),
        )

    def cut_short(self) -> None:
        """Wait for no more responses: there is just time to write down the position."""
        self._cut_short = True
        self.wake()

    def wake(self) -> None:
        self.fanout.changed.set()

    async def deliver(self) -> bool:
        """Whether all is settled; otherwise it has stopped, and the lease is ending or lost."""
        fanout, lease = self.fanout, self._lease
        lease.changed = fanout.stop
        if lease.state is not LeaseState.HELD:
            fanout.stop()
        try:
            await self._renew()
            self._offer()
            # Members of an earlier receive are on their way already: there the first page must not hold up anything.
            if self._claim.start.is_start and await self._add_first_page():
                await self._supervise()
            else:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(self._read_on())
                    await self._supervise()
                    reading.cancel()
        finally:
            fanout.stop()
            tracing.note(**{f"gatecast_{outcome}": count for outcome, count in fanout.counts.items() if count})
            lease.changed = None
        return fanout.settled and lease.state is not LeaseState.LOST

    def _offer(self) -> None:
        if self.fanout.available:
            self._services.engine.offer(self.fanout)

    async def _renew(self) -> None:
        """Before the first post: if the settings or the page took long, another message may have the claim by now."""
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
        """Read the page behind `after` and add it; true if it was the last."""
        fanout, broadcast = self.fanout, self.fanout.broadcast
        if broadcast.connections:
            ids = list(dict.fromkeys(broadcast.connections))[int(after or "0") :]
            fanout.add_page([Member(connection_id, None) for connection_id in ids], last=True)
        else:
            room, shard = str(broadcast.room), int(broadcast.shard or 0)
            with tracing.span("page"):
                page = await retry_forever("table", self._services.health, lambda: self._page(room, shard, after))
                tracing.note(gatecast_members=len(page.members))
            fanout.add_page(page.members, last=page.after is None, read_to=page.after or "")
        return fanout.exhausted

    async def _page(self, room: str, shard: int, after: str) -> Page:
        begun, self._first_page = self._first_page, None
        return await (begun if begun is not None and not after else self._services.table.begin_page(room, shard, after))

    async def _read_on(self) -> None:
        """Read pages ahead, as far as deliveries drain."""
        fanout = self.fanout
        while not fanout.exhausted:
            while fanout.wants_page:
                await self._add_page(fanout.read_to)
                self._offer()
            await fanout.page_wanted.wait()
            fanout.page_wanted.clear()

    # While deliveries run

    async def _supervise(self) -> None:
        """Everything that a fan-out needs while its deliveries run; returns when it is settled or has stopped."""
        fanout = self.fanout
        side_task: asyncio.Task[None] | None = None
        try:
            while not fanout.settled and self._lease.state is not LeaseState.LOST:
                fanout.changed.clear()
                self._parked = fanout.only_waits and not fanout.stopped and self._place.park(fanout.held_bytes)
                if side_task is not None and side_task.done():
                    if side_task.exception() is not None:  # it comes back: nobody who was reached is reached again
                        await self._write_checkpoint()
                    side_task.result()
                    side_task = None
                if side_task is None and not self._is_late and (call := self._next_side_task()) is not None:
                    side_task = asyncio.create_task(call)
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
        if fanout.pace.due(self._services.clock()) or (fanout.stopped and fanout.pace.since_snapshot):
            await self._write_checkpoint()
        self._offer()

    def _next_side_task(self) -> Coroutine[Any, Any, None] | None:
        """The next of what takes other calls than posts. Where it hangs, checkpoints do not wait, nor a stop for long.

        Cancelling it at any point is safe: those that it is about stay unsettled, and so in every checkpoint, until it
        is done. At a stop only misses are made safe, if there is time: otherwise they are posted to again.
        """
        fanout = self.fanout
        if fanout.unknown_age and not fanout.stopped:
            return self._learn_ages()
        if fanout.missed and (fanout.held_up or fanout.finished or fanout.stopped):
            return self._dead_letter_missed()
        slow = self._should_leave()
        return self._leave_remainder(slow) if slow else None

    def _should_leave(self) -> list[Delivery]:
        """Those that should go on as a broadcast of their own, so that they hold up nobody."""
        fanout = self.fanout
        if fanout.stopped or not self._remainders:
            return []
        too_many = fanout.waiting >= MAX_WAITING or (fanout.only_waits and not self._parked)
        if not too_many:
            return []
        return [delivery for delivery in fanout.slow(MAX_WAITING) if can_name(delivery.connection_id)]

    async def _write_checkpoint(self) -> None:
        fanout, claim = self.fanout, self._claim
        fanout.pace.snapshot(self._services.clock())
        checkpoint = fanout.checkpoint()
        progress = fanout.progress

        async def write() -> bool:
            return await self._services.progress.write_checkpoint(claim, checkpoint, progress=progress)

        if await retry_forever("checkpoint", self._services.health, write):
            fanout.pace.written()
            self._services.metrics.checkpoints += 1
        else:
            self._lease.become(LeaseState.LOST)

    # Side tasks

    async def _dead_letter_missed(self) -> None:
        fanout = self.fanout
        missed = fanout.missed.copy()
        by_reason: dict[Outcome, list[str]] = {}
        for delivery, reason in missed:
            by_reason.setdefault(reason, []).append(delivery.connection_id)
        with tracing.span("settle", gatecast_missed=len(missed)):
            await self._services.dead_letters.missed(fanout.broadcast, by_reason)
        fanout.confirm_missed(missed)

    async def _leave_remainder(self, slow: list[Delivery]) -> None:
        """Slow members hold up nobody: they go on as a broadcast of their own, later, and later each time."""
        fanout, services = self.fanout, self._services
        tried = self._tried(slow)
        for delivery in slow:  # from here on the engine leaves them alone, but a checkpoint still has them
            fanout.unpark(delivery)
        remainder = to_connections(
            fanout.broadcast, [delivery.connection_id for delivery in slow], REMAINDER_PREFIX, tried
        )
        seconds = services.wall_clock() - tried[1] / 1000
        delay = round(min(max(seconds, _MIN_REMAINDER_SECONDS), _MAX_REMAINDER_SECONDS))
        try:
            await services.sender.send(queue_message(remainder, fifo=False), delay_seconds=delay)
        except MessageRejected as rejected:
            log.error("remainder.rejected", id=fanout.broadcast.id, code=rejected.code)  # noqa: TRY400
            self._remainders = False
            for delivery in slow:
                services.engine.retry_later(delivery)
            return
        fanout.leave(slow)
        services.metrics.remainders += 1

    def _tried(self, slow: list[Delivery]) -> tuple[int, int, float]:
        """What is true of all of them: how often they were rejected, since when, and how sure that is."""
        now = self._services.clock()
        records = [delivery.stalled for delivery in slow]
        stalled = [record for record in records if record is not None]
        since = max((record.since for record in stalled), default=now)
        since_ms = int((self._services.wall_clock() - (now - since)) * 1000)
        if len(stalled) < len(slow):
            return 0, since_ms, 0.0
        return min(each.refused for each in stalled), since_ms, min(each.evidence for each in stalled)

    def _carried(self, broadcast: Broadcast) -> Refused | None:
        """What an earlier worker knew of all its connections, on this worker's clock."""
        if broadcast.tried is UNSET or not broadcast.tried[0]:
            return None
        probes, since_ms, evidence = broadcast.tried
        seconds = min(max(0.0, self._services.wall_clock() - since_ms / 1000), _MAX_TRIED_SECONDS)
        return Refused(probes, self._services.clock() - seconds, evidence)

    async def _learn_ages(self) -> None:
        """410 for a connection that was named: it may be so young that its `$connect` is still running."""
        fanout, services = self.fanout, self._services
        asked, fanout.unknown_age = fanout.unknown_age[:MAX_BATCH_GET], fanout.unknown_age[MAX_BATCH_GET:]
        ids = [delivery.connection_id for delivery in asked]
        connected = await retry_forever("ages", services.health, lambda: services.table.connected_at_ms(ids))
        for delivery in asked:
            delivery.joined_at_ms = connected.get(delivery.connection_id, 0)
            services.engine.judge_again(delivery)
