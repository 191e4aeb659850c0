"""Which gone connections are removed, in which order and at what rate. In virtual time, with an in-memory table."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest
from msgspec import UNSET, UnsetType
from structlog.testing import capture_logs

from gatecast import decode
from gatecast import table as keys
from gatecast.table import Key
from tests.memory_stores import MemoryTable, TableState
from tests.pipeline_doubles import FakeQueue
from tests.simulation import EPOCH, LONG_AGO_MS, run
from worker.decisions.endpoint_health import EndpointHealth
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.departures import Departures
from worker.pipeline.reaper import CONNECTIONS_PER_SECOND, YOUNG_SECONDS, Reaper
from worker.pipeline.removal import MembershipRemoval
from worker.pipeline.sender import Sender
from worker.ports import DependencyError, JoinedRoom, MessageRejected, PortError

EXPIRES_AT = int(EPOCH) + 3_600


class ReaperTable(MemoryTable):
    """A table that records calls. `failures` is how many of the next calls fail; every call takes 5 ms."""

    def __init__(self) -> None:
        super().__init__(state := TableState(), wall_clock=lambda: EPOCH, before_call=self._delay)
        self.state = state
        self.calls: list[tuple[str, Any]] = []
        self.failures = 0
        self.querying = 0
        self.max_querying = 0

    def join(self, connection_id: str, room: str, shard: int | None, *, user: str | None = None) -> None:
        """Put a joined-room item, without a shard if it is None, and with a presence item if there is a user."""
        item: dict[str, Any] = keys.joined_room_item(
            connection_id, room, shard or 0, expires_at=EXPIRES_AT, present_user=user
        )
        if shard is None:
            del item["shard"]
        self.state.put(item)
        if user is not None:
            self.state.put(
                keys.presence_item(room, user, connection_id, joined_at_ms=LONG_AGO_MS, expires_at=EXPIRES_AT)
            )

    async def delete_batch(self, doomed: Sequence[Key]) -> list[Key]:
        unprocessed = await super().delete_batch(doomed)
        self.calls.append((_kind(doomed[0]), list(doomed)))
        return unprocessed

    async def joined_rooms(self, connection_id: str) -> list[JoinedRoom]:
        rooms = await super().joined_rooms(connection_id)
        self.calls.append(("query", connection_id))
        return rooms

    async def _delay(self, component: str, operation: str) -> None:
        assert component == "table"
        self.querying += operation == "joined_rooms"
        self.max_querying = max(self.querying, self.max_querying)
        await asyncio.sleep(0.005)
        self.querying -= operation == "joined_rooms"
        if self.failures:
            self.failures -= 1
            raise DependencyError("broken")

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.calls]

    def deleted(self, kind: str) -> list[Key]:
        """The keys of all deletions of this kind, in order."""
        return [key for called, doomed in self.calls if called == kind for key in doomed]

    def removed(self) -> list[str]:
        """The ids of the removed connections, in order."""
        return [key["pk"]["S"].removeprefix(keys.connection_pk("")) for key in self.deleted("connections")]


def _kind(key: Key) -> str:
    for prefix, kind in (("room#", "memberships"), ("presence#", "presence")):
        if key["pk"]["S"].startswith(prefix):
            return kind
    return "connections" if key["sk"]["S"] == keys.CONNECTION_SK else "joined rooms"


class ReaperQueue(FakeQueue):
    """A queue that adds each call to the calls of the table. `failures` is how many of the next calls fail."""

    def __init__(self, table: ReaperTable, url: str) -> None:
        super().__init__(url=url)
        self.failures = 0
        self.rejects = False
        self.stored = asyncio.Event()
        self._table = table

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        await asyncio.sleep(0.005)
        if self.failures:
            self.failures -= 1
            raise DependencyError("broken")
        if self.rejects:
            raise MessageRejected("InvalidMessageContents")
        self._table.calls.append(("departures", list(messages)))
        self.stored.set()
        return await super().send(messages)

    def departures(self) -> list[tuple[str | UnsetType, tuple[str, ...]]]:
        """The rooms and users of all broadcasts, in order."""
        broadcasts = [decode(each["MessageBody"]) for each in self.sent]
        return [(each.room, each.presence.departed) for each in broadcasts if each.presence is not UNSET]


class ReaperHarness:
    def __init__(self, table: ReaperTable, url: str) -> None:
        self.table = table
        self.queue = ReaperQueue(table, url)
        self.endpoint = EndpointHealth()
        self.metrics = Metrics(Health())
        clock = asyncio.get_running_loop().time
        departures = Departures(Sender(self.queue, Health(clock=clock)), lambda: EPOCH + clock())
        self.reaper = Reaper(
            MembershipRemoval(table, departures=departures, health=Health(clock=clock), clock=clock),
            endpoint=self.endpoint,
            metrics=self.metrics,
            clock=clock,
            wall_clock=lambda: EPOCH + clock(),
        )
        self.endpoint.succeeded(clock())


def reaping(
    table: ReaperTable,
    script: Callable[[ReaperHarness], Coroutine[Any, Any, None]],
    *,
    url: str = "http://queue/broadcasts",
) -> ReaperHarness:
    """Runs the script beside a reaper, and then the reaper alone for ten minutes."""
    harnesses: list[ReaperHarness] = []

    async def simulation() -> None:
        harnesses.append(harness := ReaperHarness(table, url))
        task = asyncio.create_task(harness.reaper.run())
        await script(harness)
        await asyncio.sleep(600)
        assert not task.done()
        task.cancel()

    run(simulation())
    return harnesses[0]


def test_connections_are_deleted_first_then_memberships_then_joined_rooms() -> None:
    ids = [f"c{number:02d}=" for number in range(25)]
    table = ReaperTable()
    for number, each in enumerate(ids):
        table.join(each, "@all", number % 4)
        table.join(each, "lobby", 0)

    async def script(harness: ReaperHarness) -> None:
        for each in ids:
            harness.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    harness = reaping(table, script)

    assert table.kinds() == ["connections", *["query"] * 25, *["memberships"] * 2, *["joined rooms"] * 2]
    assert table.removed() == ids
    memberships = [keys.key(f"room#@all#{n % 4}", each) for n, each in enumerate(ids)]
    memberships += [keys.key("room#lobby#0", each) for each in ids]
    joined = [keys.key(keys.connection_pk(each), f"room#{room}") for each in ids for room in ("@all", "lobby")]
    assert sorted(map(str, table.deleted("memberships"))) == sorted(map(str, memberships))
    assert sorted(map(str, table.deleted("joined rooms"))) == sorted(map(str, joined))
    assert harness.metrics.memberships_reaped == 50
    assert table.max_querying == 8


def test_rooms_are_read_after_all_connection_items_are_deleted_and_unprocessed_items_are_retried() -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0)
    table.join("b=", "lobby", 0)
    table.unprocessed = [1, 1, 0, 2, 1, 0, 1, 0]

    async def script(harness: ReaperHarness) -> None:
        for each in ("a=", "b="):
            harness.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    reaping(table, script)

    connections, memberships, joined = ["connections"] * 3, ["memberships"] * 3, ["joined rooms"] * 2
    assert table.kinds() == [*connections, "query", "query", *memberships, *joined]
    assert [len(items) for kind, items in table.calls if kind != "query"] == [2, 1, 1, 2, 2, 1, 2, 1]


def test_calls_to_a_failing_table_are_retried() -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0)
    table.failures = 5

    async def script(harness: ReaperHarness) -> None:
        harness.reaper.offer("a=", ("lobby", 0), LONG_AGO_MS)

    reaping(table, script)

    assert table.kinds() == ["connections", "query", "memberships", "joined rooms"]


def test_an_orphaned_membership_is_removed_and_one_on_an_unknown_shard_stays() -> None:
    table = ReaperTable()
    table.join("a=", "lobby", None)
    table.join("a=", "hall", None)

    async def script(harness: ReaperHarness) -> None:
        harness.reaper.offer("a=", ("lobby", 2), LONG_AGO_MS)
        harness.reaper.offer("b=", ("hall", 1), LONG_AGO_MS)

    harness = reaping(table, script)

    memberships = table.deleted("memberships")
    assert memberships == [keys.key("room#lobby#2", "a="), keys.key("room#hall#1", "b=")]
    assert len(table.deleted("joined rooms")) == 2
    assert harness.metrics.memberships_reaped == 2


@pytest.mark.parametrize(
    ("age_seconds", "removed"), [(YOUNG_SECONDS - 0.1, False), (YOUNG_SECONDS, True), (-5.0, False)]
)
def test_a_connection_whose_connect_may_still_be_running_is_not_removed(age_seconds: float, *, removed: bool) -> None:
    """Waiting would not help: the connection may become established after its 410."""
    table = ReaperTable()

    async def script(harness: ReaperHarness) -> None:
        await asyncio.sleep(60)
        joined_at_ms = int((EPOCH + 60 - age_seconds) * 1000)
        harness.reaper.offer("young=", ("lobby", 0), joined_at_ms)
        await asyncio.sleep(YOUNG_SECONDS * 2)
        assert bool(table.calls) is removed
        if not removed and age_seconds > 0:
            harness.reaper.offer("young=", ("lobby", 0), joined_at_ms)  # the next broadcast finds it again

    reaping(table, script)

    assert table.removed() == (["young="] if age_seconds > 0 else [])


def test_a_connection_that_was_found_in_several_rooms_is_removed_once() -> None:
    table = ReaperTable()

    async def script(harness: ReaperHarness) -> None:
        for room in ("lobby", "hall"):
            harness.reaper.offer("a=", (room, 0), LONG_AGO_MS)

    reaping(table, script)
    assert table.removed() == ["a="], "a batch may not name an item twice"


def test_reaping_is_rate_limited_and_excess_connections_are_dropped() -> None:
    table = ReaperTable()
    times: list[float] = []

    async def script(harness: ReaperHarness) -> None:
        for number in range(100_000):
            harness.reaper.offer(f"c{number}=", None)
        for _ in range(100):
            await asyncio.sleep(1)
            times.append(len(table.removed()))

    reaping(table, script)

    assert len(table.removed()) == 20_000
    per_second = [after - before for before, after in pairwise(times)]
    assert max(per_second) <= CONNECTIONS_PER_SECOND + 25


def test_connections_offered_one_by_one_are_removed_in_batches() -> None:
    table = ReaperTable()

    async def script(harness: ReaperHarness) -> None:
        for number in range(1_000):
            harness.reaper.offer(f"c{number}=", None)
            await asyncio.sleep(0.005)

    reaping(table, script)

    assert len(table.removed()) == 1_000
    assert table.kinds().count("connections") < 120


def test_without_proof_nothing_is_removed() -> None:
    table = ReaperTable()

    async def script(harness: ReaperHarness) -> None:
        await asyncio.sleep(3_600)
        for number in range(30):
            harness.reaper.offer(f"c{number}=", None)
        await asyncio.sleep(60)
        assert harness.reaper.unproven == 30
        harness.reaper.offer("last=", None)
        await asyncio.sleep(1)
        harness.endpoint.succeeded(asyncio.get_running_loop().time())

    harness = reaping(table, script)

    assert table.removed() == ["last="]
    assert harness.reaper.unproven == 0


# Presence


@pytest.mark.parametrize(("url", "delay"), [("http://queue/broadcasts", 15), ("http://queue/broadcasts.fifo", None)])
def test_departures_are_published_before_the_items_are_deleted_unless_the_queue_delays_no_message(
    url: str, delay: int | None
) -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0, user="ann")
    table.join("a=", "hall", 1, user="ann")
    table.join("a=", "@all", 2)
    table.join("b=", "lobby", 0, user="bob")

    async def script(harness: ReaperHarness) -> None:
        for each in ("a=", "b="):
            harness.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    harness = reaping(table, script, url=url)

    middle = ["departures", "presence"] if delay else ["presence", "departures"]
    assert table.kinds() == ["connections", "query", "query", *middle, "memberships", "joined rooms"]
    assert harness.queue.departures() == [("hall", ("ann",)), ("lobby", ("ann", "bob"))]
    assert [each.get("DelaySeconds") for each in harness.queue.sent] == [delay, delay]
    assert not table.state.query(keys.presence_pk("lobby"))
    assert not table.state.query(keys.presence_pk("hall"))
    ids = {decode(each["MessageBody"]).id for each in harness.queue.sent}
    assert len(ids) == 2
    assert all(each.startswith("%presence/") for each in ids)


def test_a_user_who_departs_with_two_connections_is_named_once() -> None:
    table = ReaperTable()
    for each in ("a=", "b="):
        table.join(each, "lobby", 0, user="ann")

    async def script(harness: ReaperHarness) -> None:
        for each in ("a=", "b="):
            harness.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    assert reaping(table, script).queue.departures() == [("lobby", ("ann",))]


def test_without_presence_nothing_is_published() -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0)

    async def script(harness: ReaperHarness) -> None:
        harness.reaper.offer("a=", ("lobby", 0), LONG_AGO_MS)

    assert reaping(table, script).queue.sent == []


@pytest.mark.parametrize("url", ["http://queue/broadcasts", "http://queue/broadcasts.fifo"])
def test_while_the_queue_fails_no_membership_is_deleted(url: str) -> None:
    """A worker that ends meanwhile leaves the membership, so the next broadcast finds the connection again."""
    table = ReaperTable()
    table.join("a=", "lobby", 0, user="ann")

    async def script(harness: ReaperHarness) -> None:
        harness.queue.failures = 5
        harness.reaper.offer("a=", ("lobby", 0), LONG_AGO_MS)

    harness = reaping(table, script, url=url)

    assert table.kinds().index("departures") < table.kinds().index("memberships")
    assert harness.queue.departures() == [("lobby", ("ann",))]


def test_a_user_whose_name_no_broadcast_can_have_is_removed_without_an_event() -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0, user="Zoë")
    table.join("b=", "lobby", 0, user="bob")

    async def script(harness: ReaperHarness) -> None:
        for each in ("a=", "b="):
            harness.reaper.offer(each, ("lobby", 0), LONG_AGO_MS)

    assert reaping(table, script).queue.departures() == [("lobby", ("bob",))]
    assert not table.state.query(keys.presence_pk("lobby"))


def test_departures_that_the_queue_rejects_are_reported_and_stop_nothing() -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0, user="ann")

    async def script(harness: ReaperHarness) -> None:
        harness.queue.rejects = True
        harness.reaper.offer("a=", ("lobby", 0), LONG_AGO_MS)

    with capture_logs() as logs:
        harness = reaping(table, script)
    assert [(each["event"], each["code"]) for each in logs] == [("departures.rejected", "InvalidMessageContents")]
    assert harness.metrics.memberships_reaped == 1
    assert not table.state.query(keys.presence_pk("lobby"))


def test_a_connection_that_is_known_to_have_ended_needs_no_other_proof() -> None:
    table = ReaperTable()

    async def script(harness: ReaperHarness) -> None:
        await asyncio.sleep(3_600)
        harness.reaper.offer("closed=", ("lobby", 0), proven=True)
        harness.reaper.offer("unknown=", ("lobby", 0))

    reaping(table, script)
    assert table.removed() == ["closed="]


@pytest.mark.parametrize(("failures", "published"), [(3, 1), (9, 2)])
def test_departures_are_published_again_if_the_deletion_took_until_a_worker_may_have_looked(
    failures: int, published: int
) -> None:
    table = ReaperTable()
    table.join("a=", "lobby", 0, user="ann")

    async def script(harness: ReaperHarness) -> None:
        harness.reaper.offer("a=", ("lobby", 0), LONG_AGO_MS)
        await harness.queue.stored.wait()
        table.failures = failures

    assert reaping(table, script).queue.departures() == [("lobby", ("ann",))] * published
