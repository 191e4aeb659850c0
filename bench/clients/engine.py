"""The delivery engine alone, with its pool, signatures, pacing and metrics, but without a queue or a table."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import uvloop

from bench.clients.section import Arguments, connection_ids, measured, tls
from gatecast.broadcast import Broadcast
from gatecast.frames import V1
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.outcome import Outcome
from worker.delivery.bodies import Body
from worker.delivery.engine import DeliveryEngine, Exchange
from worker.delivery.fanout import Delivery, Fanout
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.transport.pool import ExchangeHandler, Pool
from worker.transport.signing import Address, Credentials, Signer

P = TypeVar("P", bound=Pool[Exchange])


class Members(Fanout):
    """`posts` members, all available at once: no pages, no checkpoints."""

    def __init__(self, posts: int, body: bytes) -> None:
        super().__init__(
            Broadcast(id="benchmark", room="benchmark", data=body.decode()),
            Checkpoint(),
            time.monotonic,
            order=(0, 0),
            prior_rejections=None,
            totals=dict.fromkeys(Outcome, 0),
            gone=lambda _: None,
        )
        self.body = Body(body, V1)
        self.remaining = connection_ids(posts)
        self.remaining_posts = posts
        self.done = asyncio.Event()

    @property
    def available(self) -> bool:
        return bool(self.remaining)

    def take(self) -> Delivery | None:
        return Delivery(self, self.remaining.pop(), 0, self.body) if self.remaining else None

    def delivered(self, delivery: Delivery) -> None:
        del delivery
        self.remaining_posts -= 1
        if not self.remaining_posts:
            self.done.set()

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        raise RuntimeError(f"{delivery.connection_id}: {outcome}")

    def await_retry(self, delivery: Delivery) -> None:
        raise RuntimeError(f"{delivery.connection_id} has to be retried")


class Bench(Generic[P]):
    """An engine configured as in the worker, for one address."""

    pool: P

    def __init__(self, arguments: Arguments, pool_type: type[P], clock: Callable[[], float] = time.monotonic) -> None:
        self._arguments = arguments
        address = Address.from_url(arguments.url)
        signer = Signer(address, os.environ["AWS_REGION"], "execute-api")
        signer.use(
            Credentials(
                os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_SESSION_TOKEN"]
            )
        )

        def make_pool(handler: ExchangeHandler[Exchange]) -> Pool[Exchange]:
            self.pool = pool_type(address, size=arguments.concurrency, handler=handler, tls=tls())
            return self.pool

        self.metrics = Metrics(Health())
        self.engine = DeliveryEngine(
            signer=signer, pool=make_pool, posts_per_second=arguments.rate, metrics=self.metrics, clock=clock
        )

    async def warm_up(self) -> None:
        """Post until every connection is open, or no more of them are opened."""
        open_before = -1
        while open_before < self.pool.open_connections < self._arguments.concurrency:
            open_before = self.pool.open_connections
            await self.deliver(Members(self._arguments.warm_up, self._arguments.body))

    async def deliver(self, members: Members) -> None:
        self.engine.offer(members)
        await members.done.wait()


async def main() -> None:
    arguments = Arguments.parse()
    bench = Bench(arguments, Pool[Exchange])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.engine.run())
        await bench.warm_up()
        members = Members(arguments.posts, arguments.body)
        with measured(arguments.posts):
            await bench.deliver(members)
        running.cancel()


if __name__ == "__main__":
    uvloop.run(main())
