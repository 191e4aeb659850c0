"""The time an engine takes to reach a few members after an idle period with keep-alive connections.

    python -m bench.clients.after_idle URL POSTS BYTES CONCURRENCY WARM_UP RATE IDLE_SECONDS SPEEDUP

The warm-up opens the connections. Then IDLE_SECONDS pass for the engine, SPEEDUP times as fast as real time; a NAT
gateway in between must be accelerated alike. Afterwards the engine reaches POSTS members, in real time.
"""

import asyncio
import json
import sys
import time

import uvloop

from bench.clients.engine import Bench, Members
from bench.clients.section import Arguments, wait_for_start
from worker.delivery.engine import Exchange
from worker.delivery.fanout import Delivery, Fanout
from worker.transport.pool import Pool


class _Clock:
    """A monotonic clock that can be accelerated."""

    def __init__(self) -> None:
        self._speedup = 1.0
        self._since = self._began = time.monotonic()

    def __call__(self) -> float:
        return self._began + (time.monotonic() - self._since) * self._speedup

    def run(self, speedup: float) -> None:
        self._began, self._since = self(), time.monotonic()
        self._speedup = speedup


class _RetriedMembers(Members):
    """Members whose deliveries may be retried."""

    def await_retry(self, delivery: Delivery) -> None:
        Fanout.await_retry(self, delivery)


async def main() -> None:
    idle_seconds, speedup = map(float, sys.argv[-2:])
    del sys.argv[-2:]
    arguments = Arguments.parse()
    clock = _Clock()
    bench = Bench(arguments, Pool[Exchange], clock)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.engine.run())
        await bench.warm_up()
        wait_for_start()
        kept = bench.pool.open_connections
        clock.run(speedup)
        await asyncio.sleep(idle_seconds / speedup)
        clock.run(1)
        remaining_posts = bench.metrics.posts_without_response
        began = time.monotonic()
        await bench.deliver(_RetriedMembers(arguments.posts, arguments.body))
        measured = {
            "seconds": time.monotonic() - began,
            "kept": kept,
            "failed": bench.metrics.posts_without_response - remaining_posts,
            "retried": bench.pool.retried,
        }
        running.cancel()
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
