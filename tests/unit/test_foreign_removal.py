"""What is done about gone connections in a table that is not Gatecast's. In virtual time, with an in-memory table."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from structlog.testing import capture_logs

from tests.pipeline_doubles import FakeQueue
from tests.simulation import EPOCH, LONG_AGO_MS, run
from worker.decisions.endpoint_health import EndpointHealth
from worker.decisions.locator import Locator, prefix
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.foreign_removal import REST_SECONDS, ItemRemoval, QueueRemoval
from worker.pipeline.reaper import YOUNG_SECONDS, Reaper
from worker.pipeline.removal import Removal
from worker.pipeline.sender import Sender
from worker.ports import DependencyError, ForeignMembers, MessageRejected, PortError

PREFIX = prefix("table")
LOBBY = ("lobby", 0)


def locator(connection_id: str, user: str = "") -> str:
    return Locator({"id": {"S": connection_id}}, user).encode(PREFIX)


class Items:
    """Deletes items whose locators are known. `failures` is how many of the next calls fail."""

    def __init__(self) -> None:
        self.deleted: Counter[tuple[str, tuple[str, int] | None, str]] = Counter()
        self.failures = 0
        self.running = 0
        self.max_running = 0

    async def delete(self, connection_id: str, found_in: tuple[str, int] | None, locator: str) -> bool:
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await asyncio.sleep(0.005)
        self.running -= 1
        if self.failures:
            self.failures -= 1
            raise DependencyError("broken")
        self.deleted[connection_id, found_in, locator] += 1
        return bool(locator)


class GoneQueue(FakeQueue):
    def __init__(self, url: str = "http://queue/gone") -> None:
        super().__init__(url=url)
        self.failures = 0
        self.rejects: set[str] = set()
        self.calls = 0

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        self.calls += 1
        await asyncio.sleep(0.005)
        if self.failures:
            self.failures -= 1
            raise DependencyError("broken")
        rejected = [each for each in messages if json.loads(each["MessageBody"])["connection_id"] in self.rejects]
        self.sent += [each for each in messages if each not in rejected]
        return [MessageRejected("InvalidMessageContents") if each in rejected else None for each in messages]

    def bodies(self) -> list[Any]:
        return [json.loads(each["MessageBody"]) for each in self.sent]


class Harness:
    def __init__(self, removal: Removal, health: Health) -> None:
        clock = asyncio.get_running_loop().time
        self.endpoint = EndpointHealth()
        self.metrics = Metrics(Health())
        self.health = health
        self.reaper = Reaper(
            removal,
            endpoint=self.endpoint,
            metrics=self.metrics,
            clock=clock,
            wall_clock=lambda: EPOCH + clock(),
        )
        self.endpoint.succeeded(clock())


Script = Callable[[Harness], Coroutine[Any, Any, None]]


def reaping(target: Items | GoneQueue, script: Script) -> Harness:
    """Runs the script beside a reaper, and then the reaper alone for five minutes."""
    harnesses: list[Harness] = []

    async def simulation() -> None:
        clock = asyncio.get_running_loop().time
        health = Health(clock=clock)
        removal: Removal
        if isinstance(target, Items):
            removal = ItemRemoval(cast(ForeignMembers, target), health)
        else:
            removal = QueueRemoval(Sender(target, health, "reaper"), clock)
        harnesses.append(harness := Harness(removal, health))
        task = asyncio.create_task(harness.reaper.run())
        await script(harness)
        await asyncio.sleep(300)
        assert not task.done()
        task.cancel()

    run(simulation())
    return harnesses[0]


def test_items_are_deleted_a_few_at_a_time_and_failed_calls_are_retried() -> None:
    items = Items()

    async def script(harness: Harness) -> None:
        items.failures = 7
        for number in range(40):
            harness.reaper.offer(f"c{number}=", LOBBY, LONG_AGO_MS, locator=locator(f"c{number}="))

    harness = reaping(items, script)

    assert items.deleted == {(f"c{n}=", LOBBY, locator(f"c{n}=")): 1 for n in range(40)}
    assert items.max_running == 8
    assert harness.metrics.memberships_reaped == 40
    assert {each: count for each, count in harness.health.failures.items() if count} == {"reaper": 7}


def test_a_connection_is_removed_from_each_room_that_it_was_found_in() -> None:
    items = Items()

    async def script(harness: Harness) -> None:
        for room in ("lobby", "hall", "lobby"):
            harness.reaper.offer("c=", (room, 0), LONG_AGO_MS, locator=locator(f"c={room}"))

    reaping(items, script)
    assert set(items.deleted) == {("c=", (room, 0), locator(f"c={room}")) for room in ("lobby", "hall")}


def test_what_leads_to_no_item_is_not_counted() -> None:
    items = Items()

    async def script(harness: Harness) -> None:
        harness.reaper.offer("c=", None, LONG_AGO_MS)

    assert reaping(items, script).metrics.memberships_reaped == 0
    assert items.deleted == {("c=", None, ""): 1}


def test_a_connection_of_unknown_age_is_removed_after_a_second_410_that_is_late_enough() -> None:
    """Its item may have been written by a `$connect` that had not returned when the first one arrived."""
    items = Items()

    async def script(harness: Harness) -> None:
        for seconds in (0, YOUNG_SECONDS - 1):
            await asyncio.sleep(seconds)
            harness.reaper.offer("c=", LOBBY, 0, locator=locator("c="))
        await asyncio.sleep(60)
        assert not items.deleted
        harness.reaper.offer("c=", LOBBY, 0, locator=locator("c="))
        harness.reaper.offer("d=", LOBBY, None, locator=locator("d="))

    reaping(items, script)
    assert set(items.deleted) == {("c=", LOBBY, locator("c="))}


def test_a_connection_is_not_old_because_the_one_before_it_in_the_same_item_was() -> None:
    """Its locator, the item's key without the connection id, is the same: the user has connected again."""
    items, ann = Items(), locator("ann")

    async def script(harness: Harness) -> None:
        harness.reaper.offer("before=", LOBBY, 0, locator=ann)
        await asyncio.sleep(YOUNG_SECONDS * 4)
        harness.reaper.offer("connecting=", LOBBY, 0, locator=ann)
        await asyncio.sleep(60)

    reaping(items, script)
    assert not items.deleted


