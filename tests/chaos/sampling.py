"""Observing a worker from outside while something else happens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from tests.worker_process import WorkerProcess

T = TypeVar("T")
SAMPLE_INTERVAL_SECONDS: Final = 0.5


@asynccontextmanager
async def sampled(read: Callable[[], Awaitable[T]]) -> AsyncIterator[list[T]]:
    """Call `read` at the start of the block, every half second, and at the end. Its exceptions propagate."""
    samples: list[T] = []

    async def keep_sampling() -> None:
        while True:
            samples.append(await read())
            await asyncio.sleep(SAMPLE_INTERVAL_SECONDS)

    task = asyncio.create_task(keep_sampling())
    try:
        yield samples
        samples.append(await read())
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def rate_limit(worker: WorkerProcess) -> float:
    """The worker's current rate limit, in posts per second."""
    return await worker.metric("gatecast_post_rate_limit")


async def is_ready(worker: WorkerProcess) -> bool:
    """Whether the worker reports itself ready."""
    return (await worker.get("/readyz"))[0] == 200
