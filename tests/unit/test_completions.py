"""Completions are written in few calls, whatever the table does, and never too many wait."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

from worker.decisions.checkpoint import Checkpoint
from worker.observe.health import Health
from worker.pipeline.completions import MAX_UNWRITTEN, Completions
from worker.ports import Claim, ProgressStore


class Store:
    """Writes when `go` is set. `fails` are raised first, and `unprocessed` are left out once."""

    def __init__(self, *, unprocessed: Sequence[str] = ()) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.fails = 0
        self.called = asyncio.Event()
        self.calls: list[list[str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._unprocessed = list(unprocessed)

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.go.wait()
        self.in_flight -= 1
        if self.fails:
            self.fails -= 1
            raise OSError
        left = [claim for claim in claims if claim.claimed_by in self._unprocessed]
        for claim in left:
            self._unprocessed.remove(claim.claimed_by)
        self.calls.append([claim.claimed_by for claim in claims if claim not in left])
        self.called.set()
        return left

    @property
    def written(self) -> list[str]:
        return sorted(each for call in self.calls for each in call)


def claim(number: int) -> Claim:
    name = f"{number:06d}"
    return Claim({"pk": {"S": name}, "sk": {"S": ""}}, "m", name, 1, Checkpoint(), 1)


def names(count: int) -> list[str]:
    return [claim(number).claimed_by for number in range(count)]


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Completions]:
    completions = Completions(cast(ProgressStore, store), Health())
    task = asyncio.create_task(completions.run())
    try:
        yield completions
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_one_alone_is_written_without_company() -> None:
    store = Store()
    async with running(store) as completions:
        await completions.add(claim(0))
        await store.called.wait()
    assert store.calls == [names(1)]


async def test_many_share_calls() -> None:
    store = Store()
    async with running(store) as completions:
        for number in range(110):
            await completions.add(claim(number))
        await completions.flush()
    assert [len(call) for call in store.calls] == [25, 25, 25, 25, 10]
    assert store.written == names(110)


async def test_what_fails_or_is_not_processed_is_repeated_and_holds_up_no_others() -> None:
    store = Store(unprocessed=["000003", "000040"])
    store.fails = 1
    async with running(store) as completions:
        for number in range(60):
            await completions.add(claim(number))
        await completions.flush()
    assert store.written == names(60)


async def test_a_table_that_hangs_bounds_what_waits() -> None:
    store = Store()
    store.go.clear()
    async with running(store) as completions:
        adding = [asyncio.create_task(completions.add(claim(number))) for number in range(MAX_UNWRITTEN + 50)]
        await asyncio.sleep(0.3)
        assert sum(task.done() for task in adding) == MAX_UNWRITTEN
        assert 1 < store.most_in_flight < 10
        store.go.set()
        await asyncio.gather(*adding)
        await completions.flush()
    assert store.written == names(MAX_UNWRITTEN + 50)
