"""Leases: while a broadcast is in hand, its queue message stays invisible to all other workers.

A heartbeat extends every lease well before its end, ten in a call. A lease that could not be extended in time, or that
SQS says is no longer ours, is lost: its broadcast stops at once and the message is left alone; whoever gets it next
goes on from the checkpoint. SQS allows twelve hours in all; before that a lease is asked to end, and redelivery
resumes.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from itertools import islice
from typing import Final

import structlog

from worker.decisions.parts import MAX_BATCH
from worker.observe.health import Health
from worker.ports import DependencyError, Message, MessageQueue, StaleReceipt

log = structlog.get_logger()

LONGEST_SECONDS: Final = 11.5 * 3600
"""From then on a broadcast is asked to stop; SQS takes no extension beyond twelve hours in all."""
_SQS_LONGEST_SECONDS: Final = 12 * 3600 - 60
_EXTEND_AT_SHARE: Final = 1 / 3
"""Of the visibility, passed since the last extension: two more tries fit in before the end."""
_SAFETY_SHARE: Final = 0.1
"""Of the visibility, before its end, from which on a lease counts as lost: clocks and answers need some time."""


class LeaseState(Enum):
    HELD = auto()
    ENDING = auto()
    """Held, but the broadcast should stop where it is and be released."""
    LOST = auto()


class Lease:
    """The right to work on one message. `changed` is called, without arguments, when the state changes."""

    __slots__ = (
        "broadcast_id", "changed", "ends_at", "extended_at", "extending", "message", "published_at_ms",
        "state", "taken_at"
    )  # fmt: skip

    def __init__(self, message: Message, taken_at: float, visibility_seconds: float) -> None:
        self.message = message
        self.broadcast_id = ""
        """For the log, once the message has been read."""
        self.published_at_ms = message.sent_at_ms
        """The broadcast's own, once it has been read: a part may be older than its message."""
        self.taken_at = taken_at
        self.extending = False
        self.extended(taken_at, visibility_seconds)
        self.state = LeaseState.HELD
        self.changed: Callable[[], None] | None = None

    def extended(self, at: float, seconds: float) -> None:
        """It is invisible for so long from then on."""
        self.extended_at = at
        self.ends_at = at + seconds * (1 - _SAFETY_SHARE)

    def become(self, state: LeaseState) -> None:
        """A lost lease stays lost."""
        if self.state is not LeaseState.LOST and self.state is not state:
            self.state = state
            if self.changed is not None:
                self.changed()


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
        """How many messages are in hand."""
        return len(self._leases)

    def oldest_age_seconds(self, now_ms: float) -> float:
        """Since the oldest in hand was published; 0 without any. `now_ms` is milliseconds since the epoch."""
        published_at_ms = min((lease.published_at_ms for lease in self._leases), default=now_ms)
        return max(0.0, (now_ms - published_at_ms) / 1000)

    def take(self, messages: Sequence[Message]) -> list[Lease]:
        """Leases on messages that have arrived just now."""
        now = self._clock()
        leases = [Lease(message, now, self._visibility_seconds) for message in messages]
        self._leases.update(leases)
        return leases

    def forget(self, lease: Lease) -> None:
        """It ends: acknowledged, released or left."""
        self._leases.discard(lease)

    def request_stop_all(self) -> None:
        """Ask every broadcast in hand to stop where it is."""
        for lease in list(self._leases):
            lease.become(LeaseState.ENDING)

    async def run(self) -> None:
        """Until cancelled. Noticing that a lease is lost waits for nothing, least of all for a queue that hangs."""
        async with asyncio.TaskGroup() as extensions:
            while True:
                await asyncio.sleep(min(1.0, self._visibility_seconds / 10))
                for batch in _batches(self._due(self._clock())):
                    extensions.create_task(self._extend(batch))

    def _due(self, now: float) -> list[Lease]:
        """Those that are due for an extension; what was not extended in time is lost."""
        due = []
        for lease in list(self._leases):
            if lease.state is LeaseState.LOST:
                continue
            if now >= lease.ends_at:
                self._mark_lost(lease, "not extended in time")
                continue
            if now - lease.taken_at >= LONGEST_SECONDS:
                lease.become(LeaseState.ENDING)
            if not lease.extending and now - lease.extended_at >= self._visibility_seconds * _EXTEND_AT_SHARE:
                lease.extending = True
                due.append(lease)
        return due

    async def _extend(self, leases: list[Lease]) -> None:
        asked_at = self._clock()
        oldest = max(asked_at - lease.taken_at for lease in leases)
        seconds = max(1, min(self._visibility_seconds, int(_SQS_LONGEST_SECONDS - oldest)))
        try:
            async with asyncio.timeout(self._visibility_seconds * _EXTEND_AT_SHARE):
                errors = await self._queue.change_visibility(
                    [lease.message.receipt_handle for lease in leases], seconds
                )
        except (DependencyError, TimeoutError) as failure:
            self._outcomes["failed"] += len(leases)
            self._health.failed("lease", failure.code if isinstance(failure, DependencyError) else "timeout")
            return
        finally:
            for lease in leases:
                lease.extending = False
        self._health.recovered("lease")
        for lease, error in zip(leases, errors, strict=True):
            if error is None:
                lease.extended(asked_at, seconds)
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
        lease.become(LeaseState.LOST)


def _batches(leases: Sequence[Lease]) -> Iterator[list[Lease]]:
    remaining = iter(leases)
    while batch := list(islice(remaining, MAX_BATCH)):
        yield batch
