"""Writing down which broadcasts are completed, in batches, beside everything else.

A completed broadcast's message is deleted at once, and its completion is written a moment later, 25 in a call. So
completion costs no delivery and no deletion any time. If the message comes back all the same (SQS did not take the
deletion, or took it with a receipt that was superseded), its claim says that nothing is left to do.

What if we die in between? Then a message that comes back is delivered again, as far as its last checkpoint says: what
a kill repeats is what was settled in the last second anyway. At a stop `flush` writes what is left.

At most `MAX_UNWRITTEN` wait to be written. Beyond that broadcasts wait before their messages are deleted.
"""

import asyncio
from typing import Final

from worker.observe.health import Health
from worker.ports import Claim, DependencyError, ProgressStore
from worker.resilience import retry_forever

MAX_UNWRITTEN: Final = 1_000
_BATCH: Final = 25
_CALLS: Final = 4
"""In flight at once: one that has to be repeated holds up no others, and a slow table limits nobody."""
_GATHER_SECONDS: Final = 0.1


class Completions:
    """Give it claims with `add`; they are written while `run` runs."""

    def __init__(self, store: ProgressStore, health: Health) -> None:
        self._store = store
        self._health = health
        self._pending: list[Claim] = []
        self._unwritten = 0
        """Pending, or in a call."""
        self._flushing = False
        self._added = asyncio.Event()
        self._enough = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._room = asyncio.Semaphore(MAX_UNWRITTEN)
        self._calls = asyncio.Semaphore(_CALLS)

    async def add(self, claim: Claim) -> None:
        """All that was to be done for it has been done. Returns at once, as a rule."""
        await self._room.acquire()
        self._pending.append(claim)
        self._unwritten += 1
        self._written.clear()
        self._added.set()
        if len(self._pending) >= _BATCH:
            self._enough.set()

    async def flush(self) -> None:
        """Returns when all that was added has been written."""
        self._flushing = True
        self._enough.set()
        await self._written.wait()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as writing:
            while True:
                await self._gather()
                await self._calls.acquire()
                batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
                writing.create_task(self._write(batch))
                if not self._pending:
                    self._added.clear()
                if len(self._pending) < _BATCH and not self._flushing:
                    self._enough.clear()

    async def _gather(self) -> None:
        """Until there is a full batch, or something has waited for long enough."""
        await self._added.wait()
        try:
            async with asyncio.timeout(_GATHER_SECONDS):
                await self._enough.wait()
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
        self._calls.release()
        self._unwritten -= count
        for _ in range(count):
            self._room.release()
        if not self._unwritten:
            self._written.set()
