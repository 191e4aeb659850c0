"""What members of a room learn about users whose connections end without a word: after the last event, the truth.

The real worker in virtual time (`tests.simulation`). The clients of these tests keep, per user, the event with the
latest time, as the reference says.
"""

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast
from gatecast import table as keys
from gatecast.broadcast import Presence
from gatecast.frames import V1, V2
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from gatecast.table import shard_of
from tests.simulation import EPOCH, SimulatedWorker, World, apply_plan, run, until_empty

EVENTS = ("kill", "terminate", "second worker", "queue", "table", "send", "page", "handed out again", "moved back")
OBSERVER = "observer="


def events(world: World, connection_id: str = OBSERVER) -> list[tuple[float, dict[str, Any]]]:
    """The presence frames that a connection has received, each with the time of its receipt."""
    frames = [(at, json.loads(text)) for at, text in world.received.get(connection_id, [])]
    return [(at, frame) for at, frame in frames if frame["type"] == "presence"]


def announced(world: World, before: set[str]) -> set[str]:
    """The users who are present according to the observer, for whom these were present before."""
    latest: dict[str, tuple[int, bool]] = {}
    for _, frame in events(world):
        for user, is_present in [(u, True) for u in frame["joined"]] + [(u, False) for u in frame["departed"]]:
            if frame["at_ms"] >= latest.get(user, (0, False))[0]:
                latest[user] = (frame["at_ms"], is_present)
    known = dict.fromkeys(before, True) | {user: is_present for user, (_, is_present) in latest.items()}
    return {user for user, is_present in known.items() if is_present}


def make_world(rng: random.Random, *, fifo: bool = False, presence: int = 100) -> World:
    """A room with presence, and an observer of it who uses v2."""
    world = World({}, rng=rng, fifo=fifo)
    world.set("room", presence=presence)
    world.add_members("room", [OBSERVER], frames=V2)
    return world


def change(name: str, **users: tuple[str, ...]) -> Broadcast:
    return Broadcast(id=f"%presence/{name}", room="room", v=2, presence=Presence(**users))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    connections=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from([V1, V2]), st.booleans()), min_size=1, max_size=30
    ),
    returning=st.lists(st.tuples(st.integers(0, 9), st.floats(0, 40)), max_size=5),
    plan=st.lists(st.tuples(st.floats(0, 15), st.sampled_from(EVENTS)), max_size=6),
    fifo=st.booleans(),
    seed=st.integers(0, 1_000_000),
)
def test_after_the_last_event_the_announced_state_is_the_true_one(
    connections: list[tuple[int, int, bool]],
    returning: list[tuple[int, float]],
    plan: list[tuple[float, str]],
    fifo: bool,
    seed: int,
) -> None:
    world = make_world(random.Random(seed), fifo=fifo)
    for number, (user, version, has_ended) in enumerate(connections):
        connection_id = f"c{number:02d}="
        world.add_members("room", [connection_id], frames=version)
        world.enter("room", f"u{user}", connection_id)
        if has_ended:
            world.ended.add(connection_id)
    before = world.present("room")

    async def come_back(number: int, user: int, after: float) -> None:
        """Join, and announce it if this is the oldest connection of the user."""
        await asyncio.sleep(after)
        connection_id = f"r{number:02d}="
        world.add_members("room", [connection_id], frames=V2)
        world.enter("room", f"u{user}", connection_id)
        at_ms = int((EPOCH + world.now()) * 1000)
        items = world.table.query(keys.presence_pk("room"), prefix=keys.presence_sk(f"u{user}", ""))
        if len(items) == 1:
            world.publish(
                Broadcast(
                    id=f"%presence/{number}",
                    room="room",
                    v=2,
                    presence=Presence(joined=(f"u{user}",)),
                    published_at_ms=at_ms,
                )
            )

    async def simulation() -> None:
        async with asyncio.TaskGroup() as group:
            for number, (user, after) in enumerate(returning):
                group.create_task(come_back(number, user, after))
            world.publish(Broadcast(id="one", room="room", data="x"))
            workers = await apply_plan(world, plan)
        for turn in range(20):
            world.publish(Broadcast(id=f"again{turn}", room="room", data="x"))
            await asyncio.sleep(5)
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    assert not world.current_members("room") & world.ended
    assert announced(world, before) == world.present("room")


