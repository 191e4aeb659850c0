"""The delivery engine: every post of this worker, for all broadcasts, on one pool of keep-alive connections.

Theory of operation. A *tick* runs about every millisecond while there is something to do, and every 0.1 s when there is
not. It runs these steps in order, in plain calls:

1. The pool reads all responses that have arrived. Each is classified (`outcome`) and either settles its delivery or
   puts it on a heap of due times, where it occupies neither a connection nor a permit. The rate controller
   (`rate`) and the endpoint's health (`endpoint_health`) are updated with each.
2. From time to time, timed-out requests are swept and the rate limit is adjusted.
3. Errands go first (`errands`). Then due deliveries (retries from the heap, and probes of connections that return 429,
   `slow_clients`) alternate with fresh ones, which are taken from the rooms in turn (`round_robin`). While there are
   permits (`token_bucket`) and an idle connection, the engine takes a delivery, signs its request (`signing`) and sends
   it. A delivery to a connection that returns 429 is not posted: it waits in that connection's line. Broadcasts that
   close connections go before others, with a small share of the rate (`kicks`).

So requests are written after all reads, one wake-up serves many responses, and a post costs no task, timer, future or
SDK call. Back-pressure needs no queue: a delivery is taken from its broadcast only when a connection is available.

While the endpoint fails for all (`endpoint_health`), only a few posts per second are sent, as probes, and nothing is
given up.
"""

import asyncio
import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, cast

from worker.decisions.backoff import backoff_seconds, given_up
from worker.decisions.endpoint_health import EndpointHealth
from worker.decisions.failure import FailedResponse
from worker.decisions.outcome import History, Outcome, StatusClass, classify, decide
from worker.decisions.rate import RateController
from worker.decisions.round_robin import RoundRobin
from worker.decisions.token_bucket import TokenBucket
from worker.delivery.bodies import Body
from worker.delivery.errands import Closing, Errand, Errands
from worker.delivery.fanout import Delivery, Fanout
from worker.delivery.kicks import FRAME_SECONDS, POOL_SHARE, KickFanout, Kicks
from worker.delivery.slow_clients import SlowClients
from worker.transport.pool import WARM_CONNECTIONS, ExchangeHandler, Pool
from worker.transport.resolver import refresh_addresses
from worker.transport.responses import Response
from worker.transport.signing import Prepared, Signer

_TICK_SECONDS: Final = 0.001
_STALLED_TICK_SECONDS: Final = 0.02
_IDLE_TICK_SECONDS: Final = 0.1
_SWEEP_SECONDS: Final = 1.0
_PROBES_PER_SECOND: Final = 50.0
"""High enough that a room whose first few hundred members fail reaches the others within seconds."""
_CHECKPOINT_SECONDS: Final = 0.1
"""How long a due delivery waits for its broadcast's checkpoint to be written."""
_OK: Final = 200
_OK_END: Final = 300
_GONE: Final = 410
_THROTTLED: Final = 429

Exchange = Delivery | Errand
"""An exchange of the engine's pool."""


class PostMetrics(Protocol):
    """The engine's counters of posts and of connections that were given up."""

    deliveries: dict[Outcome, int]
    slow_clients: dict[str, int]

    def delivered(self, seconds: list[float]) -> None:
        """Count posts that returned 200; `seconds` has the duration of each."""

    def posted(self, status: int, seconds: float) -> None: ...

    def post_failed(self, seconds: float) -> None: ...

    def throttled(self, *, account: bool) -> None: ...


