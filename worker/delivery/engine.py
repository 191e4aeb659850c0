"""The delivery engine: every post of this worker, for all broadcasts, on one pool of keep-alive connections.

Theory of operation. A *tick* runs about every millisecond while there is something to do, and once in a while when
there is not. It does everything in this order, in plain calls:

1. The pool reads whatever answers have come in. Each is judged (`outcome`) and either settles its delivery or puts it
   on a heap of due times, where it occupies nothing. The rate controller and the endpoint's health hear of each.
2. Once in a while: time-outs are swept, the rate limit is adjusted.
3. Deliveries whose time has come leave the heap and go first; then broadcasts take turns (`fairness`). As long as there
   are permits (`pacing`) and an idle connection, a delivery is taken up, its request is signed (`signing`) and sent.

So requests are written after all reads, one wake-up serves many answers, and a post costs no task, timer, future or
call of the SDK. Back-pressure needs no queue: a delivery is taken from its broadcast only when a connection is there.

While the endpoint fails for all (`endpoint`), only a few posts a second go out as probes, and nothing is given up.
"""

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from worker.delivery.endpoint import EndpointHealth
from worker.delivery.outcome import Meaning, Outcome, Tried, judge, meaning
from worker.delivery.pacing import Pacer
from worker.fairness import Rotation
from worker.fanout import Delivery, Fanout
from worker.http.answers import Answer
from worker.http.pool import Owner, Pool
from worker.http.resolving import keep_resolving
from worker.http.signing import Prepared, Signer
from worker.rate import RateController

_TICK_SECONDS: Final = 0.001
_STALLED_TICK_SECONDS: Final = 0.02
_IDLE_TICK_SECONDS: Final = 0.1
_SWEEP_SECONDS: Final = 1.0
_WARM_CONNECTIONS: Final = 2
_PROBES_PER_SECOND: Final = 50.0
"""So many that a room whose first hundreds of members fail comes to those that do not within seconds."""
_CHECKPOINT_SECONDS: Final = 0.1
"""How long a delivery that is due waits for its broadcast's checkpoint to be written."""
_RETRY: Final = 2
"""The second post of a delivery: what tells a client that does not read from an account that throttles."""
_OK: Final = 200
_OK_END: Final = 300


