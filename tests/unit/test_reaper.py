"""Removing gone connections: in which order, how fast, and which of them. In virtual time, with a table in memory."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest

from gatecast import table as keys
from gatecast.table import Key, RoomSettings
from tests.simulation import EPOCH, run
from worker.decisions.endpoint_health import EndpointHealth
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.reaper import CONNECTIONS_PER_SECOND, YOUNG_SECONDS, Reaper
from worker.ports import DependencyError, JoinedRoom, Page

LONG_AGO_MS = int(EPOCH * 1000) - 3_600_000


class MemoryTable:
    """`joined` by connection. `unprocessed` says how many items of each of the next batches are left over."""

    def __init__(self, joined: dict[str, list[JoinedRoom]] | None = None) -> None:
        self.joined = joined or {}
        self.calls: list[tuple[str, Any]] = []
        self.unprocessed: list[int] = []
        self.fails = 0
        self.querying = 0
        self.most_querying = 0

    async def remove_connections(self, connection_ids: Sequence[str]) -> list[str]:
        return await self._batch("connections", connection_ids)

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        kind = "memberships" if doomed[0]["pk"]["S"].startswith("room#") else "joined rooms"
        return await self._batch(kind, doomed)

    async def _batch(self, kind: str, items: Sequence[Any]) -> list[Any]:
        await self._call()
        assert 0 < len(items) <= 25
        assert len({str(item) for item in items}) == len(items), "a key twice is an error of the whole call"
        self.calls.append((kind, list(items)))
        return list(items[: self.unprocessed.pop(0)]) if self.unprocessed else []

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        self.querying += 1
        self.most_querying = max(self.querying, self.most_querying)
        await self._call()
        self.querying -= 1
        self.calls.append(("query", connection_id))
        return self.joined.get(connection_id, [])

    async def _call(self) -> None:
        await asyncio.sleep(0.005)
        if self.fails:
            self.fails -= 1
            raise OSError

    async def begin_page(self, room: str, shard: int, after: str = "") -> Page:
        raise NotImplementedError

    async def settings(self, rooms: Sequence[str]) -> Sequence[RoomSettings | DependencyError]:
        raise NotImplementedError

    async def connected_at_ms(self, connection_ids: Sequence[str]) -> dict[str, int]:
        raise NotImplementedError

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.calls]

    def deleted(self, kind: str) -> list[Any]:
        return [item for called, items in self.calls if called == kind for item in items]


class World:
    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.endpoint = EndpointHealth()
        self.metrics = Metrics(Health())
        clock = asyncio.get_running_loop().time
        self.reaper = Reaper(
            table,
            endpoint=self.endpoint,
            health=Health(clock=clock),
            metrics=self.metrics,
            clock=clock,
            wall_clock=lambda: EPOCH + clock(),
        )
        self.endpoint.succeeded(clock())


def reaping(table: MemoryTable, script: Callable[[World], Coroutine[Any, Any, None]]) -> World:
    """Runs the script beside a reaper, and then the reaper for another ten minutes."""
    worlds: list[World] = []

    async def simulation() -> None:
        worlds.append(world := World(table))
        task = asyncio.create_task(world.reaper.run())
        await script(world)
        await asyncio.sleep(600)
        assert not task.done()
        task.cancel()

    run(simulation())
    return worlds[0]


def test_connections_go_first_then_memberships_then_what_leads_to_them() -> None:
    ids = [f"c{number:02d}=" for number in range(25)]
    table = MemoryTable(
        {each: [JoinedRoom("@all", number % 4), JoinedRoom("lobby", 0)] for number, each in enumerate(ids)}
    )

    async def script(world: World) -> None:
        for each in ids:
            world.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    world = reaping(table, script)

    assert table.kinds() == ["connections", *["query"] * 25, *["memberships"] * 2, *["joined rooms"] * 2]
    assert table.deleted("connections") == ids
    memberships = [keys.key(f"room#@all#{n % 4}", each) for n, each in enumerate(ids)]
    memberships += [keys.key("room#lobby#0", each) for each in ids]
    joined = [keys.key(keys.connection_pk(each), f"room#{room}") for each in ids for room in ("@all", "lobby")]
    assert sorted(map(str, table.deleted("memberships"))) == sorted(map(str, memberships))
    assert sorted(map(str, table.deleted("joined rooms"))) == sorted(map(str, joined))
    assert world.metrics.memberships_reaped == 50
    assert table.most_querying == 8


def test_nothing_is_read_before_every_connection_item_is_gone_and_nothing_unprocessed_is_forgotten() -> None:
    table = MemoryTable({"a=": [JoinedRoom("lobby", 0)], "b=": [JoinedRoom("lobby", 0)]})
    table.unprocessed = [1, 1, 0, 2, 1, 0, 1, 0]

    async def script(world: World) -> None:
        for each in ("a=", "b="):
            world.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    reaping(table, script)

    connections, memberships, joined = ["connections"] * 3, ["memberships"] * 3, ["joined rooms"] * 2
    assert table.kinds() == [*connections, "query", "query", *memberships, *joined]
    assert [len(items) for kind, items in table.calls if kind != "query"] == [2, 1, 1, 2, 2, 1, 2, 1]


def test_a_table_that_fails_is_asked_again() -> None:
    table = MemoryTable({"a=": [JoinedRoom("lobby", 0)]})
    table.fails = 5

    async def script(world: World) -> None:
        world.reaper.offer("a=", ("lobby", 0), LONG_AGO_MS)

    reaping(table, script)

    assert table.kinds() == ["connections", "query", "memberships", "joined rooms"]


def test_a_membership_that_nothing_leads_to_is_removed_and_one_on_an_unknown_shard_stays() -> None:
    table = MemoryTable({"a=": [JoinedRoom("lobby", None), JoinedRoom("hall", None)]})

    async def script(world: World) -> None:
        world.reaper.offer("a=", ("lobby", 2), LONG_AGO_MS)
        world.reaper.offer("b=", ("hall", 1), LONG_AGO_MS)

    world = reaping(table, script)

    memberships = table.deleted("memberships")
    assert memberships == [keys.key("room#lobby#2", "a="), keys.key("room#hall#1", "b=")]
    assert len(table.deleted("joined rooms")) == 2
    assert world.metrics.memberships_reaped == 2


@pytest.mark.parametrize(
    ("age_seconds", "removed"), [(YOUNG_SECONDS - 0.1, False), (YOUNG_SECONDS, True), (-5.0, False)]
)
def test_a_connection_whose_connect_may_still_run_is_left_alone(age_seconds: float, *, removed: bool) -> None:
    """Waiting would not help: it may come to life after its 410, and then nothing is gone."""
    table = MemoryTable()

    async def script(world: World) -> None:
        await asyncio.sleep(60)
        joined_at_ms = int((EPOCH + 60 - age_seconds) * 1000)
        world.reaper.offer("young=", ("lobby", 0), joined_at_ms)
        await asyncio.sleep(YOUNG_SECONDS * 2)
        assert bool(table.calls) is removed
        if not removed and age_seconds > 0:
            world.reaper.offer("young=", ("lobby", 0), joined_at_ms)  # the next broadcast finds it again

    reaping(table, script)

    assert table.deleted("connections") == (["young="] if age_seconds > 0 else [])


def test_reaping_is_paced_and_what_is_too_much_is_dropped() -> None:
    table = MemoryTable()
    times: list[float] = []

    async def script(world: World) -> None:
        for number in range(100_000):
            world.reaper.offer(f"c{number}=", None)
        for _ in range(100):
            await asyncio.sleep(1)
            times.append(len(table.deleted("connections")))

    reaping(table, script)

    assert len(table.deleted("connections")) == 20_000
    per_second = [after - before for before, after in pairwise(times)]
    assert max(per_second) <= CONNECTIONS_PER_SECOND + 25


def test_what_comes_one_by_one_is_removed_in_batches() -> None:
    table = MemoryTable()

    async def script(world: World) -> None:
        for number in range(1_000):
            world.reaper.offer(f"c{number}=", None)
            await asyncio.sleep(0.005)

    reaping(table, script)

    assert len(table.deleted("connections")) == 1_000
    assert table.kinds().count("connections") < 120


def test_without_proof_nothing_is_removed() -> None:
    table = MemoryTable()

    async def script(world: World) -> None:
        await asyncio.sleep(3_600)
        for number in range(30):
            world.reaper.offer(f"c{number}=", None)
        await asyncio.sleep(60)
        assert world.reaper.unproven == 30
        world.reaper.offer("last=", None)
        await asyncio.sleep(1)
        world.endpoint.succeeded(asyncio.get_running_loop().time())

    world = reaping(table, script)

    assert table.deleted("connections") == ["last="]
    assert world.reaper.unproven == 0
