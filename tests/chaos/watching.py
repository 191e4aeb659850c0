"""Looking at a worker from outside while something else happens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from tests.worker_process import WorkerProcess

T = TypeVar("T")
EVERY_SECONDS: Final = 0.5


@asynccontextmanager
async def sampled(read: Callable[[], Awaitable[T]]) -> AsyncIterator[list[T]]:
    """What it reads at the start of the block, every half second, and at the end. Raises what reading raises."""
    samples: list[T] = []

    async def keep_sampling() -> None:
        while True:
            samples.append(await read())
            await asyncio.sleep(EVERY_SECONDS)

    task = asyncio.create_task(keep_sampling())
    try:
        yield samples
        samples.append(await read())
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def rate_limit(worker: WorkerProcess) -> float:
    """Posts per second that the worker allows itself now."""
    return await worker.metric("gatecast_post_rate_limit")


async def is_ready(worker: WorkerProcess) -> bool:
    """Whether it says that nothing stops deliveries."""
    return (await worker.get("/readyz"))[0] == 200