def test_what_has_the_same_locator_elsewhere_or_names_another_connection_is_removed_as_well() -> None:
    items, ann, hall = Items(), locator("ann"), ("hall", 0)

    async def script(harness: Harness) -> None:
        for connection_id, found_in in (("a=", LOBBY), ("a=", hall), ("b=", LOBBY)):
            harness.reaper.offer(connection_id, found_in, LONG_AGO_MS, locator=ann)

    reaping(items, script)
    assert items.deleted == {("a=", LOBBY, ann): 1, ("a=", hall, ann): 1, ("b=", LOBBY, ann): 1}


def test_one_that_the_worker_has_closed_is_removed_at_once() -> None:
    items = Items()

    async def script(harness: Harness) -> None:
        harness.reaper.offer("c=", LOBBY, proven=True, locator=locator("c="))

    reaping(items, script)
    assert set(items.deleted) == {("c=", LOBBY, locator("c="))}


def test_the_memory_for_connections_of_unknown_age_is_bounded() -> None:
    items = Items()

    async def script(harness: Harness) -> None:
        for number in range(20_010):
            harness.reaper.offer(f"c{number}=", LOBBY, 0, locator=locator(f"c{number}="))
        await asyncio.sleep(YOUNG_SECONDS)
        for number in (5, 20_005):
            harness.reaper.offer(f"c{number}=", LOBBY, 0, locator=locator(f"c{number}="))

    reaping(items, script)
    assert [each[0] for each in items.deleted] == ["c20005="], "the oldest were forgotten"


# The queue


def test_the_queue_receives_what_is_known_ten_per_call() -> None:
    queue = GoneQueue()

    async def script(harness: Harness) -> None:
        for number in range(20):
            harness.reaper.offer(f"c{number}=", ("lobby", 3), LONG_AGO_MS, locator=locator(f"c{number}=", "ann"))
        harness.reaper.offer("d=", ("lobby", 0), LONG_AGO_MS, locator=locator("d="))
        harness.reaper.offer("e=", None, LONG_AGO_MS)

    harness = reaping(queue, script)

    assert queue.bodies() == [
        *({"connection_id": f"c{number}=", "room": "lobby", "shard": 3, "user": "ann"} for number in range(20)),
        {"connection_id": "d=", "room": "lobby", "shard": 0},
        {"connection_id": "e="},
    ]
    assert queue.calls == 3
    assert not any("MessageGroupId" in each for each in queue.sent)
    assert harness.metrics.memberships_reaped == 0


def test_while_the_queue_fails_nothing_is_lost() -> None:
    queue = GoneQueue()

    async def script(harness: Harness) -> None:
        queue.failures = 6
        for number in range(30):
            harness.reaper.offer(f"c{number}=", LOBBY, LONG_AGO_MS, locator=locator(f"c{number}="))

    harness = reaping(queue, script)
    assert Counter(each["connection_id"] for each in queue.bodies()) == {f"c{number}=": 1 for number in range(30)}
    assert {each for each, count in harness.health.failures.items() if count} == {"reaper"}, "which stops nothing"


def test_until_its_item_is_removed_a_connection_is_sent_again_but_not_with_each_broadcast() -> None:
    queue = GoneQueue()

    async def script(harness: Harness) -> None:
        for _ in range(20):
            harness.reaper.offer("c=", LOBBY, LONG_AGO_MS, locator=locator("c="))
            await asyncio.sleep(REST_SECONDS / 10)

    reaping(queue, script)
    assert len(queue.sent) == 2


def test_what_the_queue_rejects_is_reported_and_the_others_are_sent() -> None:
    queue = GoneQueue()
    queue.rejects = {"c1="}

    async def script(harness: Harness) -> None:
        for number in range(3):
            harness.reaper.offer(f"c{number}=", LOBBY, LONG_AGO_MS, locator=locator(f"c{number}="))

    with capture_logs() as logs:
        reaping(queue, script)
    assert [(each["event"], each["code"]) for each in logs] == [("gone.rejected", "InvalidMessageContents")]
    assert {each["connection_id"] for each in queue.bodies()} == {"c0=", "c2="}


def test_a_fifo_queue_has_a_group_per_connection_and_stores_each_once() -> None:
    queue = GoneQueue("http://queue/gone.fifo")

    async def script(harness: Harness) -> None:
        for each in ("a=", "b="):
            harness.reaper.offer(each, LOBBY, LONG_AGO_MS, locator=locator(each))

    reaping(queue, script)
    groups = [each["MessageGroupId"] for each in queue.sent]
    assert len(set(groups)) == 2
    assert groups == [each["MessageDeduplicationId"] for each in queue.sent]
    assert all(len(each) == 64 for each in groups)
