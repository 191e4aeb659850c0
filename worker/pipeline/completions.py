"""Record completed broadcasts in the table, in batches, in the background.

A completed broadcast's message is deleted at once, and its completion is written shortly after, 25 per call. So writing
completions delays neither deliveries nor deletions. If the message comes back nevertheless (SQS did not execute the
deletion, or executed it with a superseded receipt handle), its claim shows that nothing is left to do.

What if we die in between? Then a message that comes back is delivered again from its last checkpoint: a kill repeats
what was settled in the last second in any case. During a drain `flush` writes what is left.

At most `MAX_UNWRITTEN` completions wait to be written. Beyond that, broadcasts wait before their messages are deleted.
"""

import asyncio
from typing import Final

from worker.observe.health import Health
from worker.ports import Claim, DependencyError, ProgressStore
from worker.resilience import retry_forever

MAX_UNWRITTEN: Final = 1_000
_BATCH: Final = 25
_MAX_CALLS: Final = 4
"""Maximum number of calls in flight: a call that is retried delays no others, and a slow table is no bottleneck."""
_GATHER_SECONDS: Final = 0.1


class Completions:
    """Completed claims are passed to `add` and written while `run` runs."""

    def __init__(self, store: ProgressStore, health: Health) -> None:
        self._store = store
        self._health = health
        self._pending: list[Claim] = []
        self._unwritten = 0
        """Pending completions and those in a call."""
        self._flushing = False
        self._added = asyncio.Event()
        self._batch_ready = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._capacity = asyncio.Semaphore(MAX_UNWRITTEN)
        self._concurrency = asyncio.Semaphore(_MAX_CALLS)

    async def add(self, claim: Claim) -> None:
        """Record that this claim's broadcast is completed. Normally returns at once."""
        await self._capacity.acquire()
        self._pending.append(claim)
        self._unwritten += 1
        self._written.clear()
        self._added.set()
        if len(self._pending) >= _BATCH:
            self._batch_ready.set()

    async def flush(self) -> None:
        """Write all completions added so far. Returns when they are written."""
        self._flushing = True
        self._batch_ready.set()
        await self._written.wait()

    async def run(self) -> None:
        """Write completions until cancelled."""
        async with asyncio.TaskGroup() as writing:
            while True:
                await self._gather()
                await self._concurrency.acquire()
                batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
                writing.create_task(self._write(batch), name="write completions")
                if not self._pending:
                    self._added.clear()
                if len(self._pending) < _BATCH and not self._flushing:
                    self._batch_ready.clear()

    async def _gather(self) -> None:
        """Wait for a full batch, or until the first completion has waited for `_GATHER_SECONDS`."""
        await self._added.wait()
        try:
            async with asyncio.timeout(_GATHER_SECONDS):
                await self._batch_ready.wait()
        except TimeoutError:
            pass

    async def _write(self, claims: list[Claim]) -> None:
        count = len(claims)

        async def write() -> None:
            nonlocal claims
            claims = await self._store.complete(claims)
            if claims:
                raise DependencyError("UnprocessedItems")

        await retry_forever("checkpoint", self._health, write)
        self._concurrency.release()
        self._unwritten -= count
        for _ in range(count):
            self._capacity.release()
        if not self._unwritten:
            self._written.set()
