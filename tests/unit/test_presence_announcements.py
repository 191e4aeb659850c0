"""What a broadcast of presence is delivered as. In virtual time, with an in-memory table."""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gatecast import Broadcast
from gatecast import table as keys
from gatecast.broadcast import Presence
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from gatecast.room_settings import MAX_PRESENCE, MAX_SHARDS, RoomSettings
from tests.memory_stores import MemoryPresence, MemoryTable, TableState
from tests.simulation import EPOCH, run
from worker.observe.health import Health
from worker.pipeline.presence import Announcement, Announcer, max_members
from worker.pipeline.room_settings import RoomSettingsCache
from worker.ports import DependencyError

NOW_MS = int(EPOCH * 1000)
SETTINGS = RoomSettings(presence=100)
READ_SECONDS = 0.5


class AnnouncerHarness:
    """An announcer whose reads take READ_SECONDS each, and fail while `failing`."""

    def __init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.state = TableState()
        self.reads = 0
        self.reading = 0
        self.max_reading = 0
        self.failing = False
        store = MemoryPresence(self.state, wall_clock=self.wall_clock, before_call=self._before_call)
        settings = RoomSettingsCache(MemoryTable(self.state, wall_clock=self.wall_clock), self.clock)
        self.announcer = Announcer(store, settings, Health(clock=self.clock), self.wall_clock)
        self.state.put({**keys.key(keys.settings_pk("lobby"), keys.SETTINGS_SK), "presence": {"N": "100"}})

    def wall_clock(self) -> float:
        return EPOCH + self.clock()

    async def _before_call(self, component: str, operation: str) -> None:
        assert (component, operation) == ("table", "is_present")
        self.reads += 1
        self.reading += 1
        self.max_reading = max(self.max_reading, self.reading)
        await asyncio.sleep(READ_SECONDS)
        self.reading -= 1
        if self.failing:
            raise DependencyError("broken")

    def enter(self, user: str, connection_id: str = "a=", *, expires_in: int = 3_600) -> None:
        expires_at = int(self.wall_clock()) + expires_in
        self.state.put(
            keys.presence_item("lobby", user, connection_id, joined_at_ms=NOW_MS - 1_000, expires_at=expires_at)
        )

    async def announced(self, broadcast: Broadcast) -> dict[str, Any] | None:
        """The frame, decoded."""
        announcement = await self.announcer.announcement(broadcast)
        if announcement is None:
            return None
        assert announcement.frame is not None
        decoded: dict[str, Any] = json.loads(announcement.frame)
        return decoded


def change(*, joined: tuple[str, ...] = (), departed: tuple[str, ...] = (), **fields: Any) -> Broadcast:
    target = {} if "connections" in fields else {"room": "lobby"}
    presence = Presence(joined=joined, departed=departed)
    return Broadcast(id="%presence/1", v=2, presence=presence, published_at_ms=NOW_MS - 7, **{**target, **fields})


def announcing(script: Callable[[AnnouncerHarness], Coroutine[Any, Any, None]]) -> AnnouncerHarness:
    harnesses: list[AnnouncerHarness] = []

    async def simulation() -> None:
        harnesses.append(AnnouncerHarness())
        await script(harnesses[0])

    run(simulation())
    return harnesses[0]


def test_a_join_is_announced_as_it_is_without_a_read() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        frame = await harness.announced(change(joined=("ann",)))
        assert frame == {"type": "presence", "room": "lobby", "joined": ["ann"], "departed": [], "at_ms": NOW_MS - 7}

    assert announcing(script).reads == 0


def test_a_late_join_is_announced_with_its_own_time_and_only_if_the_user_is_still_present() -> None:
    """A member that has joined since has no later event of this user to compare it with."""

    async def script(harness: AnnouncerHarness) -> None:
        await asyncio.sleep(DEPARTURE_DELAY_SECONDS + 1)
        assert await harness.announced(change(joined=("ann",))) is None
        harness.enter("ann")
        frame = await harness.announced(change(joined=("ann", "bob")))
        assert frame == {"type": "presence", "room": "lobby", "joined": ["ann"], "departed": [], "at_ms": NOW_MS - 7}

    assert announcing(script).reads == 3


