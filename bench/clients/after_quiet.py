"""How long an engine needs to reach a few members after a quiet spell, which it spends with connections kept open.

    python -m bench.clients.after_quiet URL POSTS BYTES CONCURRENCY WARM_UP RATE QUIET_SECONDS TIMES_AS_FAST

The warm-up opens the connections. Then QUIET_SECONDS pass for the engine, TIMES_AS_FAST as fast as on the wall; what
stands in between must be as much faster. POSTS are the members to reach afterwards, in ordinary time.
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
    """Monotonic seconds that can be made to pass faster."""

    def __init__(self) -> None:
        self._times = 1.0
        self._since = self._began = time.monotonic()

    def __call__(self) -> float:
        return self._began + (time.monotonic() - self._since) * self._times

    def run(self, times_as_fast: float) -> None:
        self._began, self._since = self(), time.monotonic()
        self._times = times_as_fast


class _Retried(Members):
    """Members that may have to wait for another attempt."""

    def waits(self, delivery: Delivery) -> None:
        Fanout.waits(self, delivery)


async def main() -> None:
    quiet_seconds, times_as_fast = map(float, sys.argv[-2:])
    del sys.argv[-2:]
    arguments = Arguments.parse()
    clock = _Clock()
    bench = Bench(arguments, Pool[Exchange], clock)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.engine.run())
        await bench.warm_up()
        wait_for_start()
        kept = bench.pool.open_connections
        clock.run(times_as_fast)
        await asyncio.sleep(quiet_seconds / times_as_fast)
        clock.run(1)
        unanswered = bench.metrics.posts_without_answer
        began = time.monotonic()
        await bench.deliver(_Retried(arguments.posts, arguments.body))
        measured = {
            "seconds": time.monotonic() - began,
            "kept": kept,
            "unanswered": bench.metrics.posts_without_answer - unanswered,
            "retried": bench.pool.retried,
        }
        running.cancel()
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
