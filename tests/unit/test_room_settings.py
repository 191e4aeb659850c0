"""The cache of room settings: shared lookups, expiry, errors and bounds. In virtual time."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from gatecast.room_settings import RoomSettings, SettingsItem
from tests.pipeline_doubles import now
from tests.simulation import run
from worker.pipeline.room_settings import CACHE_SECONDS, RoomSettingsCache
from worker.ports import DependencyError, MemberTable

CALL_SECONDS = 0.5


class Table:
    """Records lookups. `shards` by room; a room in `unreadable` gets an error."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.shards: dict[str, int] = {}
        self.unreadable: set[str] = set()

    async def settings(self, names: Sequence[str]) -> list[SettingsItem | DependencyError]:
        self.calls.append(list(names))
        found = [
            DependencyError("UnprocessedKeys") if name in self.unreadable else SettingsItem(self.shards.get(name))
            for name in names
        ]
        await asyncio.sleep(CALL_SECONDS)
        return found


def run_cache(script: Callable[[Table, RoomSettingsCache], Coroutine[Any, Any, None]]) -> Table:
    table = Table()

    async def simulation() -> None:
        await script(table, RoomSettingsCache(cast(MemberTable, table), now))

    run(simulation())
    return table


def test_simultaneous_lookups_share_a_call() -> None:
    async def script(table: Table, cache: RoomSettingsCache) -> None:
        table.shards = {"a": 2, "b": 3}
        first, second = await asyncio.gather(cache.get("a"), cache.get("b"))
        assert (first, second) == (RoomSettings(2), RoomSettings(3))

    assert run_cache(script).calls == [["a", "*", "b"]]


def test_settings_are_cached_from_the_start_of_their_lookup() -> None:
    """If they were cached from the response, a slow read could outlast the time that operators are told to wait."""

    async def script(table: Table, cache: RoomSettingsCache) -> None:
        assert cache.cached("a") is None
        await cache.get("a")
        table.shards["a"] = 4
        await asyncio.sleep(CACHE_SECONDS - CALL_SECONDS - 0.1)
        assert await cache.get("a") == RoomSettings(1)
        await asyncio.sleep(0.2)
        assert cache.cached("a") is None
        assert await cache.get("a") == RoomSettings(4)

    assert run_cache(script).calls == [["a", "*"], ["a", "*"]]


def test_an_error_is_raised_for_its_room_alone_and_is_not_cached() -> None:
    async def script(table: Table, cache: RoomSettingsCache) -> None:
        table.unreadable = {"a"}
        failed, found = await asyncio.gather(cache.get("a"), cache.get("b"), return_exceptions=True)
        assert isinstance(failed, DependencyError)
        assert found == RoomSettings(1)
        table.unreadable.clear()
        assert await cache.get("a") == RoomSettings(1)

    assert run_cache(script).calls == [["a", "*", "b"], ["a"]]


def test_a_lookup_that_has_begun_is_used() -> None:
    async def script(table: Table, cache: RoomSettingsCache) -> None:
        table.shards["a"] = 2
        cache.begin("a")
        await asyncio.sleep(CALL_SECONDS / 2)
        assert await cache.get("a") == RoomSettings(2)
        assert cache.cached("a") == RoomSettings(2)

    assert run_cache(script).calls == [["a", "*"]]


def test_a_room_overrides_its_namespace_and_that_overrides_all_rooms() -> None:
    async def script(table: Table, cache: RoomSettingsCache) -> None:
        table.shards = {"*": 2, "chat/*": 3, "chat/a": 4}
        assert await cache.get("chat/a") == RoomSettings(4)
        assert await cache.get("chat/b") == RoomSettings(3)
        assert await cache.get("news") == RoomSettings(2)

    assert run_cache(script).calls == [["chat/a", "chat/*", "*"], ["chat/b"], ["news"]]


def test_the_cache_is_bounded_and_evicts_the_oldest_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.room_settings._MAX_ITEMS", 3)

    async def script(table: Table, cache: RoomSettingsCache) -> None:
        assert not table.calls
        for room in ("a", "b", "c"):
            await cache.get(room)
        assert [cache.cached(room) is not None for room in ("a", "b", "c")] == [False, True, True]

    run_cache(script)
