"""Kicks: broadcasts that close their members' connections (`close`), instead of delivering a payload to them.

A kick is delivered like any other broadcast: with the same pages, window, outcomes, checkpoints and dead letters. Its
delivery to a connection has at most two requests. A v2 connection is posted a frame that says why; then it is deleted,
as a v1 connection is at once. The frame is best effort: if it is not accepted within FRAME_SECONDS, as that of a client
that does not read, the connection is deleted without it. A deleted connection counts as delivered, one that had ended
before as gone, and both are passed to the reaper.

Kicks have a share of the rate and of the pool to themselves, and among themselves take turns by room (`Kicks`). So one
of a hundred thousand connections slows other broadcasts by no more than that share, however slowly the endpoint
responds, and does not delay the kick of a single user. Without other broadcasts it is no faster: each closed connection
causes a `$disconnect` and, where its client may retry, a new connection. By default API Gateway accepts 500 new
connections per second, which is what this share amounts to: a tenth of 10,000, in two requests per v2 connection.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from worker.decisions.outcome import Outcome
from worker.decisions.round_robin import RoundRobin
from worker.delivery.fanout import Delivery, Fanout
from worker.ports import Member

KICK_SHARE: Final = 0.1
"""Requests of kicks as a share of the rate limit."""
POOL_SHARE: Final = 1 / 8
"""Requests of kicks in flight as a share of the pool."""
BURST: Final = 20
"""Requests that are sent at once after a pause, at any rate: a user's connections are closed immediately."""
FRAME_SECONDS: Final = 5.0
LATE_JOIN_SECONDS: Final = 5.0
"""More than clocks differ, as a rule. A member who joined the room this long after the kick was published is not its
target: if the kick was delayed, that may be the same user on a new connection, with a new token."""


class KickFanout(Fanout):
    """The fan-out of a kick."""

    is_kick = True

    def add_page(self, members: Sequence[Member], *, last: bool, read_to: str = "") -> None:
        latest_ms = int(self.broadcast.published_at_ms or 0) + LATE_JOIN_SECONDS * 1000
        targets = [each for each in members if each.joined_at_ms is None or each.joined_at_ms <= latest_ms]
        super().add_page(targets, last=last, read_to=read_to)

    def delivered(self, delivery: Delivery) -> None:
        if delivery.body.then is None:
            super().delivered(delivery)
            self._closed(delivery)
        else:
            self.outcomes.not_delivered_yet()
            delivery.body.accepted += 1
            self.skip_frame(delivery)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle a delivery. One whose frame is missed continues with its second request."""
        if delivery.body.then is not None and outcome in (Outcome.REJECTED, Outcome.UNDELIVERED):
            self.skip_frame(delivery)
        else:
            super().settle(delivery, outcome)

    def skip_frame(self, delivery: Delivery) -> None:
        """Continue with the request that closes the connection: the frame has been posted, or cannot be."""
        assert delivery.body.then is not None  # noqa: S101 - checked by the callers
        delivery.body = delivery.body.then
        delivery.attempts = delivery.counted_attempts = delivery.rejections = 0
        self._resumed.append(delivery)
        if self.stopped and not self.in_flight:
            self.changed.set()


class Kicks:
    """The kicks of one engine: what is due, and when the next request may be sent. Times are monotonic seconds.

    `max_in_flight` is the maximum of their requests in flight.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.fresh: RoundRobin[Delivery] = RoundRobin()
        self.due: deque[Delivery] = deque()
        """Deliveries that are due for a retry."""
        self.active: set[Fanout] = set()
        """Those that may have something to send, or have something in flight."""
        self._max_in_flight = max_in_flight
        self._next_at = -math.inf

    def add(self, fanout: Fanout) -> None:
        """Take deliveries from this fan-out: it has, or may have, some."""
        self.active.add(fanout)
        self.fresh.add(fanout)

    def retry(self, delivery: Delivery) -> None:
        """Add a delivery that is due for a retry."""
        self.active.add(delivery.fanout)
        self.due.append(delivery)

    def due_at(self) -> float:
        """When the next request may be sent; infinity if there is none, or if too many are in flight."""
        if not self.due:
            self.active = {fanout for fanout in self.active if fanout.in_round_robin or fanout.in_flight}
            if not self.fresh:
                return math.inf
        in_flight = sum(fanout.in_flight for fanout in self.active)
        return self._next_at if in_flight < self._max_in_flight else math.inf

    def are_due(self, now: float) -> bool:
        return self._next_at <= now and self.due_at() <= now

    def sent(self, limit: float, now: float) -> None:
        """Count a request that is about to be sent, at `limit` requests per second of all broadcasts."""
        rate = KICK_SHARE * limit
        self._next_at = max(self._next_at, now - BURST / rate) + 1 / rate
