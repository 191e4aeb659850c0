"""The delivery engine: every post of this worker, for all broadcasts, on one pool of keep-alive connections.

Theory of operation. A *tick* runs about every millisecond while there is something to do, and once in a while when
there is not. It does everything in this order, in plain calls:

1. The pool reads whatever answers have come in. Each is judged (`outcome`) and either settles its delivery or puts it
   on a heap of due times, where it occupies nothing. The rate controller and the endpoint's health hear of each.
2. Once in a while: time-outs are swept, the rate limit is adjusted.
3. Errands go first (`errands`). Then what is due (retries from the heap, and probes of connections that return 429,
   `slow_clients`) and what has not been posted yet take turns, and among the latter rooms do (`fairness`). As long as
   there are permits (`pacing`) and an idle connection, a delivery is taken up, its request is signed (`signing`) and
   sent. One to a connection that returns 429 is not posted: it waits in that connection's line.

So requests are written after all reads, one wake-up serves many answers, and a post costs no task, timer, future or
call of the SDK. Back-pressure needs no queue: a delivery is taken from its broadcast only when a connection is there.

While the endpoint fails for all (`endpoint`), only a few posts a second go out as probes, and nothing is given up.
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

from worker.decisions.backoff import backoff_seconds
from worker.decisions.endpoint_health import EndpointHealth
from worker.decisions.outcome import History, Meaning, Outcome, judge, meaning
from worker.decisions.rate import RateController
from worker.decisions.round_robin import RoundRobin
from worker.decisions.token_bucket import TokenBucket
from worker.delivery.errands import Errand, Errands
from worker.delivery.fanout import Delivery, Fanout
from worker.delivery.slow_clients import SlowClients
from worker.transport.pool import WARM_CONNECTIONS, ExchangeHandler, Pool
from worker.transport.resolver import refresh_addresses
from worker.transport.responses import Answer
from worker.transport.signing import Prepared, Signer

_TICK_SECONDS: Final = 0.001
_STALLED_TICK_SECONDS: Final = 0.02
_IDLE_TICK_SECONDS: Final = 0.1
_SWEEP_SECONDS: Final = 1.0
_PROBES_PER_SECOND: Final = 50.0
"""So many that a room whose first hundreds of members fail comes to those that do not within seconds."""
_CHECKPOINT_SECONDS: Final = 0.1
"""How long a delivery that is due waits for its broadcast's checkpoint to be written."""
_OK: Final = 200
_OK_END: Final = 300
_GONE: Final = 410
_THROTTLED: Final = 429

Exchange = Delivery | Errand
"""What the engine's pool carries."""


class PostMetrics(Protocol):
    """Where the engine counts its posts, and the connections that were given up."""

    deliveries: dict[Outcome, int]
    slow_clients: dict[str, int]

    def delivered(self, seconds: list[float]) -> None:
        """Posts that were answered with 200, by how long each took."""

    def posted(self, status: int, seconds: float) -> None: ...

    def post_failed(self, seconds: float) -> None: ...

    def throttled(self, *, account: bool) -> None: ...


