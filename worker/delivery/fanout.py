"""One broadcast's members on their way to an outcome: the state that the engine and the broadcaster share.

The engine takes deliveries out and settles them, in plain calls; the broadcaster's coroutine puts pages in, writes
checkpoints and sees to misses whenever `changed` is set. Nothing here waits.

Always:
- every member that was taken up is in `unsettled` until its outcome is final, and a missed one until it is safe on the
  dead-letter queue, so that a checkpoint taken at any moment forgets nobody;
- `unsettled` holds at most `WINDOW` members.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import msgspec

from gatecast.broadcast import Broadcast
from worker.decisions.checkpoint import SNAPSHOT_AFTER, WINDOW, Checkpoint, Pace
from worker.decisions.outcome import Outcome
from worker.decisions.parts import REMAINDER_PREFIX
from worker.decisions.stall import Refused, StalledConnection
from worker.ports import Member
from worker.transport.signing import Prepared

_DELIVERED: Final = Outcome.DELIVERED  # a member of an enumeration is looked up by a call
REMAINDERS: Final = ""
"""The group of all remainders; no room and no broadcast has this name."""
PAGES_LOW: Final = 1_000
"""Members in hand below which the next page is wanted."""
_DELIVERY_BYTES: Final = 300
MAX_WAITING: Final = 500
"""Of the window: from so many on, the oldest that wait for a stalled connection leave as a remainder."""
MAX_HELD_UP: Final = 700
"""Of the window, missed and waiting together: from so many on, the missed are made safe before all is finished."""


class Delivery(msgspec.Struct, eq=False):
    """Reaching one connection. Times are monotonic seconds."""

    fanout: "Fanout"
    connection_id: str
    joined_at_ms: int | None
    tries: int = 0
    """Posts for it, counted against it or not."""
    attempts: int = 0
    """Failed posts that count against it."""
    refusals: int = 0
    """Responses such as 403 while others were not rejected."""
    first_tried_at: float = 0.0
    waiting: bool = False
    """It waits for its next post; nothing for it is in flight."""
    stalled: "StalledConnection[Delivery] | None" = None
    """In whose line it waits, or whose probe it is."""

    @property
    def order(self) -> tuple[int, int]:
        return self.fanout.order


class Fanout:
    """The fan-out of `broadcast`, resumed from `start`. `clock` gives monotonic seconds.

    `order` is its place among the broadcasts of its group: when it was published, then when it began here. `carried`
    says that all its connections were refused before, at least so often.
    """

    def __init__(
        self,
        broadcast: Broadcast,
        start: Checkpoint,
        clock: Callable[[], float],
        *,
        order: tuple[int, int],
        carried: Refused | None,
        totals: dict[Outcome, int],
        gone: Callable[[Delivery], None],
    ) -> None:
        self.broadcast = broadcast
        self.order = order
        self.carried = carried
        self.group = broadcast.room or (REMAINDERS if broadcast.part.startswith(REMAINDER_PREFIX) else broadcast.id)
        self.payload = broadcast.data.encode()
        self.expires_at_ms = broadcast.expires_at_ms if isinstance(broadcast.expires_at_ms, int) else float("inf")
        self.changed = asyncio.Event()
        self.counts = dict.fromkeys(Outcome, 0)
        self.cursor = start.cursor
        self.exhausted = False
        self.in_flight = 0
        self.in_round_robin = False
        self.expired = False
        self.missed: list[tuple[Delivery, Outcome]] = []
        self.pace = Pace(clock())
        self.page_wanted = asyncio.Event()
        self.read_to = start.cursor
        self.prepared: Prepared | None = None
        self.prepared_for = (0, 0)
        self.started_at = clock()
        self.stopped = False
        self.stopped_at = float("inf")
        self.unknown_age: list[Delivery] = []
        self.unsettled: dict[str, Delivery] = {}
        self.waiting = 0
        self._except = frozenset(broadcast.except_ or ())
        self._clock = clock
        self._gone = gone
        self._left = False
        self._totals = totals
        self._members: deque[Member] = deque()
        self._numbered = not broadcast.room
        self._resumed: deque[Delivery] = deque()
        for connection_id, joined_at_ms in start.pending:
            delivery = Delivery(self, connection_id, joined_at_ms)
            self.unsettled[connection_id] = delivery
            self._resumed.append(delivery)

    def add_page(self, members: Sequence[Member], *, last: bool, read_to: str = "") -> None:
        """Members in the order of their keys, all behind the cursor and behind those that were added before."""
        if self.expired:
            return
        self._members.extend(members)
        self.read_to = read_to
        self.exhausted = last
        if self.finished:
            self.changed.set()

    @property
    def read_ahead(self) -> int:
        """Members that were read and not taken up yet."""
        return len(self._members)

    @property
    def wants_page(self) -> bool:
        return not self.exhausted and len(self._members) < PAGES_LOW

    @property
    def finished(self) -> bool:
        """Every member has an outcome, though missed ones may still have to be made safe."""
        return self.exhausted and not self._members and len(self.unsettled) == len(self.missed)

    @property
    def settled(self) -> bool:
        """Every member has an outcome, and the missed ones are safe."""
        return self.finished and not self.missed

    @property
    def progress(self) -> bool:
        """Has anybody had an outcome, or been left to a broadcast of their own, since the start?"""
        return self._left or any(self.counts.values())

    @property
    def only_waits(self) -> bool:
        """All that is left to deliver waits to be tried again."""
        return self.exhausted and not self._members and 0 < self.waiting == len(self.unsettled) - len(self.missed)

    @property
    def held_bytes(self) -> int:
        """About how much memory it takes while it only waits."""
        return len(self.payload) + _DELIVERY_BYTES * len(self.unsettled)

    @property
    def held_up(self) -> bool:
        """Whether so many are missed or wait that hardly anybody else fits into the window."""
        return len(self.missed) + self.waiting >= MAX_HELD_UP

    @property
    def may_start(self) -> bool:
        """Does what a crash would repeat stay within the window if one more is started?"""
        return self.pace.since_written + self.in_flight < WINDOW

    @property
    def available(self) -> bool:
        """Has it something that may be delivered now?"""
        if self.stopped or not self.may_start:
            return False
        return bool(self._resumed or (self._members and len(self.unsettled) < WINDOW))

    def take(self) -> Delivery | None:
        """The next delivery to start. The engine's hot path."""
        if self.stopped or self.pace.since_written + self.in_flight >= WINDOW:
            return None
        if self._resumed:
            return self._resumed.popleft()
        if len(self.unsettled) >= WINDOW:
            return None
        members = self._members
        while members:
            connection_id, joined_at_ms = members.popleft()
            self.cursor = str(int(self.cursor or "0") + 1) if self._numbered else connection_id
            if len(members) == PAGES_LOW - 1:
                self.page_wanted.set()
            if self._except and connection_id in self._except:
                continue
            delivery = Delivery(self, connection_id, joined_at_ms)
            self.unsettled[connection_id] = delivery
            return delivery
        self.page_wanted.set()
        if self.finished:
            self.changed.set()
        return None

    def delivered(self, delivery: Delivery) -> None:
        """Settle as delivered: what happens to almost all. The engine counts the totals."""
        del self.unsettled[delivery.connection_id]
        self.counts[_DELIVERED] += 1
        pace = self.pace
        pace.since_written += 1
        pace.since_snapshot += 1
        if (
            pace.since_snapshot >= SNAPSHOT_AFTER
            or (self.exhausted and not self._members and len(self.unsettled) == len(self.missed))
            or (self.stopped and not self.in_flight)
        ):
            self.changed.set()

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Give a delivery another outcome. A missed one is final only when `confirm_missed`."""
        if outcome is Outcome.REJECTED or outcome is Outcome.UNDELIVERED:
            self.missed.append((delivery, outcome))
            if self.held_up:
                self.changed.set()
        else:
            del self.unsettled[delivery.connection_id]
            self._count(outcome)
            if outcome is Outcome.GONE:
                self._gone(delivery)
        if self.finished or (self.stopped and not self.in_flight) or self.pace.since_snapshot >= SNAPSHOT_AFTER:
            self.changed.set()

    def waits(self, delivery: Delivery) -> None:
        """It will be posted later."""
        delivery.waiting = True
        self.waiting += 1
        if self.waiting == MAX_WAITING or self.stopped or self.only_waits:
            self.changed.set()

    def unpark(self, delivery: Delivery) -> None:
        """It is about to be posted, or is none of the engine's business any more."""
        delivery.waiting = False
        self.waiting -= 1
        if delivery.stalled is not None:
            delivery.stalled.leave(delivery)

    def leave(self, deliveries: Sequence[Delivery]) -> None:
        """These are safe elsewhere: the broadcast is done with them."""
        self.pace.since_snapshot += len(deliveries)
        self._left = True
        for delivery in deliveries:
            del self.unsettled[delivery.connection_id]

    def slow(self, limit: int) -> list[Delivery]:
        """The oldest that wait for a stalled connection, or have failed more than once while others succeeded."""
        slow = (
            each
            for each in self.unsettled.values()
            if each.waiting and (each.attempts > 1 or (each.stalled is not None and each.stalled.lets_leave(each)))
        )
        return list(islice(slow, limit))

    def ask_age(self, delivery: Delivery) -> None:
        """Its client seems gone: find out how old the connection is."""
        self.unknown_age.append(delivery)
        self.changed.set()

    def confirm_missed(self, missed: Sequence[tuple[Delivery, Outcome]]) -> None:
        """These, the first of `missed`, are on the dead-letter queue or in the log: settle them."""
        del self.missed[: len(missed)]
        for delivery, outcome in missed:
            del self.unsettled[delivery.connection_id]
            self._count(outcome)

    def expire(self) -> None:
        """Nobody receives it any more: settle all that is not under way, and read no further."""
        if self.expired or self.stopped:
            return
        self.expired = True
        self._count(Outcome.EXPIRED, sum(member.connection_id not in self._except for member in self._members))
        self._members.clear()
        self.exhausted = True
        while self._resumed:
            self.settle(self._resumed.popleft(), Outcome.EXPIRED)
        for delivery in [each for each in self.unsettled.values() if each.waiting]:
            self.unpark(delivery)
            self.settle(delivery, Outcome.EXPIRED)
        self.changed.set()

    def _count(self, outcome: Outcome, deliveries: int = 1) -> None:
        self.pace.since_written += deliveries
        self.pace.since_snapshot += deliveries
        self.counts[outcome] += deliveries
        self._totals[outcome] += deliveries

    def stop(self) -> None:
        """Start nothing more; what is in flight still settles."""
        if not self.stopped:
            self.stopped = True
            self.stopped_at = self._clock()
            for delivery in self.unsettled.values():
                if delivery.stalled is not None and delivery.waiting:
                    delivery.stalled.leave(delivery)
        self.changed.set()

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.cursor,
            tuple((delivery.connection_id, delivery.joined_at_ms) for delivery in self.unsettled.values()),
        )
