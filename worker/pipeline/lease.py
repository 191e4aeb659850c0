"""Leases: while this worker holds a message, the message stays invisible to all other workers.

    acquire ──▶ HELD ── drain, or 11.5 hours held ──▶ ENDING ──▶ drop: the message is deleted, released or abandoned
                  │                                      │
                  └─ not extended in time, or taken over ┴─▶ LOST ──▶ drop: the message is abandoned

A heartbeat extends every lease well before it expires, ten per call. A lease is lost if it could not be extended in
time, or if SQS reports that its receipt handle is no longer valid: its broadcast stops at once, and the message is
abandoned. The worker that receives it next resumes from the checkpoint. SQS allows a message to be invisible for twelve
hours in total; before that the broadcast is asked to stop and is released, and another worker resumes it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import Enum, auto
from itertools import islice
from typing import Final, TypeVar

import structlog

from worker.decisions.parts import MAX_BATCH
from worker.observe.health import Health
from worker.ports import DependencyError, Message, MessageQueue, StaleReceipt

log = structlog.get_logger()

R = TypeVar("R")

MAX_LEASE_SECONDS: Final = 11.5 * 3600
"""After this time a broadcast is asked to stop: SQS accepts no extension beyond twelve hours in total."""
_SQS_MAX_SECONDS: Final = 12 * 3600 - 60
_EXTEND_AT_SHARE: Final = 1 / 3
"""Share of the visibility timeout after which a lease is extended. Two more attempts fit in before it expires."""
_SAFETY_SHARE: Final = 0.1
"""A lease counts as lost this share of the visibility timeout early, to allow for clocks and response times."""


class LeaseState(Enum):
    HELD = auto()
    ENDING = auto()
    """Held, but the broadcast should stop and be released."""
    LOST = auto()


class LeaseEnded(Exception):
    """The lease is ending or lost, so what was waited for has been cancelled."""


class Lease:
    """The exclusive right to work on one message. `on_change` is called, without arguments, when `state` changes."""

    __slots__ = (
        "acquired_at",
        "broadcast_id",
        "ends_at",
        "extended_at",
        "extending",
        "message",
        "on_change",
        "published_at_ms",
        "state"
    )  # fmt: skip

    def __init__(self, message: Message, acquired_at: float, visibility_seconds: float) -> None:
        self.message = message
        self.broadcast_id = ""
        """For the log, once the message has been decoded."""
        self.published_at_ms = message.sent_at_ms
        """The broadcast's own time of publication once it has been decoded: a part may be older than its message."""
        self.acquired_at = acquired_at
        self.extending = False
        self.record_extension(acquired_at, visibility_seconds)
        self.state = LeaseState.HELD
        self.on_change: Callable[[], object] | None = None

    def record_extension(self, at: float, seconds: float) -> None:
        """Record that the lease was extended by `seconds` at time `at`."""
        self.extended_at = at
        self.ends_at = at + seconds * (1 - _SAFETY_SHARE)

    def transition(self, state: LeaseState) -> None:
        """Change the state. A lost lease stays lost."""
        if self.state is not LeaseState.LOST and self.state is not state:
            self.state = state
            if self.on_change is not None:
                self.on_change()

    async def while_held(self, call: Callable[[], Awaitable[R]]) -> R:
        """Returns what `call` returns. Once the lease is not HELD it is cancelled, or not called. Raises LeaseEnded.

        Nothing else may use `on_change` meanwhile.
        """
        if self.state is LeaseState.HELD:
            task = asyncio.ensure_future(call())
            self.on_change = task.cancel
            try:
                await asyncio.wait({task})
            finally:
                self.on_change = None
                task.cancel()
            if not task.cancelled():
                return task.result()
        raise LeaseEnded


