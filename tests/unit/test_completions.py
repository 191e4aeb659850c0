"""Completions are written in few calls, survive failures of the table, and wait in bounded numbers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

from worker.decisions.checkpoint import Checkpoint
from worker.observe.health import Health
from worker.pipeline.completions import MAX_UNWRITTEN, Completions
from worker.ports import Claim, DependencyError, ProgressStore


class Store:
    """Writes once `go` is set. The first `fails` calls raise; each claim in `unprocessed` is returned once."""

    def __init__(self, *, unprocessed: Sequence[str] = ()) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.fails = 0
        self.called = asyncio.Event()
        self.calls: list[list[str]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self._unprocessed = list(unprocessed)

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await self.go.wait()
        self.in_flight -= 1
        if self.fails:
            self.fails -= 1
            raise DependencyError("InternalError")
        unprocessed = [claim for claim in claims if claim.claim_id in self._unprocessed]
        for claim in unprocessed:
            self._unprocessed.remove(claim.claim_id)
        self.calls.append([claim.claim_id for claim in claims if claim not in unprocessed])
        self.called.set()
        return unprocessed

    @property
    def written(self) -> list[str]:
        return sorted(each for call in self.calls for each in call)


def claim(number: int) -> Claim:
    name = f"{number:06d}"
    return Claim({"pk": {"S": name}, "sk": {"S": ""}}, "m", name, 1, Checkpoint(), 1)


def names(count: int) -> list[str]:
    return [claim(number).claim_id for number in range(count)]


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


async def test_a_single_completion_is_written_without_waiting_for_others() -> None:
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


async def test_failed_and_unprocessed_completions_are_retried_and_hold_up_no_others() -> None:
    store = Store(unprocessed=["000003", "000040"])
    store.fails = 1
    async with running(store) as completions:
        for number in range(60):
            await completions.add(claim(number))
        await completions.flush()
    assert store.written == names(60)


async def test_while_the_table_hangs_the_number_of_waiting_completions_is_bounded() -> None:
    store = Store()
    store.go.clear()
    async with running(store) as completions:
        adding = [asyncio.create_task(completions.add(claim(number))) for number in range(MAX_UNWRITTEN + 50)]
        await asyncio.sleep(0.3)
        assert sum(task.done() for task in adding) == MAX_UNWRITTEN
        assert 1 < store.max_in_flight < 10
        store.go.set()
        await asyncio.gather(*adding)
        await completions.flush()
    assert store.written == names(MAX_UNWRITTEN + 50)