@pytest.mark.parametrize("fifo", [False, True])
def test_a_departure_is_looked_at_after_a_delay_so_that_a_reload_is_none(*, fifo: bool) -> None:
    """A FIFO queue delays no single message: there only a connection that is replaced before it is reaped is none."""
    world = make_world(random.Random(1), fifo=fifo)
    for user in ("stays", "leaves"):
        world.add_members("room", [f"{user}="], frames=V2)
        world.enter("room", user, f"{user}=")
        world.ended.add(f"{user}=")

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        if fifo:
            world.add_members("room", ["new="], frames=V2)
            world.enter("room", "stays", "new=")
        world.publish(Broadcast(id="one", room="room", data="x"))
        await asyncio.sleep(5)
        assert world.removed == {"stays=", "leaves="}
        if not fifo:
            world.add_members("room", ["new="], frames=V2)
            world.enter("room", "stays", "new=")
        await asyncio.sleep(30)
        await worker.terminate()
        assert worker.metrics.queue_lag.total < 5, "the delay is none of the worker's lag"
        assert worker.metrics.broadcast_duration.total < 5

    run(simulation())
    [(at, frame)] = events(world)
    assert frame["departed"] == ["leaves"]
    assert (at > DEPARTURE_DELAY_SECONDS) is not fifo
    assert frame["at_ms"] <= (EPOCH + at) * 1000
    assert world.present("room") == {"stays"}


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("seconds", [1, 12, 20, 60])
def test_a_departure_is_not_lost_if_the_item_is_deleted_late(seconds: float, *, fifo: bool) -> None:
    """Without the item's deletion the worker that looks finds the user present."""
    world = make_world(random.Random(7), fifo=fifo)
    world.add_members("room", ["ann="], frames=V2)
    world.enter("room", "ann", "ann=")
    world.ended.add("ann=")

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(Broadcast(id="one", room="room", data="x"))
        while not world.removed:
            await asyncio.sleep(0.001)
            assert world.now() < 10
        world.broken.add("deletions")
        await asyncio.sleep(seconds)
        assert not events(world)
        assert world.present("room") == {"ann"}
        world.broken.clear()
        await asyncio.sleep(60)
        await worker.terminate()

    run(simulation())
    assert events(world)
    assert all(frame["departed"] == ["ann"] for _, frame in events(world))
    assert not world.current_members("room") & world.ended


@pytest.mark.parametrize("fifo", [False, True])
def test_a_departure_is_not_lost_at_whatever_moment_the_worker_ends(*, fifo: bool) -> None:
    for kill_at in range(20, 250, 3):
        world = make_world(random.Random(8), fifo=fifo)
        world.add_members("room", ["ann="], frames=V2)
        world.enter("room", "ann", "ann=")
        world.ended.add("ann=")
        kill_and_resume(world, kill_at / 1_000)
        assert not world.present("room"), kill_at
        assert announced(world, {"ann"}) == set(), kill_at


@pytest.mark.parametrize("fifo", [False, True])
def test_items_that_the_route_of_a_disconnect_has_left_lead_to_the_departure(*, fifo: bool) -> None:
    """It deletes the connection, and leaves what belongs to a room if the queue does not take the departure."""
    world = make_world(random.Random(9), fifo=fifo)
    world.add_members("room", ["ann="], frames=V2)
    world.enter("room", "ann", "ann=")
    world.ended.add("ann=")
    world.table.delete(keys.key(keys.connection_pk("ann="), keys.CONNECTION_SK))

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await asyncio.sleep(60)
        await worker.terminate()

    run(simulation())
    assert [frame["departed"] for _, frame in events(world)] == [["ann"]]
    assert not world.present("room")
    assert world.current_members("room") == {OBSERVER}
    assert not world.table.query(keys.connection_pk("ann="))