class LeaseKeeper:
    """Holds the leases of this worker and extends them while `run` runs."""

    def __init__(
        self,
        queue: MessageQueue,
        *,
        visibility_seconds: int,
        health: Health,
        outcomes: dict[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._visibility_seconds = visibility_seconds
        self._health = health
        self._outcomes = outcomes
        self._clock = clock
        self._leases: set[Lease] = set()

    def __len__(self) -> int:
        """The number of leased messages."""
        return len(self._leases)

    def oldest_age_seconds(self, now_ms: float) -> float:
        """Age in seconds of the oldest leased broadcast, measured from publication; 0 if there are none.

        `now_ms` is milliseconds since the epoch.
        """
        published_at_ms = min((lease.published_at_ms for lease in self._leases), default=now_ms)
        return max(0.0, (now_ms - published_at_ms) / 1000)

    def acquire(self, messages: Sequence[Message]) -> list[Lease]:
        """Create leases on messages that have just been received."""
        now = self._clock()
        leases = [Lease(message, now, self._visibility_seconds) for message in messages]
        self._leases.update(leases)
        return leases

    def drop(self, lease: Lease) -> None:
        """End a lease: its message has been acknowledged, released or abandoned."""
        self._leases.discard(lease)

    def request_stop_all(self) -> None:
        """Ask every active broadcast to stop where it is."""
        for lease in list(self._leases):
            lease.transition(LeaseState.ENDING)

    async def run(self) -> None:
        """Run until cancelled. Lost leases are detected without waiting for any call, even if the queue hangs."""
        async with asyncio.TaskGroup() as extensions:
            while True:
                await asyncio.sleep(min(1.0, self._visibility_seconds / 10))
                for batch in _batches(self._due(self._clock())):
                    extensions.create_task(self._extend(batch), name="extend leases")

    def _due(self, now: float) -> list[Lease]:
        """The leases that are due for an extension. Leases that were not extended in time are marked as lost."""
        due = []
        for lease in list(self._leases):
            if lease.state is LeaseState.LOST:
                continue
            if now >= lease.ends_at:
                self._mark_lost(lease, "not extended in time")
                continue
            if now - lease.acquired_at >= MAX_LEASE_SECONDS:
                lease.transition(LeaseState.ENDING)
            if not lease.extending and now - lease.extended_at >= self._visibility_seconds * _EXTEND_AT_SHARE:
                lease.extending = True
                due.append(lease)
        return due

    async def _extend(self, leases: list[Lease]) -> None:
        started_at = self._clock()
        oldest = max(started_at - lease.acquired_at for lease in leases)
        seconds = max(1, min(self._visibility_seconds, int(_SQS_MAX_SECONDS - oldest)))
        try:
            async with asyncio.timeout(self._visibility_seconds * _EXTEND_AT_SHARE):
                errors = await self._queue.change_visibility(
                    [lease.message.receipt_handle for lease in leases], seconds
                )
        except (DependencyError, TimeoutError) as failure:
            self._outcomes["failed"] += len(leases)
            self._health.failed("lease", failure.reason if isinstance(failure, DependencyError) else "timeout")
            return
        finally:
            for lease in leases:
                lease.extending = False
        self._health.recovered("lease")
        for lease, error in zip(leases, errors, strict=True):
            if error is None:
                lease.record_extension(started_at, seconds)
                self._outcomes["extended"] += 1
            elif lease not in self._leases:
                continue  # acknowledged meanwhile
            elif isinstance(error, StaleReceipt):
                self._mark_lost(lease, error.code)
            else:
                self._outcomes["failed"] += 1

    def _mark_lost(self, lease: Lease, reason: str) -> None:
        self._outcomes["lost"] += 1
        log.warning("lease.lost", id=lease.broadcast_id, message_id=lease.message.id, reason=reason)
        lease.transition(LeaseState.LOST)


def _batches(leases: Sequence[Lease]) -> Iterator[list[Lease]]:
    remaining = iter(leases)
    while batch := list(islice(remaining, MAX_BATCH)):
        yield batch
