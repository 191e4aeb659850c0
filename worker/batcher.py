"""Many single requests, few calls: what is asked for within a moment shares a batch call.

What a delivery waits for is `urgent`: while no call is in flight a request goes out at once, with all that are asked
for in the same turn of the loop, and only beside a call that is in flight do requests wait a moment for others. What
nobody waits for always waits for company, so that fewer calls are made.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls `call` with at most `most` items, at the latest `wait_seconds` after the first of them was asked for.

    `call` answers one result an item, in order. What it raises, each of the askers gets.
    """

    def __init__(
        self,
        call: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most: int,
        wait_seconds: float,
        urgent: bool,
    ) -> None:
        self._call = call
        self._most = most
        self._wait_seconds = wait_seconds
        self._urgent = urgent
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._timer: asyncio.Handle | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, item: T) -> R:
        return await self.begin(item)

    def begin(self, item: T) -> "asyncio.Future[R]":
        """Ask now and await the result later, or never."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        result.add_done_callback(_retrieve)
        self._waiting.append((item, result))
        if len(self._waiting) >= self._most:
            self._flush()
        elif self._timer is None:
            at_once = self._urgent and not self._calls
            self._timer = loop.call_soon(self._flush) if at_once else loop.call_later(self._wait_seconds, self._flush)
        return result

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        task = asyncio.create_task(self._run(batch))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = list(zip(batch, await self._call([item for item, _ in batch]), strict=True))
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, answer), result in results:
                if not answer.done():
                    answer.set_result(result)


def _retrieve(result: "asyncio.Future[R]") -> None:
    """An error that nobody waits for any more is no news."""
    if not result.cancelled():
        result.exception()