def kill_and_resume(world: World, kill_at: float) -> None:
    """Publish to the room, kill the worker at that time, and publish again with another one."""

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(kill_at)
        await worker.kill()
        worker = SimulatedWorker(world)
        world.publish(Broadcast(id="two", room="room", data="x"))
        await until_empty(world)
        await worker.terminate()

    run(simulation())


def test_presence_is_not_posted_to_clients_of_v1() -> None:
    world = make_world(random.Random(2))
    world.add_members("room", ["v1="], frames=V1)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(change("1", joined=("ann",)))
        world.publish(Broadcast(id="one", room="room", data="x"))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert [frame["joined"] for _, frame in events(world)] == [["ann"]]
    assert [text for _, text in world.received["v1="]] == ["x"]


@pytest.mark.parametrize(
    ("presence", "members", "shards", "reached"),
    [
        (0, 10, 1, 0),
        (100, 100, 1, 100),
        (100, 101, 1, 0),
        (100, 800, 1, 0),
        (100, 100, 4, 100),
        (100, 400, 4, 0),
        (1_000, 1_000, 4, 1_000),
        (1_000, 2_000, 4, 0),
    ],
)
def test_no_change_is_announced_in_a_room_that_is_too_large(
    presence: int, members: int, shards: int, reached: int
) -> None:
    world = World({}, rng=random.Random(3))
    world.set("room", presence=presence, shards=shards)
    for number in range(members):
        connection_id = f"c{number:04d}="
        world.add_members("room", [connection_id], shard=shard_of(connection_id, shards), frames=V2)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(change("1", joined=("ann",)))
        world.publish(change("2", departed=("bob",)))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.received) == reached
    assert all(len(received) == 2 for received in world.received.values())


def test_members_are_counted_where_a_room_has_presence_and_nowhere_else() -> None:
    world = World({}, rng=random.Random(4))
    for room, numbers in (("p", {"presence": 5}), ("sharded", {"presence": 5, "shards": 2}), ("without", {})):
        world.set(room, **numbers)
        world.add_members(room, [f"{room}{number}=" for number in range(1_500)])
    world.add_members("sharded", ["s1=", "s2="], shard=1)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        for turn in range(8):
            for room in ("p", "sharded", "without"):
                world.publish(Broadcast(id=f"b{turn}", room=room, data="x"))
            await asyncio.sleep(5)
        await worker.terminate()

    run(simulation())
    counts = {
        (room, item["sk"]["S"]): int(item["members"]["N"])
        for room in ("p", "sharded", "without")
        for item in world.table.query(keys.count_pk(room))
    }
    assert counts == {("p", "0"): 1_500, ("sharded", "0"): 1_500, ("sharded", "1"): 2}


def test_a_broadcast_that_is_resumed_looks_again() -> None:
    world = World({}, rng=random.Random(5))
    world.set("room", presence=1_000)
    world.add_members("room", [f"c{number:04d}=" for number in range(1_000)], frames=V2)

    async def simulation() -> None:
        world.publish(change("1", departed=("ann",)))
        worker = SimulatedWorker(world, max_posts_per_second=100, visibility_seconds=5)
        await asyncio.sleep(4)
        await worker.kill()
        world.enter("room", "ann", "c0000=")
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert 0 < len(world.received) < 1_000


def test_while_the_table_fails_a_departure_waits() -> None:
    world = make_world(random.Random(6))

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        world.broken.add("presence")
        world.publish(change("1", departed=("ann",)))
        await asyncio.sleep(120)
        assert not events(world)
        world.broken.clear()
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert [frame["departed"] for _, frame in events(world)] == [["ann"]]