def test_only_users_who_are_absent_are_announced_as_departed_at_a_time_before_the_read() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        harness.enter("ann", "x=")
        harness.enter("bob", "y=", expires_in=0)
        harness.enter("bobby", "z=")
        frame = await harness.announced(change(departed=("ann", "bob", "cid")))
        assert frame == {"type": "presence", "room": "lobby", "joined": [], "departed": ["bob", "cid"], "at_ms": NOW_MS}
        assert harness.clock() == READ_SECONDS

    announcing(script)


def test_if_all_are_present_nothing_is_announced_and_a_later_look_may_find_otherwise() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        harness.enter("ann")
        departure = change(departed=("ann",))
        assert await harness.announced(departure) is None
        harness.state.delete(keys.key(keys.presence_pk("lobby"), keys.presence_sk("ann", "a=")))
        frame = await harness.announced(departure)
        assert frame is not None
        assert frame["departed"] == ["ann"]
        assert frame["at_ms"] == NOW_MS + READ_SECONDS * 1_000

    announcing(script)


def test_in_a_broadcast_of_both_kinds_all_users_are_looked_up() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        harness.enter("ann")
        harness.enter("cid")
        frame = await harness.announced(change(joined=("ann", "bob"), departed=("cid", "dan")))
        assert frame == {"type": "presence", "room": "lobby", "joined": ["ann"], "departed": ["dan"], "at_ms": NOW_MS}

    announcing(script)


def test_without_users_nothing_is_announced() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        assert await harness.announced(change()) is None

    assert announcing(script).reads == 0


def test_in_a_room_without_presence_nothing_is_read_or_announced() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        for broadcast in (change(joined=("ann",), room="hall"), change(departed=("ann",), room="hall")):
            assert await harness.announced(broadcast) is None

    assert announcing(script).reads == 0


def test_a_read_that_fails_is_retried() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        harness.failing = True
        announced = asyncio.create_task(harness.announced(change(departed=("ann",))))
        await asyncio.sleep(60)
        assert not announced.done()
        harness.failing = False
        frame = await announced
        assert frame is not None
        assert frame["at_ms"] == NOW_MS, "a time before the read"

    announcing(script)


def test_many_users_are_looked_up_a_few_at_a_time() -> None:
    users = tuple(f"user{number}" for number in range(100))

    async def script(harness: AnnouncerHarness) -> None:
        frame = await harness.announced(change(departed=users))
        assert frame is not None
        assert tuple(frame["departed"]) == users

    harness = announcing(script)
    assert harness.reads == 100
    assert harness.max_reading == 8


def test_a_remainder_names_its_room_and_looks_again() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        remainder = change(departed=("ann",), connections=("a=",), origin_room="lobby")
        frame = await harness.announced(remainder)
        assert frame is not None
        assert frame["room"] == "lobby"
        harness.enter("ann")
        assert await harness.announced(remainder) is None

    announcing(script)


# The limit


def test_a_room_is_announced_to_up_to_its_limit_and_named_connections_always() -> None:
    assert max_members(change(joined=("ann",)), SETTINGS) == 100
    assert max_members(change(joined=("ann",), connections=("a=",), origin_room="lobby"), SETTINGS) == math.inf


@pytest.mark.parametrize("shards", [1, 2, 3, 16, 100, MAX_SHARDS])
@pytest.mark.parametrize("limit", [1, 2, 16, 100, MAX_PRESENCE])
def test_a_shard_of_a_room_within_its_limit_is_within_its_share(limit: int, shards: int) -> None:
    """Exactly: the members' numbers on one shard have a binomial distribution."""
    share = max_members(change(joined=("ann",), shard=0), RoomSettings(shards=shards, presence=limit))
    assert 1 <= share <= limit
    chance = sum(
        math.comb(limit, count) * (1 / shards) ** count * (1 - 1 / shards) ** (limit - count)
        for count in range(int(share) + 1, limit + 1)
    )
    assert chance < 2e-5


def test_of_a_room_at_twice_a_large_limit_no_shard_is_within_its_share() -> None:
    share = max_members(change(joined=("ann",), shard=3), RoomSettings(shards=16, presence=1_000))
    assert share < 2 * 1_000 / 16


def test_another_broadcast_is_delivered_as_it_is_to_any_number_of_members() -> None:
    async def script(harness: AnnouncerHarness) -> None:
        announcement = await harness.announcer.announcement(Broadcast(id="a", room="lobby", data="x"))
        assert announcement == Announcement(None, math.inf)

    announcing(script)