class DeliveryEngine:
    """Takes deliveries from the fan-outs that are `offer`ed and settles them, while `run` runs."""

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
            close=self._errands.close if close_slow_clients else None,
            requeue=self._due.append,
        )
        self._errands.slow = self._slow
        self._errands_in_flight = 0
        self._signer = signer
        self._pool: Pool[Exchange] = pool(self)
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
        """Connections that returned 429 and have not taken since what waits for them."""
        return len(self._slow)

    @property
    def references(self) -> int:
        """Posts to made-up connections since the start."""
        return self._errands.references

    def problem(self) -> str | None:
        """What stops deliveries now, in words for an operator; None while nothing does."""
        if not self._signer.ready:
            return "no credentials"
        if self._pool.problem is not None:
            return self._pool.problem
        return self.endpoint.problem(self._clock())

    def offer(self, fanout: Fanout) -> None:
        """It has, or may have, something to deliver."""
        self._round_robin.add(fanout)
        if self._idle and self._timer is not None:
            self._timer.cancel()
            self._schedule(0)

    def judge_again(self, delivery: Delivery) -> None:
        """Its age is known now: what does the 410 mean that it was answered with?"""
        self._decide(delivery, _GONE, self._clock())

    def retry_later(self, delivery: Delivery) -> None:
        """It was to go on elsewhere and cannot: it waits here again."""
        self._try_again(delivery, self._clock() + backoff_seconds(delivery.tries, random.random()))
        delivery.fanout.waits(delivery)

    async def run(self) -> None:
        """Until cancelled. Whatever a tick raises is raised here."""
        self._failure = asyncio.get_running_loop().create_future()
        self._schedule(0)
        resolving = asyncio.create_task(refresh_addresses(self._pool))
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

    def _schedule(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        assert self._failure is not None  # noqa: S101 - `run` has made it
        try:
            now = self._clock()
            self._pool.poll(now)
            if now - self._swept_at >= _SWEEP_SECONDS:
                self._swept_at = now
                self._pool.sweep(now)
                self._slow.sweep(now)
            self.rate.adjust(now)
            while self._heap and self._heap[0][0] <= now:
                self._due.append(heapq.heappop(self._heap)[2])
            self._start_deliveries(now)
            self._schedule(self._seconds_to_next_tick(now))
        except Exception as error:  # noqa: BLE001 - a callback's error would go to the loop; it must end the service
            if not self._failure.done():
                self._failure.set_exception(error)

    def _seconds_to_next_tick(self, now: float) -> float:
        self._idle = False
        if self._pool.busy:
            return max(0.0, now + _TICK_SECONDS - self._clock())
        if self._due or self._round_robin or min(self._slow.due_at(), self._errands.due_at()) <= now:
            return _STALLED_TICK_SECONDS  # no connection, no permit or no credentials: it is not for us to hurry
        self._idle = True
        due_at = min(self._heap[0][0] if self._heap else math.inf, self._slow.due_at(), self._errands.due_at())
        return min(_IDLE_TICK_SECONDS, max(_TICK_SECONDS, due_at - now))

    def _start_deliveries(self, now: float) -> None:  # noqa: C901 - the hot path, in one piece
        pool = self._pool
        if not self._signer.ready:
            if pool.open_connections < WARM_CONNECTIONS:
                pool.want(WARM_CONNECTIONS - pool.open_connections, now)
            return
        holding = self.endpoint.holding
        permits = self._token_bucket.permits(_PROBES_PER_SECOND if holding else self.rate.limit, now)
        wall_clock = self._wall_clock()
        now_ms = wall_clock * 1000
        for_second = (int(wall_clock), self._signer.generation)
        idle = pool.idle
        most = min(permits, idle)
        started = self._start_errands(most, for_second[0], now)
        stalled = self._slow.records
        take = self._round_robin.take
        if self._due or self._slow.due_at() <= now:
            take = partial(self._next, now)
        while started < most:
            delivery = take()
            if delivery is None:
                break
            fanout = delivery.fanout
            if now_ms >= fanout.expires_at_ms:
                self._settle(delivery, Outcome.EXPIRED, now)
                fanout.expire()
                continue
            if (
                (delivery.connection_id in stalled or fanout.carried is not None)
                and delivery.stalled is None
                and self._slow.holds_back(delivery, now)
            ):
                continue
            prepared = fanout.prepared
            if prepared is None or fanout.prepared_for != for_second:
                fanout.prepared_for = for_second
                prepared = fanout.prepared = self._prepare(fanout, for_second[0])
            if not delivery.tries:
                delivery.first_tried_at = now
            delivery.tries += 1
            fanout.in_flight += 1
            pool.send(delivery, prepared.request(delivery.connection_id), now)
            started += 1
        if started == idle and (self._due or self._round_robin):
            pool.want(permits - started, now)
        elif pool.open_connections < WARM_CONNECTIONS:
            pool.want(WARM_CONNECTIONS - pool.open_connections, now)
        self._token_bucket.spend(started)

    def _start_errands(self, limit: int, second: int, now: float) -> int:
        """How many were started."""
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

    def _prepare(self, fanout: Fanout, second: int) -> Prepared:
        return self._signer.prepare(f"{self._signer.address.path}/@connections/", {}, fanout.payload, second)

    def _next(self, now: float) -> Delivery | None:
        """What is due and what has not been posted yet take turns, so that neither holds up the other."""
        self._take_fresh = not self._take_fresh
        if self._take_fresh:
            return self._round_robin.take() or self._next_due(now)
        return self._next_due(now) or self._round_robin.take()

    def _next_due(self, now: float) -> Delivery | None:
        while self._due:
            delivery = self._due.popleft()
            fanout = delivery.fanout
            if not delivery.waiting or fanout.stopped:
                continue  # its fan-out is done with it, or has it in its checkpoint
            if not fanout.may_start:
                self._try_again(delivery, now + _CHECKPOINT_SECONDS)
                continue
            fanout.unpark(delivery)
            return delivery
        return self._slow.next_probe(now)

    def _try_again(self, delivery: Delivery, at: float) -> None:
        heapq.heappush(self._heap, (at, next(self._sequence), delivery))

    # The pool's owner

    def on_plain_responses(self, exchanges: Sequence[Exchange], seconds: list[float], now: float) -> None:
        """Delivered, as almost all are: what is counted is counted once a tick, not once a post."""
        if self._errands_in_flight:
            exchanges, seconds = self._without_errands(exchanges, seconds, now)
            if not exchanges:
                return
        self._metrics.delivered(seconds)
        self._delivered(cast(Sequence[Delivery], exchanges), now)

    def answered(self, exchange: Exchange, answer: Answer, seconds: float, now: float) -> None:
        status = answer.status
        if isinstance(exchange, Errand):
            self._errand_ended(exchange, status, now)
            return
        self._metrics.posted(status, seconds)
        if _OK <= status < _OK_END:
            self._delivered((exchange,), now)
            return
        fanout = exchange.fanout
        fanout.in_flight -= 1
        if status == _THROTTLED:
            self._throttled(exchange, now)
        else:
            self._hear(exchange, status, f"status {status}", now)
            self._decide(exchange, status, now)
        if not fanout.in_round_robin and fanout.available:
            self._round_robin.add(fanout)

    def failed(self, exchange: Exchange, reason: str, seconds: float, now: float) -> None:
        if isinstance(exchange, Errand):
            self._errand_ended(exchange, 0, now)
            return
        self._metrics.post_failed(seconds)
        fanout = exchange.fanout
        fanout.in_flight -= 1
        self._hear(exchange, 0, reason, now)
        self._decide(exchange, 0, now)
        if not fanout.in_round_robin and fanout.available:
            self._round_robin.add(fanout)

    def _errand_ended(self, errand: Errand, status: int, now: float) -> None:
        self._errands_in_flight -= 1
        errand.ended(status, now)

    def _without_errands(
        self, exchanges: Sequence[Exchange], seconds: list[float], now: float
    ) -> tuple[list[Delivery], list[float]]:
        deliveries: list[Delivery] = []
        their_seconds: list[float] = []
        for exchange, each in zip(exchanges, seconds, strict=True):
            if isinstance(exchange, Errand):
                self._errand_ended(exchange, _OK, now)
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
                self._round_robin.add(fanout)
        self.endpoint.succeeded(now)
        self._passed(len(deliveries) - probes)
        self._metrics.deliveries[Outcome.DELIVERED] += len(deliveries)

    def _passed(self, posts: int) -> None:
        """So many posts to connections that were not refused before got through."""
        self.rate.passed(posts)
        self._slow.references.passed += posts

    def _throttled(self, delivery: Delivery, now: float) -> None:
        self.endpoint.answered()
        self._slow.throttled(delivery, now)
        self._metrics.throttled(account=self.rate.account_throttles)

    def retry_request(self, exchange: Exchange, now: float) -> bytes:
        """The same attempt once more, for its connection had died: no failure of the endpoint's or the member's."""
        del now
        second = int(self._wall_clock())
        if isinstance(exchange, Errand):
            return self._errand_request(exchange, second)
        return self._prepare(exchange.fanout, second).request(exchange.connection_id)

    def _hear(self, delivery: Delivery, status: int, failure: str, now: float) -> None:
        match meaning(status):
            case Meaning.REFUSED | Meaning.FAILED as what:
                is_refusal = what is Meaning.REFUSED
                self.endpoint.failed(failure, now, first_attempt=delivery.tries == 1, rejected=is_refusal)
                if is_refusal and self.endpoint.others_succeed(delivery.first_tried_at, rejected=True):
                    delivery.refusals += 1  # while all are refused it says nothing of this one
            case what:
                if delivery.stalled is None:
                    self._passed(1)
                if what is Meaning.GONE:
                    self.endpoint.gone(now)
                self.endpoint.answered()

    def _decide(self, delivery: Delivery, status: int, now: float) -> None:
        joined_at_ms = delivery.joined_at_ms
        if status == _GONE and joined_at_ms is None:
            if delivery.stalled is not None:
                self._slow.ended(delivery, None, now)
            delivery.fanout.ask_age(delivery)  # gone, if it is not young
            return
        history = History(
            tries=delivery.tries,
            refusals=delivery.refusals,
            attempts=delivery.attempts + 1,
            first_tried_at=delivery.first_tried_at,
            age_seconds=None if joined_at_ms is None else self._wall_clock() - joined_at_ms / 1000,
        )
        verdict = judge(status, history, endpoint=self.endpoint, now=now, jitter=random.random())
        if isinstance(verdict, Outcome):
            self._settle(delivery, verdict, now)
            return
        delivery.attempts += verdict.counted
        at = now + verdict.after_seconds
        if delivery.stalled is not None and self._slow.retry(delivery, at):
            return
        self._try_again(delivery, at)
        delivery.fanout.waits(delivery)

    def _settle(self, delivery: Delivery, outcome: Outcome, now: float) -> None:
        if delivery.stalled is not None:
            self._slow.ended(delivery, outcome, now)
        delivery.fanout.settle(delivery, outcome)
