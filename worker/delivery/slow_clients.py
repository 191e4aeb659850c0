"""Deliveries to connections that return 429: they wait in line, follow a probe in order, or are given up.

`stall` has the records and the reasoning. This module moves deliveries between their fan-outs and these records, and
decides when to close a connection. The engine calls `hold_back` for each delivery to a stalled connection, reports how
posts to these end, and takes the next probe that is due. Every method is a plain call and none blocks.

A connection is given up if it has not read for 30 s or is two minutes behind: deliveries in its line are missed, and it
is closed. The rate of closing is limited, with a burst (`ClosingBudget`). Beyond that limit, and if closing fails or is
disabled, a connection is kept: further deliveries to it are missed at once, and occasional probes find out whether it
reads again.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from worker.decisions.outcome import Outcome
from worker.decisions.rate import RateController
from worker.decisions.stall import ClosingBudget, References, StalledConnection, StalledConnections
from worker.delivery.fanout import Delivery

log = structlog.get_logger()

_CHECKPOINT_SECONDS: Final = 0.1
"""How long a due probe waits for its broadcast's checkpoint to be written."""


class SlowClientMetrics(Protocol):
    """Counters of the connections that were given up, by what was done with them: closed, kept or failed."""

    slow_clients: dict[str, int]


class SlowClients:
    """The lines of all stalled connections of one engine.

    `close` starts closing a connection and reports the result to `closed`; None keeps all connections. `requeue`
    receives deliveries that leave a line and are due.
    """

    def __init__(
        self,
        rate: RateController,
        metrics: SlowClientMetrics,
        *,
        close: Callable[[StalledConnection[Delivery]], None] | None,
        requeue: Callable[[Delivery], None],
    ) -> None:
        self.references = References()
        self._rate = rate
        self._metrics = metrics
        self._close = close
        self._requeue = requeue
        self._followers: deque[Delivery] = deque()
        """Deliveries that may be posted right after a probe."""
        self._records = StalledConnections[Delivery](self.references)
        self.records = self._records.by_id
        """Connections that returned 429, by id. The engine looks up each delivery's connection here."""
        self._budget = ClosingBudget()

    def __len__(self) -> int:
        """The number of connections that have a record."""
        return len(self._records)

    @property
    def undecided(self) -> bool:
        """Whether references are needed to judge a connection."""
        return self._records.undecided

    def due_at(self) -> float:
        """When the next probe is due; infinity if there is none."""
        return -math.inf if self._followers else self._records.due_at()

    def hold_back(self, delivery: Delivery, now: float) -> bool:
        """Whether this delivery must not be posted now. If so, it is in its connection's line or missed now."""
        fanout = delivery.fanout
        if fanout.is_kick:
            return False  # what waits for a connection must not keep it open
        record = self._records.get(delivery.connection_id)
        if record is None:
            if fanout.prior_rejections is None:
                return False
            record = self._records.add(delivery.connection_id, now)
            record.resume(fanout.prior_rejections)
        if record.given_up and (record.probing is not None or record.line or now < record.probe_at):
            fanout.settle(delivery, Outcome.UNDELIVERED)
            return True
        self._line_up(record, delivery, now)
        if record.probing is None and record.due == math.inf:
            self._records.schedule(record, max(now, record.probe_at))
        return True

    def sweep(self, now: float) -> None:
        """Drop records that are no longer needed. To be called about once per second."""
        self._records.drop_idle(now)

    def next_probe(self, now: float) -> Delivery | None:
        """The next due probe, or a delivery that follows one; None if there is none. The caller posts it at once."""
        while self._followers:
            follower = self._followers.popleft()
            record = follower.stalled
            if record is not None and follower in record.line and follower.fanout.may_start:
                follower.fanout.stop_waiting(follower)
                follower.stalled = record
                return follower
        while (record := self._records.next_due(now)) is not None:
            record.update_evidence()
            delivery = record.first()
            if delivery is None:
                self._records.rest(record, now)
            elif not delivery.fanout.may_start:
                self._records.schedule(record, now + _CHECKPOINT_SECONDS)
            else:
                self._followers.extend(record.followers())
                record.post(delivery)
                delivery.fanout.stop_waiting(delivery)
                return delivery
        return None

    def throttled(self, delivery: Delivery, now: float) -> None:
        """A post of this delivery returned 429."""
        record = delivery.stalled
        if record is not None and record.probing is delivery:
            self._probe_throttled(record, delivery, now)
            return
        delivery.stalled = None
        record = self._records.get(delivery.connection_id)
        if record is None:
            self._rate.throttled(retry=False)
            self.references.throttled += 1
            record = self._records.add(delivery.connection_id, now)
        else:  # it followed a probe, or was in flight when the first post was rejected
            record.follower_rejected()
        if record.given_up:
            delivery.fanout.settle(delivery, Outcome.UNDELIVERED)
            return
        self._line_up(record, delivery, now)
        if record.probing is None and record.due == math.inf:
            self._wait(record, now)

    def _probe_throttled(self, record: StalledConnection[Delivery], delivery: Delivery, now: float) -> None:
        if record.is_new:
            self._rate.throttled(retry=True)
        record.probe_rejected()
        delivery.stalled = None
        if record.given_up:
            delivery.fanout.settle(delivery, Outcome.UNDELIVERED)
            self._keep(record, now)
            return
        if record.does_not_read(now):
            delivery.fanout.settle(delivery, Outcome.UNDELIVERED)
            self._give_up(record, now)
            return
        self._line_up(record, delivery, now, returning=True)
        self._wait(record, now)

    def _wait(self, record: StalledConnection[Delivery], now: float) -> None:
        seconds = record.retry_seconds(random.random(), account_throttles=self._rate.account_throttles)
        self._records.schedule(record, now + seconds)

    def passed(self, delivery: Delivery, now: float) -> None:
        """A probe, or a delivery that followed one, was delivered. After a probe, its line resumes."""
        record = self._ended(delivery)
        if record is None:
            self._rate.passed(0, others=1)
            return
        if record.is_new:
            self._rate.passed(0, retries=1)
        else:
            self._rate.passed(0, others=1)
        record.probe_passed(now)
        record.given_up = False
        self._resume_line(record, now)

    def ended(self, delivery: Delivery, outcome: Outcome | None, now: float) -> None:
        """A probe or follower ended otherwise; `outcome` is None while undecided. GONE settles the whole line."""
        record = self._ended(delivery)
        if record is None:
            return
        if outcome is Outcome.GONE:
            for behind in list(record.line):
                if behind.joined_at_ms is None:
                    behind.joined_at_ms = delivery.joined_at_ms  # the same connection's age
            self._settle_line(record, outcome)
            self._records.remove(record)
        elif outcome is Outcome.UNDELIVERED or delivery.rejections > 1:
            self._dissolve(record)
        elif record.line:
            self._records.schedule(record, now)
        else:
            self._records.rest(record, now)

    def retry(self, delivery: Delivery, at: float) -> bool:
        """Whether this delivery, which failed otherwise than by 429, waits in line for a post at that time."""
        record = self._ended(delivery)
        if record is None:
            return False
        if record.probe_failed():
            self._dissolve(record)
            return False
        self._line_up(record, delivery, at, returning=True)
        self._records.schedule(record, at)
        return True

    def closed(self, record: StalledConnection[Delivery], now: float, *, succeeded: bool) -> None:
        """Closing a connection has ended."""
        self._metrics.slow_clients["closed" if succeeded else "failed"] += 1
        if succeeded:
            self._records.remove(record)
        else:
            self._keep(record, now)

    def _ended(self, delivery: Delivery) -> StalledConnection[Delivery] | None:
        """Detach a delivery. Returns the record whose probe it was; None if it only followed one."""
        record, delivery.stalled = delivery.stalled, None
        if record is None or record.probing is not delivery:
            return None
        record.probing = None
        return record

    def _dissolve(self, record: StalledConnection[Delivery]) -> None:
        """Remove a record whose problem is not a full buffer: its deliveries are retried independently."""
        waiting = list(record.line)
        self._records.remove(record)
        for delivery in waiting:
            record.remove_from_line(delivery)
            self._requeue(delivery)

    def _resume_line(self, record: StalledConnection[Delivery], now: float) -> None:
        if record.line:
            self._records.schedule(record, now)
        else:
            self._records.remove(record)

    def _line_up(
        self, record: StalledConnection[Delivery], delivery: Delivery, now: float, *, returning: bool = False
    ) -> None:
        if not delivery.fanout.stopped:
            record.line_up(delivery, now, returning=returning)
        delivery.fanout.await_retry(delivery)

    def _settle_line(self, record: StalledConnection[Delivery], outcome: Outcome) -> None:
        for delivery in list(record.line):
            delivery.fanout.stop_waiting(delivery)
            delivery.fanout.settle(delivery, outcome)

    def _give_up(self, record: StalledConnection[Delivery], now: float) -> None:
        record.given_up = True
        close = self._close if self._close is not None and self._budget.spend(now) else None
        log.warning(
            "slow_client.given_up",
            connection=record.connection_id,
            rejected=record.rejected,
            seconds=round(now - record.since, 1),
            missed=len(record.line),
            close=close is not None,
        )
        self._settle_line(record, Outcome.UNDELIVERED)
        if close is None:
            self._metrics.slow_clients["kept"] += 1
            self._keep(record, now)
        else:
            record.probe_at = math.inf
            close(record)

    def _keep(self, record: StalledConnection[Delivery], now: float) -> None:
        """Keep a connection that was given up: it may read again."""
        record.probe_at = now + record.retry_seconds(random.random(), account_throttles=False)
        self._records.rest(record, now)
