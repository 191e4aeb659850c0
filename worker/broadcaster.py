"""One broadcast, from its claim to the moment when its message may be deleted.

    claim → (split | expired | page members → deliver → checkpoint …) → misses made safe → acknowledge

What if we die at an await? Before the claim: nothing has happened. After it: the same message comes back, with a higher
receive count, and takes the claim over with its last checkpoint. Between parts (or dead letters) and the deletion of
the message: they are sent again, under the same part names, and are duplicates. Only what `run` calls done is deleted.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from heapq import nsmallest
from typing import Any, Final

import msgspec
import structlog
from msgspec import UNSET

from gatecast import tracing
from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from worker.dead_letters import DeadLetters
from worker.delivery.engine import DeliveryEngine
from worker.delivery.outcome import Outcome
from worker.fanout import MOST_MISSED, MOST_WAITING, Delivery, Fanout, Member
from worker.health import Health
from worker.http.pool import ANSWER_TIMEOUT_SECONDS
from worker.lease import Lease, LeaseState
from worker.metrics import Metrics
from worker.parts import REMAINDER_PREFIX, batches, to_connections, to_shards
from worker.perseverance import persevere
from worker.ports import (
    MAX_BATCH_GET,
    Claim,
    Claimant,
    MemberTable,
    MessageQueue,
    NotClaimed,
    ProgressStore,
    ServiceError,
)
from worker.reaper import Reaper
from worker.room_settings import RoomSettingsCache
from worker.slots import Slots
from worker.standstill import Standstill

log = structlog.get_logger()

RECEIVES_WITHOUT_PROGRESS: Final = 100
_REMAINDER_DELAY_SECONDS: Final = 15
_STOP_SECONDS: Final = ANSWER_TIMEOUT_SECONDS + 2
"""How long a broadcast that should stop waits, at most, for answers and for its misses to be safe."""
_PULSE_SECONDS: Final = 0.25
_MOST_SHOWN: Final = 50


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
    """Runs broadcasts side by side. All times passed in are as the names say; `clock` gives monotonic seconds."""

    def __init__(
        self,
        *,
        queue: MessageQueue,
        slots: Slots,
        table: MemberTable,
        progress: ProgressStore,
        dead_letters: DeadLetters,
        engine: DeliveryEngine,
        reaper: Reaper,
        settings: RoomSettingsCache,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._slots = slots
        self._table = table
        self._progress = progress
        self._dead_letters = dead_letters
        self._engine = engine
        self._reaper = reaper
        self._settings = settings
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._running: dict[Fanout, Lease] = {}
        self._standstill = Standstill()
        self._hurrying = False

    async def pulse(self) -> None:
        """Wake every broadcast once in a while, so that none needs a timer of its own. Until cancelled."""
        while True:
            await asyncio.sleep(_PULSE_SECONDS)
            for fanout in self._running:
                fanout.changed.set()
            self._put_one_back()

    def _put_one_back(self) -> None:
        seconds = self._standstill.put_back_seconds(self._clock(), self._engine.endpoint, full=self._slots.full)
        held = [fanout for fanout, lease in self._running.items() if lease.state is LeaseState.HELD]
        if seconds is not None and held:
            self._running[min(held, key=lambda fanout: fanout.started_at)].put_back(seconds)

    def hurry(self) -> None:
        """Stop waiting for answers under way: there is just time to write down how far each broadcast has come."""
        self._hurrying = True
        for fanout in self._running:
            fanout.changed.set()

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be tried again."""
        return sum(fanout.waiting for fanout in self._running)

    def running(self) -> list[dict[str, object]]:
        """The oldest of those that are being delivered, `_MOST_SHOWN` at most, for people to look at."""
        now = self._clock()
        oldest = nsmallest(_MOST_SHOWN, self._running, key=lambda fanout: fanout.started_at)
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
            for fanout in oldest
        ]

    async def run(self, broadcast: Broadcast, lease: Lease) -> Ending:
        """Returns when nothing more is to be done here. Dependencies that fail are waited for."""
        if lease.state is not LeaseState.HELD:
            return _unfinished(lease)
        if self._expired(broadcast):
            return Ending.EXPIRED
        if broadcast.published_at_ms is UNSET:
            broadcast = msgspec.structs.replace(broadcast, published_at_ms=lease.message.sent_at_ms)
        claimant = Claimant.of(lease.message, fifo=self._fifo)
        with tracing.span("claim"):
            claim = await persevere("claim", self._health, lambda: self._progress.claim(broadcast, claimant))
        if isinstance(claim, NotClaimed):
            return Ending.DUPLICATE if claim.duplicate else Ending.LEFT
        if claim.fresh_receives > RECEIVES_WITHOUT_PROGRESS and self._dead_letters.exist:
            return await self._give_up(broadcast, claim)
        if broadcast.room and broadcast.shard is UNSET:
            settings = await persevere("settings", self._health, lambda: self._settings.of(str(broadcast.room)))
            # What has begun on one shard, before there were more, has all its members there: it is not begun again.
            if settings.shards > 1 and claim.start.nowhere:
                return await self._split(broadcast, settings.shards)
        with tracing.span("deliver"):
            return await self._fan_out(broadcast, lease, claim)

    def _age_seconds(self, broadcast: Broadcast) -> float:
        return max(0.0, self._wall_clock() - int(broadcast.published_at_ms or 0) / 1000)

    def _expired(self, broadcast: Broadcast) -> bool:
        return isinstance(broadcast.expires_at_ms, int) and self._wall_clock() * 1000 >= broadcast.expires_at_ms

    async def _give_up(self, broadcast: Broadcast, claim: Claim) -> Ending:
        """Again and again it was received and came no further. Sent again, it goes on from its checkpoint."""
        if not await persevere("claim", self._health, lambda: self._progress.release(claim)):
            return Ending.LEFT
        await self._dead_letters.broadcast(broadcast, "receives")
        log.error("broadcast.given_up", receives=claim.receives)
        return Ending.GIVEN_UP

    async def _split(self, broadcast: Broadcast, shards: int) -> Ending:
        """One part a shard, under fixed names: splitting twice does no harm."""
        for batch in batches([queue_message(part, fifo=self._fifo) for part in to_shards(broadcast, shards)]):
            await self._send(batch)
        return Ending.SPLIT

    @property
    def _fifo(self) -> bool:
        return is_fifo(self._queue.url)

    async def _send(self, messages: list[dict[str, Any]], *, delay_seconds: int = 0) -> None:
        """Put broadcasts on the queue; returns when all are there."""
        entries = [{**message, **({"DelaySeconds": delay_seconds} if delay_seconds else {})} for message in messages]

        async def send() -> None:
            nonlocal entries
            codes = await self._queue.send(entries)
            entries = [entry for entry, code in zip(entries, codes, strict=True) if code is not None]
            if entries:
                raise ServiceError(next(code for code in codes if code is not None))

        await persevere("send", self._health, send)

    # Fanning out

    async def _fan_out(self, broadcast: Broadcast, lease: Lease, claim: Claim) -> Ending:
        room, shard = broadcast.room or "", int(broadcast.shard or 0)
        found_in = (room, shard) if room else None
        fanout = Fanout(
            broadcast,
            claim.start,
            self._clock,
            totals=self._metrics.deliveries,
            gone=lambda connection_id: self._reaper.offer(connection_id, found_in),
        )
        lease.changed = fanout.stop
        if lease.state is not LeaseState.HELD:
            fanout.stop()
        self._running[fanout] = lease
        try:
            if fanout.available:
                self._engine.offer(fanout)
            # Members of an earlier receive are on their way already: there the first page must not hold up anything.
            if claim.start.nowhere and await self._add_page(fanout, fanout.cursor):
                await self._tend(fanout, lease, claim)
            else:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(self._read_on(fanout))
                    await self._tend(fanout, lease, claim)
                    reading.cancel()
        finally:
            fanout.stop()
            tracing.note(**{f"gatecast_{outcome}": count for outcome, count in fanout.counts.items() if count})
            lease.changed = None
            del self._running[fanout]
        if lease.state is LeaseState.LOST or not fanout.settled:
            return _unfinished(lease)
        self._completed(fanout)
        return Ending.COMPLETED

    async def _add_page(self, fanout: Fanout, after: str) -> bool:
        """Read the page behind `after` and add it; true if it was the last."""
        broadcast = fanout.broadcast
        if broadcast.connections:
            ids = list(dict.fromkeys(broadcast.connections))[int(after or "0") :]
            fanout.add_page([Member(connection_id, None) for connection_id in ids], last=True)
        else:
            room, shard = str(broadcast.room), int(broadcast.shard or 0)
            with tracing.span("page"):
                page = await persevere("table", self._health, lambda: self._table.page(room, shard, after))
                tracing.note(gatecast_members=len(page.members))
            fanout.add_page(page.members, last=page.after is None, read_to=page.after or "")
        if fanout.available:
            self._engine.offer(fanout)
        return fanout.exhausted

    async def _read_on(self, fanout: Fanout) -> None:
        """Read pages ahead, as far as deliveries drain."""
        while not fanout.exhausted:
            while fanout.wants_page:
                await self._add_page(fanout, fanout.read_to)
            await fanout.page_wanted.wait()
            fanout.page_wanted.clear()

    async def _tend(self, fanout: Fanout, lease: Lease, claim: Claim) -> None:
        """Everything that a fan-out needs while its deliveries run; returns when it is settled or has stopped."""
        chore: asyncio.Task[None] | None = None
        try:
            while not fanout.settled and lease.state is not LeaseState.LOST:
                fanout.changed.clear()
                if chore is not None and chore.done():
                    if chore.exception() is not None:  # it comes back: nobody who was reached is reached again
                        await self._write_checkpoint(fanout, lease, claim)
                    chore.result()
                    chore = None
                hurry = self._hurrying or self._clock() - fanout.stopped_at > _STOP_SECONDS
                if chore is None and not hurry and (call := self._chore(fanout)) is not None:
                    chore = asyncio.create_task(call)
                    chore.add_done_callback(lambda _: fanout.changed.set())
                if fanout.stopped and (hurry or not (fanout.in_flight or chore)):
                    if chore is not None:
                        chore.cancel()
                        await asyncio.wait({chore})
                    await self._write_checkpoint(fanout, lease, claim)
                    return
                await self._keep_going(fanout, lease, claim)
                await fanout.changed.wait()
        finally:
            if chore is not None:
                chore.cancel()

    async def _keep_going(self, fanout: Fanout, lease: Lease, claim: Claim) -> None:
        if self._expired(fanout.broadcast):
            fanout.expire()
        if fanout.pace.due(self._clock()) or (fanout.stopped and fanout.pace.since_snapshot):
            await self._write_checkpoint(fanout, lease, claim)
        if fanout.available:
            self._engine.offer(fanout)

    def _chore(self, fanout: Fanout) -> Coroutine[Any, Any, None] | None:
        """The next of what takes other calls than posts. Where it hangs, checkpoints do not wait, nor a stop for long.

        Cut off anywhere it forgets nobody, for those that it is about are unsettled, and in every checkpoint, until it
        is done. At a stop only misses are made safe, if there is time: otherwise they are tried again.
        """
        if fanout.unknown_age and not fanout.stopped:
            return self._learn_ages(fanout)
        if fanout.missed and (len(fanout.missed) >= MOST_MISSED or fanout.finished or fanout.stopped):
            return self._make_missed_safe(fanout)
        slow = self._slow(fanout)
        return self._leave_remainder(fanout, slow) if slow else None

    def _slow(self, fanout: Fanout) -> list[Delivery]:
        """Those that should go on as a broadcast of their own, so that they hold up nobody."""
        if fanout.stopped or self._fifo:  # a FIFO queue can neither delay one message nor let it overtake
            return []
        if fanout.waiting >= MOST_WAITING:
            return fanout.slow(MOST_WAITING)
        return fanout.all_waiting() if self._should_make_room(fanout) else []

    async def _write_checkpoint(self, fanout: Fanout, lease: Lease, claim: Claim) -> None:
        fanout.pace.snapshot(self._clock())
        checkpoint = fanout.checkpoint()
        progress = fanout.progress

        async def write() -> bool:
            return await self._progress.write_checkpoint(claim, checkpoint, progress=progress)

        if await persevere("checkpoint", self._health, write):
            fanout.pace.written()
            self._metrics.checkpoints += 1
        else:
            lease.become(LeaseState.LOST)

    async def _make_missed_safe(self, fanout: Fanout) -> None:
        missed = fanout.missed.copy()
        by_reason: dict[Outcome, list[str]] = {}
        for delivery, reason in missed:
            by_reason.setdefault(reason, []).append(delivery.connection_id)
        with tracing.span("settle", gatecast_missed=len(missed)):
            await self._dead_letters.missed(fanout.broadcast, by_reason)
        fanout.missed_are_safe(missed)

    def _should_make_room(self, fanout: Fanout) -> bool:
        """It only waits for a few to be tried again, and keeps others from being received."""
        return (
            fanout.only_waits
            and self._slots.full
            and not fanout.broadcast.part.startswith(REMAINDER_PREFIX)
            and self._engine.delivers
        )

    async def _leave_remainder(self, fanout: Fanout, slow: list[Delivery]) -> None:
        """Slow members hold up nobody: they go on as a broadcast of their own, a little later."""
        for delivery in slow:  # from here on the engine leaves them alone, but a checkpoint still has them
            fanout.waits_no_longer(delivery)
        remainder = to_connections(fanout.broadcast, [delivery.connection_id for delivery in slow], REMAINDER_PREFIX)
        await self._send([queue_message(remainder, fifo=False)], delay_seconds=_REMAINDER_DELAY_SECONDS)
        fanout.leave(slow)
        self._metrics.remainders += 1

    async def _learn_ages(self, fanout: Fanout) -> None:
        """410 for a connection that was named: it may be so young that its `$connect` is still running."""
        asked, fanout.unknown_age = fanout.unknown_age[:MAX_BATCH_GET], fanout.unknown_age[MAX_BATCH_GET:]
        ids = [delivery.connection_id for delivery in asked]
        connected = await persevere("ages", self._health, lambda: self._table.connected_at_ms(ids))
        for delivery in asked:
            delivery.joined_at_ms = connected.get(delivery.connection_id, 0)
            self._engine.judge_again(delivery)

    def _completed(self, fanout: Fanout) -> None:
        broadcast = fanout.broadcast
        seconds = self._age_seconds(broadcast)
        self._metrics.broadcast_duration.observe(seconds)
        log.info(
            "broadcast.completed",
            part=broadcast.part,
            seconds=round(seconds, 3),
            **{str(outcome): count for outcome, count in fanout.counts.items() if count},
        )


def _unfinished(lease: Lease) -> Ending:
    return Ending.LEFT if lease.state is LeaseState.LOST else Ending.RELEASED
