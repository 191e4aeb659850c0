"""When the numbers of members are written. In virtual time, with an in-memory table."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from gatecast import table as keys
from gatecast.room_settings import SettingsItem
from tests.memory_stores import MemoryPresence, TableState
from tests.simulation import EPOCH, run
from worker.pipeline.counts import INTERVAL_SECONDS, Counts
from worker.pipeline.room_settings import RoomSettingsCache
from worker.ports import Count, DependencyError, MemberTable

NOW_MS = int(EPOCH * 1000)


class Settings:
    """Rooms whose name begins with "p" have presence. Counts the reads."""

    def __init__(self) -> None:
        self.reads = 0

    async def settings(self, names: Sequence[str]) -> Sequence[SettingsItem | DependencyError]:
        self.reads += 1
        return [SettingsItem(presence=100 if each.startswith("p") else None) for each in names]


class CountsHarness:
    def __init__(self) -> None:
        clock = asyncio.get_running_loop().time
        self.state = TableState()
        self.written: list[Sequence[Count]] = []
        self.failing = False
        self.table = Settings()
        self.settings = RoomSettingsCache(cast(MemberTable, self.table), clock)
        self.counts = Counts(self, self.settings, clock=clock, wall_clock=lambda: EPOCH + clock())
        self._store = MemoryPresence(self.state, wall_clock=lambda: EPOCH + clock())

    async def is_present(self, room: str, user: str) -> bool:
        raise AssertionError((room, user))

    async def write_counts(self, counts: Sequence[Count]) -> None:
        await asyncio.sleep(0.01)
        self.written.append(counts)
        if self.failing:
            raise DependencyError("broken")
        await self._store.write_counts(counts)


def counting(script: Callable[[CountsHarness], Coroutine[Any, Any, None]]) -> CountsHarness:
    """Runs the script beside the task that writes, and then the task alone for a minute."""
    harnesses: list[CountsHarness] = []

    async def simulation() -> None:
        harnesses.append(harness := CountsHarness())
        task = asyncio.create_task(harness.counts.run())
        await script(harness)
        await asyncio.sleep(60)
        assert not task.done()
        task.cancel()

    run(simulation())
    return harnesses[0]


def test_a_count_is_written_with_its_time() -> None:
    async def script(harness: CountsHarness) -> None:
        await harness.settings.get("p")
        harness.counts.read("p", 3, 17)

    harness = counting(script)
    assert harness.state.get(keys.count_pk("p"), "3") == keys.count_item("p", 3, members=17, counted_at_ms=NOW_MS)


def test_a_shard_is_counted_once_per_interval() -> None:
    async def script(harness: CountsHarness) -> None:
        for number in range(300):
            await harness.settings.get("p")
            for shard in (0, 1):
                harness.counts.read("p", shard, number)
            await asyncio.sleep(0.1)

    harness = counting(script)
    assert [[each.shard for each in counts] for counts in harness.written] == [[0, 1]] * 3
    first, second, third = (counts[0].counted_at_ms for counts in harness.written)
    assert min(second - first, third - second) >= INTERVAL_SECONDS * 1_000


def test_rooms_without_presence_and_rooms_with_unknown_settings_cost_no_call() -> None:
    async def script(harness: CountsHarness) -> None:
        await harness.settings.get("without")
        reads = harness.table.reads
        harness.counts.read("without", 0, 5)
        harness.counts.read("p", 0, 5)
        await asyncio.sleep(60)
        assert harness.table.reads == reads
        await harness.settings.get("p")
        await harness.settings.get("without")
        harness.counts.read("p", 0, 6)

    harness = counting(script)
    assert [[each.members for each in counts] for counts in harness.written] == [[6]]


def test_counts_share_calls() -> None:
    async def script(harness: CountsHarness) -> None:
        await harness.settings.get("p")
        for shard in range(60):
            harness.counts.read("p", shard, shard)

    harness = counting(script)
    assert [len(counts) for counts in harness.written] == [25, 25, 10]


def test_counts_that_cannot_be_written_are_dropped_without_a_rush_of_calls() -> None:
    async def script(harness: CountsHarness) -> None:
        harness.failing = True
        for number in range(600):
            await harness.settings.get("p")
            harness.counts.read("p", number, number)
            await asyncio.sleep(0.1)
        assert 3 <= len(harness.written) <= 7
        harness.failing = False
        await asyncio.sleep(15)
        await harness.settings.get("p")
        harness.counts.read("p", 1_000, 1)

    harness = counting(script)
    assert harness.written[-1][-1].members == 1


def test_what_waits_and_what_is_remembered_is_bounded() -> None:
    async def script(harness: CountsHarness) -> None:
        await harness.settings.get("p")
        for shard in range(50_000):
            harness.counts.read("p", shard, 1)
        assert len(harness.counts._waiting) == 1_000
        assert len(harness.counts._counted_at) <= 20_000

    counting(script)