class DeliveryEngine:
    """While `run` runs, takes deliveries from the fan-outs that were passed to `offer`, posts and settles them."""

    def __init__(
        self,
        *,
        signer: Signer,
        pool: Callable[[ExchangeHandler[Exchange]], Pool[Exchange]],
        posts_per_second: float,
        metrics: PostMetrics,
        close_slow_clients: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.rate = RateController(posts_per_second)
        self.endpoint = EndpointHealth()
        self._errands = Errands(rate=self.rate, endpoint=self.endpoint)
        self._due: deque[Delivery] = deque()
        self._slow = SlowClients(
            self.rate,
            metrics,
            close=self._errands.close_slow_client if close_slow_clients else None,
            requeue=self._due.append,
        )
        self._errands.slow = self._slow
        self._errands_in_flight = 0
        self._signer = signer
        self._pool: Pool[Exchange] = pool(self)
        self._kicks = Kicks(max(1, int(self._pool.size * POOL_SHARE)))
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._token_bucket = TokenBucket()
        self._round_robin: RoundRobin[Delivery] = RoundRobin()
        self._heap: list[tuple[float, int, Delivery]] = []
        self._sequence = itertools.count()
        self._take_fresh = False
        self._swept_at = clock()
        self._failure: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = True

    @property
    def in_flight(self) -> int:
        return self._pool.in_flight

    @property
    def open_connections(self) -> int:
        return self._pool.open_connections

    @property
    def stalled_connections(self) -> int:
        """The number of connections that returned 429 and have not yet accepted what waits for them."""
        return len(self._slow)

    @property
    def references(self) -> int:
        """The number of reference posts (to made-up connection ids) since the start."""
        return self._errands.references

    def problem(self) -> str | None:
        """Why nothing can be delivered now, as a text for operators; None if deliveries are possible."""
        if not self._signer.ready:
            return "no credentials"
        if self._pool.problem is not None:
            return self._pool.problem
        return self.endpoint.problem(self._clock())

    def offer(self, fanout: Fanout) -> None:
        """Take deliveries from this fan-out: it has, or may have, some."""
        self._add(fanout)
        self._wake()

    def _add(self, fanout: Fanout) -> None:
        (self._kicks if fanout.is_kick else self._round_robin).add(fanout)

    def close(self, closing: Closing) -> None:
        """Close a connection. `closing.on_end` is called when that has succeeded or failed."""
        self._errands.close(closing, self._clock())
        self._wake()

    def decide_gone(self, delivery: Delivery) -> None:
        """Decide what a 410 means, now that the age of the delivery's connection is known."""
        self._decide(delivery, _GONE, self._clock())

    def retry_later(self, delivery: Delivery) -> None:
        """Keep a delivery that could not be handed off: retry it here, after a back-off."""
        self._retry(delivery, self._clock() + backoff_seconds(delivery.attempts, random.random()))

    async def run(self) -> None:
        """Run until cancelled. Raises any exception that a tick raises."""
        self._failure = asyncio.get_running_loop().create_future()
        self._schedule(0)
        resolving = asyncio.create_task(refresh_addresses(self._pool), name="addresses of the endpoint")
        try:
            await asyncio.wait({self._failure, resolving}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
            resolving.result()
        finally:
            resolving.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._pool.close()

    def _wake(self) -> None:
        if self._idle and self._timer is not None:
            self._timer.cancel()
            self._schedule(0)

    def _schedule(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        assert self._failure is not None  # noqa: S101 - set by `run`
        self._idle = False
        try:
            now = self._clock()
            self._pool.poll(now)
            if now - self._swept_at >= _SWEEP_SECONDS:
                self._swept_at = now
                self._pool.sweep(now)
                self._slow.sweep(now)
            self.rate.adjust(now)
            while self._heap and self._heap[0][0] <= now:
                delivery = heapq.heappop(self._heap)[2]
                (self._kicks.retry if delivery.fanout.is_kick else self._due.append)(delivery)
            self._start_deliveries(now)
            self._schedule(self._seconds_to_next_tick(now))
        except Exception as error:  # noqa: BLE001 - the loop would only log it; it must end the service
            if not self._failure.done():
                self._failure.set_exception(error)

    def _seconds_to_next_tick(self, now: float) -> float:
        if self._pool.busy:
            return max(0.0, now + _TICK_SECONDS - self._clock())
        others_due_at = min(self._slow.due_at(), self._errands.due_at(), self._kicks.due_at())
        if self._due or self._round_robin or others_due_at <= now:
            return _STALLED_TICK_SECONDS  # no connection, no permit or no credentials: polling faster would not help
        self._idle = True
        due_at = min(self._heap[0][0] if self._heap else math.inf, others_due_at)
        return min(_IDLE_TICK_SECONDS, max(_TICK_SECONDS, due_at - now))

    def _start_deliveries(self, now: float) -> None:  # noqa: C901 - the hot path, in one piece
        pool = self._pool
        if not self._signer.ready:
            if pool.open_connections < WARM_CONNECTIONS:
                pool.request_connections(WARM_CONNECTIONS - pool.open_connections, now)
            return
        per_second = _PROBES_PER_SECOND if self.endpoint.holding else self.rate.limit
        permits = self._token_bucket.permits(per_second, now)
        wall_clock = self._wall_clock()
        now_ms = wall_clock * 1000
        for_second = (int(wall_clock), self._signer.generation)
        idle = pool.idle
        limit = min(permits, idle)
        started = self._start_errands(limit, for_second[0], now)
        stalled = self._slow.records
        take = self._round_robin.take
        if self._due or self._kicks.active or self._slow.due_at() <= now:
            take = partial(self._next, now, per_second)
        while started < limit:
            delivery = take()
            if delivery is None:
                break
            fanout = delivery.fanout
            if now_ms >= fanout.expires_at_ms:
                self._settle(delivery, Outcome.EXPIRED, now)
                fanout.expire()
                continue
            if (
                (delivery.connection_id in stalled or fanout.prior_rejections is not None)
                and delivery.stalled is None
                and self._slow.hold_back(delivery, now)
            ):
                continue
            body = delivery.body
            if body.prepared_for != for_second:
                body.prepared_for = for_second
                body.prepared = self._prepare(body, for_second[0])
            if not delivery.attempts:
                delivery.first_attempt_at = now
            delivery.attempts += 1
            fanout.in_flight += 1
            pool.send(delivery, body.prepared.request(delivery.connection_id), now)
            started += 1
        if started == idle and (self._due or self._round_robin or self._kicks.are_due(now)):
            pool.request_connections(permits - started, now)
        elif pool.open_connections < WARM_CONNECTIONS:
            pool.request_connections(WARM_CONNECTIONS - pool.open_connections, now)
        self._token_bucket.spend(started)

    def _start_errands(self, limit: int, second: int, now: float) -> int:
        """Send the errands that are due, up to `limit`; return how many were sent."""
        started = 0
        while started < limit and (errand := self._errands.next(now)) is not None:
            self._errands_in_flight += 1
            self._pool.send(errand, self._errand_request(errand, second), now)
            started += 1
        return started

    def _errand_request(self, errand: Errand, second: int) -> bytes:
        path = f"{self._signer.address.path}/@connections/"
        prepared = self._signer.prepare(path, {}, errand.payload, second, method=errand.method)
        return prepared.request(errand.connection_id)

    def _prepare(self, body: Body, second: int) -> Prepared:
        path = f"{self._signer.address.path}/@connections/"
        return self._signer.prepare(path, {}, body.payload, second, method=body.method)

    def _next(self, now: float, per_second: float) -> Delivery | None:
        """The next delivery: one of a kick, or due and fresh ones in turn, so that neither blocks the other."""
        if self._kicks.active and (kicked := self._next_kick(now, per_second)) is not None:
            return kicked
        self._take_fresh = not self._take_fresh
        if self._take_fresh:
            return self._round_robin.take() or self._next_due(now)
        return self._next_due(now) or self._round_robin.take()

    def _next_kick(self, now: float, per_second: float) -> Delivery | None:
        """The next delivery of a kick, if their share of the rate and of the pool allows one now."""
        if not self._kicks.are_due(now):
            return None
        delivery = self._take_due(self._kicks.due, now) or self._kicks.fresh.take()
        if delivery is not None:
            self._kicks.sent(per_second, now)
        return delivery

    def _next_due(self, now: float) -> Delivery | None:
        return self._take_due(self._due, now) or self._slow.next_probe(now)

    def _take_due(self, due: deque[Delivery], now: float) -> Delivery | None:
        while due:
            delivery = due.popleft()
            fanout = delivery.fanout
            if not delivery.waiting or fanout.stopped:
                continue  # it is settled or handed off, or its stopped fan-out has it in its checkpoint
            if not fanout.may_start:
                self._schedule_retry(delivery, now + _CHECKPOINT_SECONDS)
                continue
            fanout.stop_waiting(delivery)
            return delivery
        return None

    def _retry(self, delivery: Delivery, at: float, *, counted: bool = True) -> None:
        """Send the delivery's request again at this time.

        For a kick's frame that fails for too long, while others succeed (`counted`), the next request follows at once.
        """
        fanout = delivery.fanout
        is_late = counted and at - delivery.first_attempt_at > FRAME_SECONDS
        if is_late and delivery.body.then is not None and isinstance(fanout, KickFanout):
            fanout.skip_frame(delivery)
            self._add(fanout)
        else:
            self._schedule_retry(delivery, at)
            fanout.await_retry(delivery)

    def _schedule_retry(self, delivery: Delivery, at: float) -> None:
        heapq.heappush(self._heap, (at, next(self._sequence), delivery))

    # ExchangeHandler: called by the pool

    def on_plain_responses(self, exchanges: Sequence[Exchange], seconds: list[float], now: float) -> None:
        """Settle deliveries that succeeded, as almost all do. Counters are updated once per tick, not once per post."""
        if self._errands_in_flight:
            exchanges, seconds = self._without_errands(exchanges, seconds, now)
            if not exchanges:
                return
        self._metrics.delivered(seconds)
        self._delivered(cast(Sequence[Delivery], exchanges), now)

    def on_response(self, exchange: Exchange, response: Response, seconds: float, now: float) -> None:
        status = response.status
        if isinstance(exchange, Errand):
            self._errand_ended(exchange, status, now, FailedResponse(status, response.headers, response.body))
            return
        if exchange.body.method == "POST":
            self._metrics.posted(status, seconds)
        if _OK <= status < _OK_END:
            self._delivered((exchange,), now)
            return
        fanout = exchange.fanout
        fanout.in_flight -= 1
        fanout.outcomes.failed_posts += exchange.body.method == "POST"
        if status == _THROTTLED:
            self._throttled(exchange, now)
        else:
            self._record(exchange, status, FailedResponse(status, response.headers, response.body), now)
            self._decide(exchange, status, now)
        if not fanout.in_round_robin and fanout.available:
            self._add(fanout)

    def on_failure(self, exchange: Exchange, reason: str, seconds: float, now: float) -> None:
        if isinstance(exchange, Errand):
            self._errand_ended(exchange, 0, now, reason)
            return
        if exchange.body.method == "POST":
            self._metrics.post_failed(seconds)
        fanout = exchange.fanout
        fanout.in_flight -= 1
        fanout.outcomes.failed_posts += exchange.body.method == "POST"
        self._record(exchange, 0, reason, now)
        self._decide(exchange, 0, now)
        if not fanout.in_round_robin and fanout.available:
            self._add(fanout)

    def _errand_ended(self, errand: Errand, status: int, now: float, failure: object) -> None:
        self._errands_in_flight -= 1
        errand.on_end(status, now, failure)

    def _without_errands(
        self, exchanges: Sequence[Exchange], seconds: list[float], now: float
    ) -> tuple[list[Delivery], list[float]]:
        deliveries: list[Delivery] = []
        their_seconds: list[float] = []
        for exchange, each in zip(exchanges, seconds, strict=True):
            if isinstance(exchange, Errand):
                self._errand_ended(exchange, _OK, now, None)
            else:
                deliveries.append(exchange)
                their_seconds.append(each)
        return deliveries, their_seconds

    def _delivered(self, deliveries: Sequence[Delivery], now: float) -> None:
        probes = 0
        for delivery in deliveries:
            fanout = delivery.fanout
            fanout.in_flight -= 1
            fanout.delivered(delivery)
            if delivery.stalled is not None:
                probes += 1
                self._slow.passed(delivery, now)
            if not fanout.in_round_robin and fanout.available:
                self._add(fanout)
        self.endpoint.succeeded(now)
        self._passed(len(deliveries) - probes)
        self._metrics.deliveries[Outcome.DELIVERED] += len(deliveries)

    def _passed(self, posts: int) -> None:
        """Count posts that passed, to connections that had not returned 429 before."""
        self.rate.passed(posts)
        self._slow.references.passed += posts

    def _throttled(self, delivery: Delivery, now: float) -> None:
        self.endpoint.responded()
        is_post = delivery.body.method == "POST"
        if delivery.fanout.is_kick:
            self._kick_throttled(delivery, now)
        else:
            self._slow.throttled(delivery, now)
        if is_post:
            self._metrics.throttled(account=self.rate.account_throttles)

    def _kick_throttled(self, delivery: Delivery, now: float) -> None:
        """Retry a throttled request of a kick, or give it up.

        A request that deletes a connection concerns no client's buffer, so it is evidence that the account throttles.
        While that is notable, no attempt counts.
        """
        if delivery.body.then is None:
            self.rate.throttled(retry=False)
            self._slow.references.throttled += 1
            delivery.counted_attempts += not self.rate.account_throttles
            if given_up(delivery.counted_attempts, now - delivery.first_attempt_at):
                self._settle(delivery, Outcome.UNDELIVERED, now)
                return
        self._retry(delivery, now + backoff_seconds(delivery.attempts, random.random()))

    def retry_request(self, exchange: Exchange, now: float) -> bytes:
        """The same attempt, signed again: a stale connection is no failure of the endpoint or the member."""
        del now
        second = int(self._wall_clock())
        if isinstance(exchange, Errand):
            return self._errand_request(exchange, second)
        return self._prepare(exchange.body, second).request(exchange.connection_id)

    def _record(self, delivery: Delivery, status: int, failure: object, now: float) -> None:
        match classify(status):
            case StatusClass.REJECTED | StatusClass.FAILED as status_class:
                is_rejection = status_class is StatusClass.REJECTED
                self.endpoint.failed(failure, now, first_attempt=delivery.attempts == 1, rejected=is_rejection)
                if is_rejection and self.endpoint.others_succeed(delivery.first_attempt_at, rejected=True):
                    delivery.rejections += 1  # if all are rejected, it is no evidence against this connection
            case status_class:
                if delivery.stalled is None:
                    self._passed(1)
                if status_class is StatusClass.GONE:
                    self.endpoint.gone(now)
                self.endpoint.responded()

    def _decide(self, delivery: Delivery, status: int, now: float) -> None:
        joined_at_ms = delivery.joined_at_ms
        if status == _GONE and joined_at_ms is None:
            if delivery.stalled is not None:
                self._slow.ended(delivery, None, now)
            delivery.fanout.look_up_age(delivery)  # gone, unless it is young
            return
        history = History(
            attempts=delivery.attempts,
            rejections=delivery.rejections,
            counted_attempts=delivery.counted_attempts + 1,
            first_attempt_at=delivery.first_attempt_at,
            age_seconds=None if joined_at_ms is None else self._wall_clock() - joined_at_ms / 1000,
        )
        verdict = decide(status, history, endpoint=self.endpoint, now=now, jitter=random.random())
        if isinstance(verdict, Outcome):
            self._settle(delivery, verdict, now)
            return
        delivery.counted_attempts += verdict.counted
        at = now + verdict.after_seconds
        if delivery.stalled is not None and self._slow.retry(delivery, at):
            return
        self._retry(delivery, at, counted=verdict.counted)

    def _settle(self, delivery: Delivery, outcome: Outcome, now: float) -> None:
        if delivery.stalled is not None:
            self._slow.ended(delivery, outcome, now)
        delivery.fanout.settle(delivery, outcome)
