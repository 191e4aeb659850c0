"""A delivery engine on a fake pool, in virtual time."""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast
from urllib.parse import unquote

from msgspec import UNSET

from gatecast import Broadcast
from tests.pipeline_doubles import now, wall_clock
from tests.simulation import run
from worker.decisions.checkpoint import Checkpoint
from worker.delivery.engine import DeliveryEngine, Exchange
from worker.delivery.errands import Errand
from worker.delivery.fanout import Delivery, Fanout
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.ports import Member
from worker.transport.pool import ExchangeHandler, Pool
from worker.transport.responses import Response
from worker.transport.signing import Address, Credentials, Signer

LATENCY_SECONDS = 0.01
ADDRESS = Address.from_url("http://127.0.0.1:1/live")


class FakePool:
    """Responds to each post after `LATENCY_SECONDS` with the status from `respond`; None: the connection is reset."""

    def __init__(self, respond: Callable[[str, int], int | None], size: int) -> None:
        self.address = ADDRESS
        self.size = size
        self.problem: str | None = None
        self.in_flight = 0
        self.max_in_flight = 0
        self.polls = 0
        self.posts: list[tuple[str, str]] = []
        """(connection id, payload) of each post for a delivery, in order."""
        self.handler: ExchangeHandler[Exchange] | None = None
        self.broken = False
        self.errand_status: int | None = 410
        self._respond = respond
        self._nth: Counter[str] = Counter()
        self._responses: list[tuple[float, int, Exchange, int | None]] = []
        self._sequence = itertools.count()

    @property
    def open_connections(self) -> int:
        return self.size

    @property
    def idle(self) -> int:
        return self.size - self.in_flight

    @property
    def busy(self) -> bool:
        return self.in_flight > 0

    def send(self, exchange: Exchange, request: bytes, at: float) -> None:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if isinstance(exchange, Errand):
            status = self.errand_status
        else:
            connection_id = unquote(request.split(b" ", 2)[1].decode().rpartition("/")[2])
            self.posts.append((connection_id, request.rpartition(b"\r\n")[2].decode()))
            self._nth[connection_id] += 1
            status = self._respond(connection_id, self._nth[connection_id])
        heapq.heappush(self._responses, (at + LATENCY_SECONDS, next(self._sequence), exchange, status))

    def poll(self, at: float) -> None:
        self.polls += 1
        if self.broken:
            raise OSError("broken")
        assert self.handler is not None
        while self._responses and self._responses[0][0] <= at:
            _, _, exchange, status = heapq.heappop(self._responses)
            self.in_flight -= 1
            if status is None:
                self.handler.on_failure(exchange, "reset", LATENCY_SECONDS, at)
            elif status == 200:
                self.handler.on_plain_responses([exchange], [LATENCY_SECONDS], at)
            else:
                self.handler.on_response(exchange, Response(status, {}, b"", reusable=True), LATENCY_SECONDS, at)

    def resolved(self, addresses: object) -> None: ...

    def request_connections(self, more: int, at: float) -> None: ...

    def sweep(self, at: float) -> None: ...

    def close(self) -> None: ...


class EngineFixture:
    """An engine on a fake pool."""

    def __init__(
        self,
        respond: Callable[[str, int], int | None] = lambda _id, _nth: 200,
        *,
        size: int = 10,
        posts_per_second: float = 10_000,
        credentials: bool = True,
    ) -> None:
        self.pool = FakePool(respond, size)
        self.signer = Signer(ADDRESS, "eu-west-1", "execute-api")
        if credentials:
            self.signer.use(Credentials("a", "b"))
        self.metrics = Metrics(Health(clock=now))
        self.gone: list[str] = []
        self.engine = DeliveryEngine(
            signer=self.signer,
            pool=self._make_pool,
            posts_per_second=posts_per_second,
            metrics=self.metrics,
            clock=now,
            wall_clock=wall_clock,
        )

    def _make_pool(self, handler: ExchangeHandler[Exchange]) -> Pool[Exchange]:
        self.pool.handler = handler
        return cast(Pool[Exchange], self.pool)

    def fanout(self, broadcast: Broadcast) -> Fanout:
        return Fanout(
            broadcast,
            Checkpoint(),
            now,
            order=(0, 0),
            prior_rejections=None,
            totals=self.metrics.deliveries,
            gone=self._record_gone,
        )

    def offer(self, name: str, *members: str, joined_at_ms: int | None = 0, expires_at_ms: int | None = None) -> Fanout:
        """Offer the fan-out of a broadcast to a room; the broadcast's name is its room and its payload too."""
        fanout = self.fanout(
            Broadcast(id=name, room=name, data=name, expires_at_ms=UNSET if expires_at_ms is None else expires_at_ms)
        )
        fanout.add_page([Member(each, joined_at_ms) for each in members], last=True)
        self.engine.offer(fanout)
        return fanout

    def _record_gone(self, delivery: Delivery) -> None:
        self.gone.append(delivery.connection_id)


def run_engine(
    script: Callable[[EngineFixture], Coroutine[Any, Any, None]], make: Callable[[], EngineFixture] = EngineFixture
) -> EngineFixture:
    """Runs the script beside an engine."""
    made: list[EngineFixture] = []

    async def simulation() -> None:
        made.append(make())
        task = asyncio.create_task(made[0].engine.run())
        await script(made[0])
        assert not task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    run(simulation())
    return made[0]
