"""Receive messages, wait for a place, run the broadcast, and then delete, release, defer or abandon the message.

Always:
- messages are received only while a place is free, so that a broadcast of another kind could start at once;
- a message whose kind has no free place waits in memory (`admission`); if too many wait there, it is deferred: it goes
  back to the queue with a delay that grows with its receive count;
- during a drain no message is released while a long poll of this worker is open: SQS would return it to that poll;
- a message is deleted only after its broadcast has ended in a way that leaves nothing to do;
- on a FIFO queue, messages of one group are processed in order, one at a time, and together hold one place. If one of
  them does not finish here, those behind it are released, the last one first, so that none can overtake.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final, assert_never

import structlog

from gatecast import tracing
from gatecast.broadcast import Broadcast, InvalidBroadcast, decode
from gatecast.publisher import is_fifo
from worker.batcher import Batcher
from worker.decisions.backoff import backoff_seconds
from worker.decisions.parts import MAX_BATCH
from worker.observe.health import Health
from worker.observe.log import broadcast_id
from worker.observe.metrics import Metrics
from worker.pipeline.admission import Admission, Work
from worker.pipeline.broadcaster import Broadcaster, Ending
from worker.pipeline.capacity import Capacity, Place, kind_of
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.lease import Lease, LeaseKeeper, LeaseState
from worker.pipeline.presence import delay_seconds
from worker.ports import DependencyError, Message, MessageQueue, MessageRejected, PortError, StaleReceipt
from worker.resilience import retry_forever

log = structlog.get_logger()

_MAX_RECEIVERS: Final = 4
_ACKNOWLEDGE_WAIT_SECONDS: Final = 0.02
_MAX_BACKOFF_SECONDS: Final = 2.5
_MAX_VISIBILITY_SECONDS: Final = 900
_DEFER_SECONDS: Final = 5
_MAX_DOUBLINGS: Final = 10
_FREED_WAIT_SECONDS: Final = 0.003
_START_WAIT_SECONDS: Final = 0.002

_OUTCOMES: Final = {
    Ending.COMPLETED: "completed",
    Ending.SPLIT: "split",
    Ending.EXPIRED: "expired",
    Ending.DUPLICATE: "duplicate",
    Ending.GIVEN_UP: "given_up",
    Ending.RELEASED: "released",
}


class Disposition(Enum):
    """What to do with a message after processing it."""

    DELETE = auto()
    RELEASE = auto()
    """Make it visible at once."""
    DEFER = auto()
    """Make it visible after a delay."""
    ABANDON = auto()
    """Do nothing: it becomes visible when its visibility timeout ends, or belongs to another worker."""


class Received:
    """A leased message, decoded."""

    __slots__ = ("broadcast", "lease")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.broadcast: Broadcast | InvalidBroadcast
        try:
            self.broadcast = decode(lease.message.body)
        except InvalidBroadcast as error:
            self.broadcast = error
            return
        lease.broadcast_id = self.broadcast.id
        lease.published_at_ms = int(self.broadcast.published_at_ms or lease.published_at_ms)


class Consumer:
    """Consumes the queue while `run` runs. After `stop`, `run` returns once nothing is in progress."""

    def __init__(
        self,
        *,
        queue: MessageQueue,
        leases: LeaseKeeper,
        broadcaster: Broadcaster,
        dead_letters: DeadLetters,
        health: Health,
        metrics: Metrics,
        capacity: Capacity,
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
        self._capacity = capacity
        self._admission: Admission[list[Received]] = Admission(capacity, self._start)
        self._expected = 0
        """The number of messages that open receives may return."""
        self._receivers = max(1, min(_MAX_RECEIVERS, capacity.places // MAX_BATCH))
        self._poll_grace_seconds = poll_grace_seconds
        self._backlog = asyncio.Event()
        """Set if the last receive returned as many messages as it requested: a second receiver is worthwhile."""
        self._place_freed = asyncio.Event()
        capacity.on_free.append(self._place_freed.set)
        self._stopping = asyncio.Event()
        self._polls_ended = asyncio.Event()
        self._work = asyncio.TaskGroup()
        self._deletions: Batcher[str, PortError | None] = Batcher(
            self._queue.delete, max_items=MAX_BATCH, wait_seconds=_ACKNOWLEDGE_WAIT_SECONDS, urgent=False
        )

    @property
    def waiting(self) -> int:
        """The number of received broadcasts that wait for a place."""
        return len(self._admission)

    def stop(self) -> None:
        """Receive no more messages, and ask every active broadcast to stop where it is."""
        self._stopping.set()
        self._place_freed.set()
        self._backlog.set()
        self._leases.request_stop_all()

    async def run(self) -> None:
        async with self._work:
            receivers = [
                self._work.create_task(self._keep_receiving(always=number == 0), name=f"receiver {number}")
                for number in range(self._receivers)
            ]
            try:
                await self._stopping.wait()
                _, polling = await asyncio.wait(receivers, timeout=self._poll_grace_seconds)
            finally:
                waiting = list(self._admission.close())
            for receiver in polling:
                receiver.cancel()
            self._polls_ended.set()
            for messages in waiting:
                self._work.create_task(self._release(messages), name="release")

    # Receiving

    async def _keep_receiving(self, *, always: bool) -> None:
        """Receive while places are free. Unless `always`, receive only while there is a backlog."""
        failures = 0
        wait = False  # readiness waits for the first response, so it must not take a whole long poll
        while not self._stopping.is_set():
            if not always:
                await self._backlog.wait()
            limit = min(MAX_BATCH, self._capacity.free - self._expected)
            if self._stopping.is_set():
                return
            if limit <= 0:
                self._place_freed.clear()
                await self._place_freed.wait()
                await asyncio.sleep(_FREED_WAIT_SECONDS)  # more places may be freed; one receive can fill them all
                continue
            try:
                leases = await self._receive(limit, wait=wait)
            except DependencyError as error:
                failures += 1
                wait = False  # so that recovery is noticed without a long poll
                self._health.failed("queue", error.reason)
                await asyncio.sleep(
                    backoff_seconds(failures, 0.5 + random.random() / 2, max_seconds=_MAX_BACKOFF_SECONDS)
                )
            else:
                failures = 0
                wait = True
                self._health.recovered("queue")
                await self._admit(leases)
                await asyncio.sleep(_START_WAIT_SECONDS)  # their claims and page reads go out before the next receive

    async def _receive(self, limit: int, *, wait: bool) -> list[Lease]:
        self._expected += limit
        try:
            messages = await self._queue.receive(limit, visibility_seconds=self._visibility_seconds, wait=wait)
            leases = self._leases.acquire(messages)
        finally:
            self._expected -= limit
            self._place_freed.set()
        if len(leases) == limit:
            self._backlog.set()
        elif not self._stopping.is_set():
            self._backlog.clear()
        if self._stopping.is_set():
            self._leases.request_stop_all()
        return leases

    async def _admit(self, leases: Sequence[Lease]) -> None:
        """Start these messages, let them wait for a place, or defer them."""
        too_many: list[Received] = []
        for group in self._by_group([Received(lease) for lease in leases]):
            if not self._offer(group):
                too_many += group
        if too_many and self._stopping.is_set():  # a release waits for all polls to end, and this is one of them
            self._work.create_task(self._release(too_many), name="release")
        elif too_many:
            await self._defer(too_many)

    def _offer(self, messages: list[Received]) -> bool:
        first = messages[0].broadcast
        kind = "poison" if isinstance(first, InvalidBroadcast) else kind_of(first)
        size = sum(len(received.lease.message.body) for received in messages)
        return self._admission.offer(Work(messages, kind, size))

    def _by_group(self, messages: Sequence[Received]) -> list[list[Received]]:
        """Lists of messages: the lists may run concurrently, the messages of one list must run in order."""
        if not is_fifo(self._queue.url):
            return [[message] for message in messages]
        groups: dict[str, list[Received]] = {}
        for message in messages:
            groups.setdefault(message.lease.message.group, []).append(message)
        return list(groups.values())

    async def _defer(self, messages: Sequence[Received]) -> None:
        """Make them visible again after a delay that doubles with each receive; the last of a group goes first."""
        receive_count = min(received.lease.message.receive_count for received in messages)
        # The delay grows fast, so that waiting for a place uses up few of a message's receives (broadcaster: 100).
        seconds = min(_MAX_VISIBILITY_SECONDS, _DEFER_SECONDS << min(receive_count - 1, _MAX_DOUBLINGS))
        leases = [received.lease for received in reversed(messages)]
        self._metrics.deferred += len(leases)
        await self._change_visibility(leases, round(seconds * (0.75 + random.random() / 2)))
        for lease in leases:
            self._leases.drop(lease)

    # Working

    def _start(self, messages: list[Received], place: Place) -> None:
        self._work.create_task(self._process(messages, place), name=messages[0].lease.message.id)

    async def _process(self, messages: list[Received], place: Place) -> None:
        """Process the first message; when it is done, those behind it continue with a place of their own."""
        first, behind = messages[0], messages[1:]
        try:
            with tracing.consuming(first.lease.message.trace, first.lease.message.sent_at_ms):
                disposition = await self._handle(first, place)
            if disposition is Disposition.DEFER and not self._stopping.is_set():
                await self._defer(messages)
            elif disposition is not Disposition.DELETE:
                await self._release(messages, first=disposition)
            elif behind and not self._offer(behind):
                await (self._release(behind) if self._stopping.is_set() else self._defer(behind))
        finally:
            place.release()
            self._leases.drop(first.lease)

    async def _release(self, messages: list[Received], *, first: Disposition = Disposition.RELEASE) -> None:
        """Make them visible to all workers, the last one first. `first` says what to do with the first one."""
        if self._stopping.is_set():
            await self._polls_ended.wait()
        behind = [received.lease for received in reversed(messages[1:])]
        for lease in behind:
            await self._change_visibility([lease], 0)
        match first:
            case Disposition.RELEASE | Disposition.DEFER:
                await self._change_visibility([messages[0].lease], 0)
            case Disposition.ABANDON | Disposition.DELETE:
                pass
            case _:
                assert_never(first)
        for received in messages:
            self._leases.drop(received.lease)

    def _lag_seconds(self, message: Message, broadcast: Broadcast | InvalidBroadcast) -> float:
        """For how long the message could have been received before, and its broadcast started."""
        due_at = message.sent_at_ms / 1000
        if isinstance(broadcast, Broadcast) and not broadcast.part:
            due_at += delay_seconds(broadcast, fifo=is_fifo(self._queue.url))
        return max(0.0, self._wall_clock() - due_at)

    async def _handle(self, received: Received, place: Place) -> Disposition:
        """Run one message's broadcast."""
        lease, broadcast = received.lease, received.broadcast
        message = lease.message
        broadcast_id.set("")  # clear the previous message's, on a FIFO queue
        try:
            self._metrics.queue_lag.observe(self._lag_seconds(message, broadcast))
            if isinstance(broadcast, InvalidBroadcast):
                return await self._handle_poison(lease, str(broadcast))
            tracing.set_attributes(gatecast_id=broadcast.id, gatecast_part=broadcast.part)
            broadcast_id.set(broadcast.id)
            ending = await self._broadcaster.run(broadcast, lease, place)
        except Exception:
            # A bug: the message is received again after its visibility timeout, and dead-lettered if it always fails.
            log.exception("broadcast.failed", message_id=message.id)
            return Disposition.ABANDON
        if ending is Ending.ABANDONED:
            return Disposition.ABANDON
        if ending is Ending.HELD or ending is Ending.DEFERRED:
            return Disposition.DEFER
        self._metrics.broadcasts[_OUTCOMES[ending]] += 1
        tracing.set_attributes(gatecast_outcome=_OUTCOMES[ending])
        match ending:
            case Ending.RELEASED:
                return Disposition.RELEASE
            case Ending.COMPLETED:
                pass
            case Ending.SPLIT | Ending.EXPIRED | Ending.DUPLICATE | Ending.GIVEN_UP:
                log.info("broadcast.ended", outcome=_OUTCOMES[ending])
            case _:
                assert_never(ending)
        place.release()
        with tracing.span("settle"):
            return await self._acknowledge(lease)

    async def _handle_poison(self, lease: Lease, reason: str) -> Disposition:
        self._metrics.broadcasts["poison"] += 1
        log.error("broadcast.poison", message_id=lease.message.id, reason=reason, receives=lease.message.receive_count)
        if self._dead_letters.configured:
            try:
                await self._dead_letters.store_poison(lease.message, f"poison: {reason}")
            except MessageRejected as rejected:
                log.error("broadcast.poison_rejected", message_id=lease.message.id, code=rejected.code)  # noqa: TRY400
            else:
                return await self._acknowledge(lease)
        await self._change_visibility([lease], _MAX_VISIBILITY_SECONDS)
        return Disposition.ABANDON

    async def _acknowledge(self, lease: Lease) -> Disposition:
        """Delete the message. If its receipt handle is stale it may be visible again already, and is abandoned."""

        async def delete() -> Disposition:
            error = await self._deletions.submit(lease.message.receipt_handle)
            if error is None:
                return Disposition.DELETE
            if isinstance(error, StaleReceipt):
                log.warning("acknowledge.too_late", message_id=lease.message.id, code=error.code)
                return Disposition.ABANDON
            raise error

        return await retry_forever("acknowledge", self._health, delete)

    async def _change_visibility(self, leases: Sequence[Lease], seconds: int) -> None:
        """Best effort: if it fails, messages become visible when their visibility timeout ends. Skips lost leases."""
        receipt_handles = [lease.message.receipt_handle for lease in leases if lease.state is not LeaseState.LOST]
        if not receipt_handles:
            return
        try:
            await self._queue.change_visibility(receipt_handles, seconds)
        except DependencyError as error:
            log.warning("release.failed", messages=len(receipt_handles), reason=error.code)
