"""What becomes of deliveries to connections that return 429: they wait in line, follow in order, or are given up.

`stalled` has the records and the reasoning; this module moves deliveries between their fan-outs and these records, and
says when a connection is to be closed. The engine asks it about each delivery that it takes up (`holds_back`), tells it
how probes end, and asks for the next probe that is due. Everything is a plain call; nothing waits.

A connection that is given up has not read for 30 s, or is two minutes behind: what waited for it is missed, and it is
closed. So many are closed at once, and so many per second after that; beyond, and where closing fails or is not wanted,
a connection is kept: what is for it is missed at once, while a probe now and then finds out whether it reads again.
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
"""How long a probe that is due waits for its broadcast's checkpoint to be written."""


class SlowClientMetrics(Protocol):
    """Where connections that were given up are counted, by what became of them: closed, kept or failed."""

    slow_clients: dict[str, int]


class SlowClients:
    """`close` starts to close a connection and tells `closed` how that went; None where all are kept.

    `requeue` takes deliveries back that wait and are due.
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
        """Those that may be posted right behind a probe."""
        self._records = StalledConnections[Delivery](self.references)
        self.records = self._records.by_id
        """Connections that returned 429, by id. The engine looks each delivery's up."""
        self._budget = ClosingBudget()

    def __len__(self) -> int:
        """Connections that have a record."""
        return len(self._records)

    @property
    def undecided(self) -> bool:
        """Whether references are needed to judge a connection."""
        return self._records.undecided

    def due_at(self) -> float:
        """When the next probe is due; infinity without any."""
        return -math.inf if self._followers else self._records.due_at()

    def holds_back(self, delivery: Delivery, now: float) -> bool:
        """Whether this delivery must not be posted now: it waits in line, or is missed at once."""
        fanout = delivery.fanout
        record = self._records.get(delivery.connection_id)
        if record is None:
            if fanout.carried is None:
                return False
            record = self._records.add(delivery.connection_id, now)
            record.resume(fanout.carried)
        if record.given_up and (record.probing is not None or record.line or now < record.probe_at):
            fanout.settle(delivery, Outcome.UNDELIVERED)
            return True
        self._line_up(record, delivery, now)
        if record.probing is None and record.due == math.inf:
            self._records.schedule(record, max(now, record.probe_at))
        return True

    def sweep(self, now: float) -> None:
        """Forget what is of no use any more; call it about once a second."""
        self._records.forget_idle(now)

    def next_probe(self, now: float) -> Delivery | None:
        """The next probe that is due, or what follows one. It is posted at once."""
        while self._followers:
            follower = self._followers.popleft()
            record = follower.stalled
            if record is not None and follower in record.line and follower.fanout.may_start:
                follower.fanout.unpark(follower)
                follower.stalled = record
                return follower
        while (record := self._records.next_due(now)) is not None:
            record.judge()
            delivery = record.first()
            if delivery is None:
                self._records.rest(record, now)
            elif not delivery.fanout.may_start:
                self._records.schedule(record, now + _CHECKPOINT_SECONDS)
            else:
                self._followers.extend(record.followers())
                record.post(delivery)
                delivery.fanout.unpark(delivery)
                return delivery
        return None

    def throttled(self, delivery: Delivery, now: float) -> None:
        """Its post was answered with 429."""
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
        else:  # it followed a probe, or was in flight beside the post that was rejected first
            record.follower_refused()
        if record.given_up:
            delivery.fanout.settle(delivery, Outcome.UNDELIVERED)
            return
        self._line_up(record, delivery, now)
        if record.probing is None and record.due == math.inf:
            self._wait(record, now)

    def _probe_throttled(self, record: StalledConnection[Delivery], delivery: Delivery, now: float) -> None:
        if record.is_new:
            self._rate.throttled(retry=True)
        record.probe_refused()
        delivery.stalled = None
        if record.given_up:
            delivery.fanout.settle(delivery, Outcome.UNDELIVERED)
            self._keep(record, now)
            return
        if record.does_not_read(now):
            delivery.fanout.settle(delivery, Outcome.UNDELIVERED)
            self._give_up(record, now)
            return
        self._line_up(record, delivery, now, again=True)
        self._wait(record, now)

    def _wait(self, record: StalledConnection[Delivery], now: float) -> None:
        seconds = record.retry_seconds(random.random(), account_throttles=self._rate.account_throttles)
        self._records.schedule(record, now + seconds)

    def passed(self, delivery: Delivery, now: float) -> None:
        """It was delivered; if it was a probe, what waits behind it follows."""
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
        self._go_on(record, now)

    def ended(self, delivery: Delivery, outcome: Outcome | None, now: float) -> None:
        """It has another outcome, or one that is not known yet. Where the connection is gone, it is so for all."""
        record = self._ended(delivery)
        if record is None:
            return
        if outcome is Outcome.GONE:
            for behind in list(record.line):
                if behind.joined_at_ms is None:
                    behind.joined_at_ms = delivery.joined_at_ms  # the same connection's age
            self._settle_line(record, outcome)
            self._records.remove(record)
        elif outcome is Outcome.UNDELIVERED or delivery.refusals > 1:
            self._dissolve(record)
        elif record.line:
            self._records.schedule(record, now)
        else:
            self._records.rest(record, now)

    def retry(self, delivery: Delivery, at: float) -> bool:
        """Whether it waits in line for a post at that time, after it has failed in another way than by a 429."""
        record = self._ended(delivery)
        if record is None:
            return False
        if record.probe_failed():
            self._dissolve(record)
            return False
        self._line_up(record, delivery, at, again=True)
        self._records.schedule(record, at)
        return True

    def closed(self, record: StalledConnection[Delivery], now: float, *, succeeded: bool) -> None:
        """How an attempt to close a connection ended."""
        self._metrics.slow_clients["closed" if succeeded else "failed"] += 1
        if succeeded:
            self._records.remove(record)
        else:
            self._keep(record, now)

    def _ended(self, delivery: Delivery) -> StalledConnection[Delivery] | None:
        """The record whose probe this was; None if it only followed one."""
        record, delivery.stalled = delivery.stalled, None
        if record is None or record.probing is not delivery:
            return None
        record.probing = None
        return record

    def _dissolve(self, record: StalledConnection[Delivery]) -> None:
        """It is no matter of a full buffer: each delivery goes its own way again."""
        waiting = list(record.line)
        self._records.remove(record)
        for delivery in waiting:
            record.leave(delivery)
            self._requeue(delivery)

    def _go_on(self, record: StalledConnection[Delivery], now: float) -> None:
        if record.line:
            self._records.schedule(record, now)
        else:
            self._records.remove(record)

    def _line_up(
        self, record: StalledConnection[Delivery], delivery: Delivery, now: float, *, again: bool = False
    ) -> None:
        if not delivery.fanout.stopped:
            record.line_up(delivery, now, again=again)
        delivery.fanout.waits(delivery)

    def _settle_line(self, record: StalledConnection[Delivery], outcome: Outcome) -> None:
        for delivery in list(record.line):
            delivery.fanout.unpark(delivery)
            delivery.fanout.settle(delivery, outcome)

    def _give_up(self, record: StalledConnection[Delivery], now: float) -> None:
        record.given_up = True
        close = self._close if self._close is not None and self._budget.spend(now) else None
        log.warning(
            "slow_client.given_up",
            connection=record.connection_id,
            rejected=record.refused,
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
        """It may read again one day."""
        record.probe_at = now + record.retry_seconds(random.random(), account_throttles=False)
        self._records.rest(record, now)
