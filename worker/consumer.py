"""Receive, hand to the broadcaster, and see to the message afterwards: acknowledge, release or leave it.

Always:
- nothing is received that cannot be started at once: slots are taken before the long poll;
- nothing is released while a long poll of ours is open: SQS would hand it to that poll, whose reader is gone;
- a message is deleted only after its broadcast has ended in a way that leaves nothing to do;
- on a FIFO queue, messages of one group are worked on one after the other, in the order they came. When one of them is
  not finished here, those behind it are released, the last one first, so that none can overtake.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from gatecast import tracing
from gatecast.broadcast import InvalidBroadcast, decode
from gatecast.publisher import is_fifo
from worker.batching import Batcher
from worker.broadcaster import Broadcaster, Ending
from worker.dead_letters import DeadLetters, Refused
from worker.health import Health
from worker.lease import Lease, LeaseKeeper, LeaseState, is_too_late
from worker.log import broadcast_id
from worker.metrics import Metrics
from worker.parts import MAX_BATCH
from worker.perseverance import DEPENDENCY_ERRORS, describe, persevere
from worker.ports import MessageQueue, ServiceError
from worker.retry import backoff_seconds
from worker.slots import Slots

log = structlog.get_logger()

_MOST_RECEIVERS: Final = 4
_ACKNOWLEDGE_WITHIN_SECONDS: Final = 0.02
_LONGEST_BACKOFF_SECONDS: Final = 2.5
_PUT_BACK_SECONDS: Final = 900

_OUTCOMES: Final = {
    Ending.COMPLETED: "completed",
    Ending.SPLIT: "split",
    Ending.EXPIRED: "expired",
    Ending.DUPLICATE: "duplicate",
    Ending.GIVEN_UP: "poison",
    Ending.RELEASED: "released",
}


class Consumer:
    """Works through the queue while `run` runs; after `stop`, `run` returns when nothing is in hand any more."""

    def __init__(
        self,
        *,
        queue: MessageQueue,
        leases: LeaseKeeper,
        broadcaster: Broadcaster,
        dead_letters: DeadLetters,
        health: Health,
        metrics: Metrics,
        slots: Slots,
        visibility_seconds: int,
        poll_grace_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._leases = leases
        self._broadcaster = broadcaster
        self._dead_letters = dead_letters
        self._health = health
        self._metrics = metrics
        self._visibility_seconds = visibility_seconds
        self._wall_clock = wall_clock
        self._slots = slots
        self._receivers = max(1, min(_MOST_RECEIVERS, slots.free // MAX_BATCH))
        self._poll_grace_seconds = poll_grace_seconds
        self._backlog = asyncio.Event()
        """The last receive got all that it asked for: more than one receiver is worth while."""
        self._stopping = asyncio.Event()
        self._polls_ended = asyncio.Event()
        self._deletions: Batcher[str, str | None] = Batcher(
            self._queue.delete, most=MAX_BATCH, wait_seconds=_ACKNOWLEDGE_WITHIN_SECONDS
        )

    def stop(self) -> None:
        """Receive nothing more, and ask every broadcast in hand to stop where it is."""
        self._stopping.set()
        self._slots.freed.set()
        self._backlog.set()
        self._leases.end_all()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as work:
            receivers = [
                work.create_task(self._keep_receiving(work, always=number == 0)) for number in range(self._receivers)
            ]
            await self._stopping.wait()
            _, polling = await asyncio.wait(receivers, timeout=self._poll_grace_seconds)
            for receiver in polling:
                receiver.cancel()
            self._polls_ended.set()

    async def _keep_receiving(self, work: asyncio.TaskGroup, *, always: bool) -> None:
        """Receive while there are slots; but for one receiver, only while there is a backlog."""
        failures = 0
        wait = False  # the first answer should not take a whole long poll: readiness waits for it
        while not self._stopping.is_set():
            if not always:
                await self._backlog.wait()
            if self._stopping.is_set():
                return
            if not self._slots.free:
                self._slots.freed.clear()
                await self._slots.freed.wait()
                continue
            try:
                for group in self._in_order(await self._receive(wait=wait)):
                    work.create_task(self._work(group))
            except DEPENDENCY_ERRORS as error:
                failures += 1
                wait = False  # nor should recovery wait for one
                self._health.failed("queue", describe(error))
                await asyncio.sleep(
                    backoff_seconds(failures, 0.5 + random.random() / 2, longest=_LONGEST_BACKOFF_SECONDS)
                )
            else:
                failures = 0
                wait = True
                self._health.ok("queue")

    async def _receive(self, *, wait: bool) -> list[Lease]:
        """One receive. Slots are taken before it, and those that stay empty given back."""
        asked = self._slots.ask(MAX_BATCH)
        leases: list[Lease] = []
        try:
            messages = await self._queue.receive(asked, visibility_seconds=self._visibility_seconds, wait=wait)
            leases = self._leases.take(messages)
        finally:
            self._slots.received(asked, len(leases))
        if len(leases) == asked:
            self._backlog.set()
        elif not self._stopping.is_set():
            self._backlog.clear()
        if self._stopping.is_set():
            self._leases.end_all()
        return leases

    def _in_order(self, leases: Sequence[Lease]) -> list[list[Lease]]:
        """What may run side by side, each list one after the other."""
        if not is_fifo(self._queue.url):
            return [[lease] for lease in leases]
        groups: dict[str, list[Lease]] = {}
        for lease in leases:
            groups.setdefault(lease.message.group, []).append(lease)
        return list(groups.values())

    async def _work(self, leases: list[Lease]) -> None:
        waiting = list(leases)
        try:
            while waiting:
                with tracing.consuming(waiting[0].message.trace, waiting[0].message.sent_at_ms):
                    done = await self._handle(waiting[0])
                if not done:
                    break
                self._let_go(waiting.pop(0))
            while len(waiting) > 1:
                await self._release(waiting[-1])
                self._let_go(waiting.pop())
            if waiting and waiting[0].state is not LeaseState.LOST:
                await self._release(waiting[0])
        finally:
            for lease in waiting:
                self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        self._leases.forget(lease)
        self._slots.give_back(1)

    async def _handle(self, lease: Lease) -> bool:
        """Work on one message; true if it is done with, false if it must stay on the queue."""
        message = lease.message
        broadcast_id.set("")  # of the one before, on a FIFO queue
        try:
            self._metrics.queue_lag.observe(max(0.0, self._wall_clock() - message.sent_at_ms / 1000))
            try:
                broadcast = decode(message.body)
            except InvalidBroadcast as error:
                return await self._handle_poison(lease, str(error))
            lease.broadcast_id = broadcast.id
            lease.published_at_ms = int(broadcast.published_at_ms or lease.published_at_ms)
            tracing.note(gatecast_id=broadcast.id, gatecast_part=broadcast.part)
            broadcast_id.set(broadcast.id)
            ending = await self._broadcaster.run(broadcast, lease)
        except Exception:
            # A mistake of ours: the message comes back after its visibility, and is dead-lettered if it always fails.
            log.exception("broadcast.failed", message_id=message.id)
            lease.become(LeaseState.LOST)
            return False
        if ending is Ending.LEFT:
            lease.become(LeaseState.LOST)
            return False
        self._metrics.broadcasts[_OUTCOMES[ending]] += 1
        tracing.note(gatecast_outcome=_OUTCOMES[ending])
        if ending is Ending.RELEASED:
            return False
        if ending is not Ending.COMPLETED:
            log.info("broadcast.ended", outcome=_OUTCOMES[ending])
        with tracing.span("settle"):
            return await self._acknowledge(lease)

    async def _handle_poison(self, lease: Lease, reason: str) -> bool:
        self._metrics.broadcasts["poison"] += 1
        log.error("broadcast.poison", message_id=lease.message.id, reason=reason, receives=lease.message.receives)
        if self._dead_letters.exist:
            try:
                await self._dead_letters.poison(lease.message, f"poison: {reason}")
            except Refused as refused:
                log.error("broadcast.poison_refused", message_id=lease.message.id, code=str(refused))  # noqa: TRY400
            else:
                return await self._acknowledge(lease)
        await self._change_visibility(lease, _PUT_BACK_SECONDS)
        lease.become(LeaseState.LOST)
        return False

    async def _acknowledge(self, lease: Lease) -> bool:
        """Delete the message; false if it was too late for that, and it may be visible again already."""

        async def delete() -> bool:
            code = await self._deletions.ask(lease.message.receipt)
            if code is None:
                return True
            if is_too_late(code):
                log.warning("acknowledge.too_late", message_id=lease.message.id, code=code)
                lease.become(LeaseState.LOST)
                return False
            raise ServiceError(code)

        return await persevere("acknowledge", self._health, delete)

    async def _release(self, lease: Lease) -> None:
        if self._stopping.is_set():
            await self._polls_ended.wait()
        await self._change_visibility(lease, lease.release_seconds)

    async def _change_visibility(self, lease: Lease, seconds: int) -> None:
        """Best effort: otherwise the message comes back when its visibility ends."""
        try:
            await self._queue.change_visibility([lease.message.receipt], seconds)
        except DEPENDENCY_ERRORS as error:
            log.warning("release.failed", id=lease.broadcast_id, message_id=lease.message.id, reason=describe(error))
