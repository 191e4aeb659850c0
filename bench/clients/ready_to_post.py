"""The time that a ready delivery waits for its post in a paced engine.

Deliveries become ready one by one, evenly, `READY_PER_SECOND`; measured is the time from that moment until the request
has been written to its socket. Without pacing this would take a signature and a write. The tick, which lets one wake-up
handle many, and the permits of the token bucket add to it.

    python -m bench.clients.ready_to_post URL POSTS BYTES CONCURRENCY WARM_UP RATE
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Final

import uvloop

from bench.clients.engine import Bench, Members
from bench.clients.section import Arguments, wait_for_start
from worker.delivery.engine import Exchange
from worker.delivery.fanout import Delivery
from worker.transport.pool import Pool

READY_PER_SECOND: Final = 10_000
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


class _Timed(Delivery):
    ready_at: float = 0.0


class _Arriving(Members):
    """Members that become ready one after the other."""

    def __init__(self, posts: int, body: bytes) -> None:
        super().__init__(posts, body)
        self._posts = posts
        self._began = time.monotonic()
        self._ready_at = self._began

    @property
    def available(self) -> bool:
        return bool(self.remaining) and time.monotonic() >= self._ready_at

    def take(self) -> Delivery | None:
        if not self.available:
            return None
        delivery = _Timed(self, self.remaining.pop(), 0, self.body, ready_at=self._ready_at)
        self._ready_at = self._began + (self._posts - len(self.remaining)) / READY_PER_SECOND
        return delivery


class _TimedPool(Pool[Exchange]):
    """Records when requests have been written. A tick begins with `poll` and includes members ready by then."""

    waited: list[float]
    before_starting: Callable[[], None] | None = None

    def poll(self, now: float) -> None:
        super().poll(now)
        if self.before_starting is not None:
            self.before_starting()

    def send(self, exchange: Exchange, request: bytes, now: float) -> None:
        super().send(exchange, request, now)
        if isinstance(exchange, _Timed):
            self.waited.append(time.monotonic() - exchange.ready_at)


async def main() -> None:
    arguments = Arguments.parse()
    bench = Bench(arguments, _TimedPool)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.engine.run())
        await bench.warm_up()
        wait_for_start()
        waited = bench.pool.waited = []
        members = _Arriving(arguments.posts, arguments.body)

        def offer() -> None:
            if members.available:
                bench.engine.offer(members)

        bench.pool.before_starting = offer
        await bench.deliver(members)
        running.cancel()
    waited.sort()
    found = {f"p{percent:g}": waited[int(len(waited) * percent / 100)] * 1000 for percent in _PERCENTILES}
    print(json.dumps({**found, "maximum": waited[-1] * 1000}), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
