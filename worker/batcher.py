"""Combine single requests that are made within a short time into batch calls.

A batcher is `urgent` if deliveries wait for its results. While no call is in flight, an urgent batcher sends a request
at once, together with all others of the same iteration of the event loop; while a call is in flight, requests wait for
others to share a call with. A batcher that is not urgent always waits, so that it makes fewer calls.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls `call` with at most `max_items` items, at the latest `wait_seconds` after the first of them was submitted.

    `call` returns one result per item, in order. An error that it raises is raised to each of the callers.
    """

    def __init__(
        self,
        call: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_items: int,
        wait_seconds: float,
        urgent: bool,
    ) -> None:
        self._call = call
        self._max_items = max_items
        self._wait_seconds = wait_seconds
        self._urgent = urgent
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._timer: asyncio.Handle | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, item: T) -> R:
        return await self.begin(item)

    def begin(self, item: T) -> "asyncio.Future[R]":
        """Submit an item now. The result may be awaited later, or never."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        result.add_done_callback(_retrieve)
        self._waiting.append((item, result))
        if len(self._waiting) >= self._max_items:
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
        task = asyncio.create_task(self._run(batch), name="batch")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = list(zip(batch, await self._call([item for item, _ in batch]), strict=True))
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in results:
                if not future.done():
                    future.set_result(result)


def _retrieve(result: "asyncio.Future[R]") -> None:
    """Mark the error as retrieved, so that asyncio does not log it if no caller awaits the result any more."""
    if not result.cancelled():
        result.exception()
