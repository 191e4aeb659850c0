"""The deliveries of one broadcast, from page to outcome: the state that the engine and the broadcast's run share.

The engine takes deliveries and settles them, in plain calls. The run's coroutine adds pages and, whenever `changed` is
set, writes checkpoints and dead-letters missed deliveries. Nothing in this module blocks or awaits.

Always:
- every member that was taken is in `unsettled` until its outcome is final, and a missed one until it is safe on the
  dead-letter queue, so that a checkpoint taken at any moment omits no member. Members to whom nothing is posted
  (`bodies`) are passed over: they have no delivery and no outcome;
- `unsettled` holds at most `WINDOW` members.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.broadcast import Broadcast
from gatecast.frames import V1, V2, Link
from worker.decisions.checkpoint import SNAPSHOT_AFTER, WINDOW, Checkpoint, CheckpointSchedule
from worker.decisions.outcome import Outcome
from worker.decisions.parts import REMAINDER_PREFIX
from worker.decisions.receipts import Sums
from worker.decisions.stall import PriorRejections, StalledConnection
from worker.delivery.bodies import EXCLUDED, TOO_LARGE, Bodies, Body
from worker.delivery.outcome_counts import OutcomeCounts
from worker.ports import Member

REMAINDERS: Final = ""
"""The group of all remainders. No room or broadcast has this name."""
PAGES_LOW: Final = 1_000
"""The next page is needed when fewer members than this are read ahead."""
_PAGE_NEEDED: Final = PAGES_LOW - 1
_DELIVERY_BYTES: Final = 300
_CONNECTION_ID: Final = itemgetter(0)
MAX_WAITING: Final = 500
"""Deliveries of the window that may wait: from this number on, the oldest slow ones leave as a remainder."""
MAX_HELD_UP: Final = 700
"""Deliveries of the window that are missed or wait: from this number on, missed ones are dead-lettered at once."""


class Delivery(msgspec.Struct, eq=False):
    """The delivery of one broadcast to one connection. Times are monotonic seconds."""

    fanout: "Fanout"
    connection_id: str
    joined_at_ms: int | None
    body: Body
    locator: str = ""
    """The member's, in a table that is not Gatecast's (`worker.decisions.locator`)."""
    attempts: int = 0
    """All posts for it."""
    counted_attempts: int = 0
    """Failed posts that count towards giving up."""
    rejections: int = 0
    """Rejections such as 403 that it received while other deliveries were not rejected."""
    first_attempt_at: float = 0.0
    waiting: bool = False
    """Whether it waits for a retry or in a line; no post for it is in flight."""
    stalled: "StalledConnection[Delivery] | None" = None
    """The connection in whose line it waits, or whose probe it is."""

    @property
    def order(self) -> tuple[int, int]:
        return self.fanout.order


class Fanout:
    """The fan-out of `broadcast`, resumed from `start`. `clock` gives monotonic seconds.

    `order` is its place among the broadcasts of its group: when it was published, then when it began here.
    `prior_rejections`, of a remainder, is a lower bound of what each of its connections has rejected so far.
    `presence_frame` is the frame of a change of presence, if it is not the broadcast as it is. `gone` is called with
    each delivery whose connection had ended, `closed` with each whose connection was closed (`kicks`). `link` leads to
    a payload that is an object in S3.
    """

    is_kick = False
    """Whether the broadcast closes its members' connections."""

    def __init__(
        self,
        broadcast: Broadcast,
        start: Checkpoint,
        clock: Callable[[], float],
        *,
        order: tuple[int, int],
        prior_rejections: PriorRejections | None,
        totals: dict[Outcome, int],
        gone: Callable[[Delivery], None],
        closed: Callable[[Delivery], None] = lambda _: None,
        presence_frame: bytes | None = None,
        link: Link | UnsetType = UNSET,
    ) -> None:
        self.broadcast = broadcast
        self.order = order
        self.prior_rejections = prior_rejections
        self.group = broadcast.room or (REMAINDERS if broadcast.part.startswith(REMAINDER_PREFIX) else broadcast.id)
        self.expires_at_ms = broadcast.expires_at_ms if isinstance(broadcast.expires_at_ms, int) else float("inf")
        self.changed = asyncio.Event()
        self.exhausted = False
        self.in_flight = 0
        self.in_round_robin = False
        self.expired = False
        self.handed_off: list[Delivery] = []
        """Deliveries that a worker was sending as a remainder when it ended. They stay unsettled until `hand_off`."""
        self.missed: list[tuple[Delivery, Outcome]] = []
        self.checkpoint_schedule = CheckpointSchedule(clock())
        self.page_needed = asyncio.Event()
        self.read_to = start.cursor
        self.started_at = clock()
        self.stopped = False
        self.stopped_at = float("inf")
        self.unknown_age: list[Delivery] = []
        self.unsettled: dict[str, Delivery] = {}
        self.waiting = 0
        self._bodies = Bodies(broadcast, presence_frame, link)
        self.outcomes = OutcomeCounts(self._bodies, totals, start.receipt.sums if start.receipt is not None else Sums())
        self._ready = self._bodies.ready
        self._except = frozenset(broadcast.except_ or ())
        self._clock = clock
        self._closed = closed
        self._gone = gone
        self._handed_off = False
        self._is_too_large = False
        self._members: deque[Member] = deque()
        """Members that were read and not yet taken, each with its variant (`bodies`) in place of its dialect."""
        self._numbered = not broadcast.room
        self._last_taken = start.cursor
        self._read = int(start.cursor or "0") if self._numbered else 0
        self._resumed: deque[Delivery] = deque()
        self._resume(start)

    def _resume(self, start: Checkpoint) -> None:
        v2 = frozenset(start.v2)
        handed_off = frozenset(start.receipt.handed_off) if start.receipt is not None else frozenset()
        for connection_id, joined_at_ms in start.pending:
            variant = (V2 if connection_id in v2 else V1) + EXCLUDED * (connection_id in self._except)
            if (body := self._body(connection_id, joined_at_ms, variant)) is not None:
                delivery = Delivery(self, connection_id, joined_at_ms, body)
                self.unsettled[connection_id] = delivery
                if connection_id in handed_off:
                    self.handed_off.append(delivery)
                else:
                    self._resumed.append(delivery)

    def add_page(self, members: Sequence[Member], *, last: bool, read_to: str = "") -> None:
        """Add members, in the order of their keys, all after the cursor and after those that were added before."""
        if self.expired:
            return
        self._read += len(members)
        if self._except and not self._except.isdisjoint(map(_CONNECTION_ID, members)):
            members = [
                Member(each, joined_at_ms, dialect + EXCLUDED * (each in self._except), locator)
                for each, joined_at_ms, dialect, locator in members
            ]
        self._members.extend(members)
        self.read_to = read_to
        self.exhausted = last
        if self.finished:
            self.changed.set()

    @property
    def cursor(self) -> str:
        """The key or locator of the last member taken; for `connections` the number of them. Empty at the start."""
        return str(self._read - len(self._members) or "") if self._numbered else self._last_taken

    @property
    def read_ahead(self) -> int:
        """The number of members that were read and not yet taken."""
        return len(self._members)

    @property
    def needs_page(self) -> bool:
        return not self.exhausted and len(self._members) < PAGES_LOW

    @property
    def finished(self) -> bool:
        """Whether every member has an outcome, though missed ones may still have to be dead-lettered."""
        return self.exhausted and not self._members and len(self.unsettled) == len(self.missed)

    @property
    def settled(self) -> bool:
        """Whether every member has an outcome, and the missed ones are safe on the dead-letter queue."""
        return self.finished and not self.missed

    @property
    def counts(self) -> dict[Outcome, int]:
        """The deliveries that ended on this worker, by outcome."""
        return self.outcomes.by_outcome

    @property
    def made_progress(self) -> bool:
        """Whether a delivery was settled or handed off since the start."""
        return self._handed_off or any(self.counts.values())

    @property
    def only_waiting(self) -> bool:
        """Whether all remaining deliveries wait for a retry or in a line."""
        return self.exhausted and not self._members and 0 < self.waiting == len(self.unsettled) - len(self.missed)

    @property
    def held_bytes(self) -> int:
        """An estimate of the memory, in bytes, that it occupies while it is parked."""
        return self._bodies.held_bytes + _DELIVERY_BYTES * len(self.unsettled)

    def renew_link(self, link: Link) -> None:
        """Post this link from now on: the one so far is about to end."""
        self._bodies.renew_link(link)

    @property
    def held_up(self) -> bool:
        """Whether missed and waiting deliveries occupy most of the window."""
        return len(self.missed) + self.waiting >= MAX_HELD_UP

    @property
    def may_start(self) -> bool:
        """Whether the deliveries that a crash would repeat stay within the window if one more is started."""
        return self.checkpoint_schedule.since_written + self.in_flight < WINDOW

    @property
    def available(self) -> bool:
        """Whether it has a delivery that may be started now."""
        if self.stopped or not self.may_start:
            return False
        return bool(self._resumed or (self._members and len(self.unsettled) < WINDOW))

    def take(self) -> Delivery | None:  # noqa: C901 - the hot path, in one piece
        """Take the next delivery to start; None if there is none now. The engine's hot path."""
        if self.stopped or self.checkpoint_schedule.since_written + self.in_flight >= WINDOW:
            return None
        if self._resumed:
            return self._resumed.popleft()
        if len(self.unsettled) >= WINDOW:
            return None
        members = self._members
        while members:
            connection_id, joined_at_ms, variant, locator = members.popleft()
            self._last_taken = locator or connection_id
            if len(members) == _PAGE_NEEDED:
                self.page_needed.set()
            if locator and connection_id in self.unsettled:
                continue  # a table that is not Gatecast's may hold several items of a connection
            body = self._ready[variant]
            if body is None:
                body = self._body(connection_id, joined_at_ms, variant)
                if body is None:
                    if len(self.unsettled) >= WINDOW:  # with a delivery that cannot be posted
                        return None
                    continue
            delivery = Delivery(self, connection_id, joined_at_ms, body, locator)
            self.unsettled[connection_id] = delivery
            return delivery
        self.page_needed.set()
        if self.finished:
            self.changed.set()
        return None

    def _body(self, connection_id: str, joined_at_ms: int | None, variant: int) -> Body | None:
        """What this member is posted; None if nothing is.

        If its frame is too large, it has missed the broadcast. The first such delivery stays unsettled until all others
        have ended and the broadcast is safe as a dead letter, which is then one for all; the rest are only counted.
        """
        if self._bodies.skips(variant):
            return None
        body = self._bodies.body(variant)
        if body is not TOO_LARGE:
            return body
        if self._is_too_large:
            self.outcomes.add(Outcome.REJECTED)
            return None
        self._is_too_large = True
        delivery = Delivery(self, connection_id, joined_at_ms, body)
        self.unsettled[connection_id] = delivery
        self.settle(delivery, Outcome.REJECTED)
        return None

    def delivered(self, delivery: Delivery) -> None:
        """Settle a delivery as delivered, the outcome of almost all. The engine counts the totals."""
        del self.unsettled[delivery.connection_id]
        delivery.body.accepted += 1
        checkpoint_schedule = self.checkpoint_schedule
        checkpoint_schedule.since_written += 1
        checkpoint_schedule.since_snapshot += 1
        if (
            checkpoint_schedule.since_snapshot >= SNAPSHOT_AFTER
            or (self.exhausted and not self._members and len(self.unsettled) == len(self.missed))
            or (self.stopped and not self.in_flight)
        ):
            self.changed.set()

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle a delivery with any other outcome. A missed one stays unsettled until `confirm_missed`."""
        if outcome is Outcome.REJECTED or outcome is Outcome.UNDELIVERED:
            self.missed.append((delivery, outcome))
            if self.held_up:
                self.changed.set()
        else:
            del self.unsettled[delivery.connection_id]
            self._count(outcome, excluded=delivery.body.for_excluded)
            if outcome is Outcome.GONE:
                self._gone(delivery)
        if (
            self.finished
            or (self.stopped and not self.in_flight)
            or self.checkpoint_schedule.since_snapshot >= SNAPSHOT_AFTER
        ):
            self.changed.set()

    def await_retry(self, delivery: Delivery) -> None:
        """Mark a delivery as waiting for a later post."""
        delivery.waiting = True
        self.waiting += 1
        if self.waiting == MAX_WAITING or self.stopped or self.only_waiting:
            self.changed.set()

    def stop_waiting(self, delivery: Delivery) -> None:
        """Undo `await_retry`: the delivery is about to be posted, settled or handed off."""
        delivery.waiting = False
        self.waiting -= 1
        if delivery.stalled is not None:
            delivery.stalled.remove_from_line(delivery)

    def hand_off(self, deliveries: Sequence[Delivery]) -> None:
        """Drop deliveries that are safe in a broadcast of their own."""
        self.checkpoint_schedule.since_snapshot += len(deliveries)
        self._handed_off = True
        for delivery in deliveries:
            del self.unsettled[delivery.connection_id]

    def slow(self, limit: int) -> list[Delivery]:
        """The oldest waiting deliveries, up to `limit`, that may leave a line or have more than one counted attempt."""
        slow = (
            each
            for each in self.unsettled.values()
            if each.waiting
            and (each.counted_attempts > 1 or (each.stalled is not None and each.stalled.may_hand_off(each)))
        )
        return list(islice(slow, limit))

    def look_up_age(self, delivery: Delivery) -> None:
        """Request the age of a connection that returned 410: the run reads it from the table."""
        self.unknown_age.append(delivery)
        self.changed.set()

    def missed_to_store(self) -> list[tuple[Delivery, Outcome]]:
        """What should be stored now of the missed deliveries, so that `confirm_missed` may settle it."""
        if self.finished:
            return self.missed.copy()
        if not (self.held_up or self.stopped):
            return []
        return [(delivery, outcome) for delivery, outcome in self.missed if delivery.body is not TOO_LARGE]

    def confirm_missed(self, missed: Sequence[tuple[Delivery, Outcome]]) -> None:
        """Settle missed deliveries, which are on the dead-letter queue or in the log now."""
        for delivery, outcome in missed:
            del self.unsettled[delivery.connection_id]
            self._count(outcome, excluded=delivery.body.for_excluded)
        self.missed = [each for each in self.missed if each[0].connection_id in self.unsettled]

    def expire(self) -> None:
        """Settle all deliveries that are not in flight as expired, and read no further pages."""
        if self.expired or self.stopped:
            return
        self.expired = True
        variants = [member.frames for member in self._members if not self._bodies.skips(member.frames)]
        excluded = sum(variant >= V1 + EXCLUDED for variant in variants)
        self._count(Outcome.EXPIRED, len(variants) + self._unread(), excluded=excluded)
        self._members.clear()
        if self._numbered:  # all of them have been counted: a worker that resumes must not count them again
            self._read = len(self._named())
        self.exhausted = True
        while self._resumed:
            self.settle(self._resumed.popleft(), Outcome.EXPIRED)
        for delivery in [each for each in self.unsettled.values() if each.waiting]:
            self.stop_waiting(delivery)
            self.settle(delivery, Outcome.EXPIRED)
        self.changed.set()

    def _unread(self) -> int:
        """The number of named connections that were not read yet: which dialect they use does not matter any more."""
        broadcast = self.broadcast
        if self.exhausted or not self._numbered or broadcast.presence is not UNSET:
            return 0
        return sum(each not in self._except for each in self._named()[self._read :])

    def _named(self) -> list[str]:
        return list(dict.fromkeys(self.broadcast.connections or ()))

    def _count(self, outcome: Outcome, deliveries: int = 1, *, excluded: int = 0) -> None:
        self.checkpoint_schedule.since_written += deliveries
        self.checkpoint_schedule.since_snapshot += deliveries
        self.outcomes.add(outcome, deliveries, excluded=excluded)

    def stop(self) -> None:
        """Start no more deliveries. Those in flight still settle."""
        if not self.stopped:
            self.stopped = True
            self.stopped_at = self._clock()
            for delivery in self.unsettled.values():
                if delivery.stalled is not None and delivery.waiting:
                    delivery.stalled.remove_from_line(delivery)
        self.changed.set()

    def checkpoint(self) -> Checkpoint:
        pending = self.unsettled.values()
        return Checkpoint(
            self.cursor,
            tuple((delivery.connection_id, delivery.joined_at_ms) for delivery in pending),
            tuple(each.connection_id for each in pending if each.body.frames == V2) if self._bodies.has_frames else (),
        )