class PostMetrics(Protocol):
    """Where the engine counts its posts."""

    deliveries: dict[Outcome, int]

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
        pool: Callable[[Owner[Delivery]], Pool[Delivery]],
        posts_per_second: float,
        metrics: PostMetrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.rate = RateController(posts_per_second)
        self.endpoint = EndpointHealth()
        self._signer = signer
        self._pool = pool(self)
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._pacer = Pacer()
        self._rotation: Rotation[Delivery] = Rotation()
        self._heap: list[tuple[float, int, Delivery]] = []
        self._sequence = itertools.count()
        self._due: deque[Delivery] = deque()
        self._fresh_probe = False
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
    def delivers(self) -> bool:
        """Do posts get through, but for single connections that do not take them?"""
        return self.trouble() is None and not self.rate.account_throttles

    def trouble(self) -> str | None:
        """What stops deliveries now, in words for an operator; None while nothing does."""
        if not self._signer.ready:
            return "no credentials"
        if self._pool.trouble is not None:
            return self._pool.trouble
        return self.endpoint.trouble(self._clock())

    def offer(self, fanout: Fanout) -> None:
        """It has, or may have, something to deliver."""
        self._rotation.add(fanout)
        if self._idle and self._timer is not None:
            self._timer.cancel()
            self._schedule(0)

    def judge_again(self, delivery: Delivery) -> None:
        """Its age is known now: what does the 410 mean that it was answered with?"""
        self._decide(delivery, 410, self._clock())

    async def run(self) -> None:
        """Until cancelled. Whatever a tick raises is raised here."""
        self._failure = asyncio.get_running_loop().create_future()
        self._schedule(0)
        resolving = asyncio.create_task(keep_resolving(self._pool))
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
        if self._due or self._rotation:
            return _STALLED_TICK_SECONDS  # no connection, no permit or no credentials: it is not for us to hurry
        self._idle = True
        if self._heap:
            return min(_IDLE_TICK_SECONDS, max(_TICK_SECONDS, self._heap[0][0] - now))
        return _IDLE_TICK_SECONDS

    def _start_deliveries(self, now: float) -> None:
        pool = self._pool
        waiting = bool(self._due or self._rotation)
        if not waiting or not self._signer.ready:
            if pool.open_connections < _WARM_CONNECTIONS:
                pool.want(_WARM_CONNECTIONS - pool.open_connections, now)
            return
        holding = self.endpoint.holding
        permits = self._pacer.permits(_PROBES_PER_SECOND if holding else self.rate.limit, now)
        wall_clock = self._wall_clock()
        now_ms = wall_clock * 1000
        for_second = (int(wall_clock), self._signer.generation)
        idle = pool.idle
        most = min(permits, idle)
        started = 0
        while started < most:
            delivery = self._next(now, holding) if holding or self._due else self._rotation.take()
            if delivery is None:
                break
            fanout = delivery.fanout
            if now_ms >= fanout.expires_at_ms:
                fanout.settle(delivery, Outcome.EXPIRED)
                fanout.expire()
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
        if started == idle:
            pool.want(permits - started, now)
        self._pacer.spend(started)

    def _prepare(self, fanout: Fanout, second: int) -> Prepared:
        return self._signer.prepare(f"{self._signer.address.path}/@connections/", {}, fanout.payload, second)

    def _next(self, now: float, holding: bool) -> Delivery | None:
        """What waited and is due goes first; but while all fail, every other probe is one that has not failed yet."""
        if holding:
            self._fresh_probe = not self._fresh_probe
            if self._fresh_probe:
                return self._rotation.take() or self._next_due(now)
        return self._next_due(now) or self._rotation.take()

    def _next_due(self, now: float) -> Delivery | None:
        while self._due:
            delivery = self._due.popleft()
            fanout = delivery.fanout
            if not delivery.waiting or fanout.stopped:
                continue  # its fan-out is done with it, or has it in its checkpoint
            if not fanout.may_start:
                self._try_again(delivery, now + _CHECKPOINT_SECONDS)
                continue
            fanout.waits_no_longer(delivery)
            return delivery
        return None

    def _try_again(self, delivery: Delivery, at: float) -> None:
        heapq.heappush(self._heap, (at, next(self._sequence), delivery))

    # The pool's owner

    def answered_ordinarily(self, exchanges: Sequence[Delivery], seconds: list[float], now: float) -> None:
        """Delivered, as almost all are: what is counted is counted once a tick, not once a post."""
        self._metrics.delivered(seconds)
        self._delivered(exchanges, now)

    def answered(self, exchange: Delivery, answer: Answer, seconds: float, now: float) -> None:
        status = answer.status
        self._metrics.posted(status, seconds)
        if _OK <= status < _OK_END:
            self._delivered((exchange,), now)
            return
        fanout = exchange.fanout
        fanout.in_flight -= 1
        self._hear(exchange, status, f"status {status}", now)
        self._decide(exchange, status, now)
        if not fanout.in_rotation and fanout.available:
            self._rotation.add(fanout)

    def _delivered(self, deliveries: Sequence[Delivery], now: float) -> None:
        firsts = retries = 0
        for delivery in deliveries:
            firsts += not delivery.throttled
            retries += delivery.throttled and delivery.tries == _RETRY
            fanout = delivery.fanout
            fanout.in_flight -= 1
            fanout.delivered(delivery)
            if not fanout.in_rotation and fanout.available:
                self._rotation.add(fanout)
        self.endpoint.succeeded(now)
        self.rate.passed(firsts, retries, len(deliveries) - firsts - retries)
        self._metrics.deliveries[Outcome.DELIVERED] += len(deliveries)

    def failed(self, exchange: Delivery, reason: str, seconds: float, now: float) -> None:
        self._metrics.post_failed(seconds)
        exchange.fanout.in_flight -= 1
        self._hear(exchange, 0, reason, now)
        self._decide(exchange, 0, now)

    def _hear(self, delivery: Delivery, status: int, failure: str, now: float) -> None:
        match meaning(status):
            case Meaning.THROTTLED:
                if delivery.tries <= _RETRY and (not delivery.throttled or delivery.tries == _RETRY):
                    self.rate.throttled(retry=delivery.throttled)
                self._metrics.throttled(account=self.rate.account_throttles)
                delivery.throttled = True
            case Meaning.REFUSED | Meaning.FAILED as what:
                self.endpoint.failed(failure, now, first_attempt=delivery.tries == 1)
                if what is Meaning.REFUSED and self.endpoint.others_succeed(delivery.first_tried_at):
                    delivery.refusals += 1  # while all are refused it says nothing of this one
                return
            case what:
                retry = delivery.throttled and delivery.tries == _RETRY
                self.rate.passed(not delivery.throttled, retry, delivery.throttled and not retry)
                if what is Meaning.GONE:
                    self.endpoint.gone(now)
        self.endpoint.answered()

    def _decide(self, delivery: Delivery, status: int, now: float) -> None:
        fanout = delivery.fanout
        joined_at_ms = delivery.joined_at_ms
        if status == 410 and joined_at_ms is None:  # noqa: PLR2004 - gone, if it is not young
            fanout.ask_age(delivery)
            return
        tried = Tried(
            tries=delivery.tries,
            refusals=delivery.refusals,
            attempts=delivery.attempts + 1,
            first_tried_at=delivery.first_tried_at,
            age_seconds=None if joined_at_ms is None else self._wall_clock() - joined_at_ms / 1000,
        )
        verdict = judge(status, tried, rate=self.rate, endpoint=self.endpoint, now=now, dice=random.random())
        if isinstance(verdict, Outcome):
            fanout.settle(delivery, verdict)
            return
        delivery.attempts += verdict.counted
        self._try_again(delivery, now + verdict.after_seconds)
        fanout.waits(delivery)
