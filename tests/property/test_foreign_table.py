"""With members in a table of the operator's own, everything that is promised holds as well.

The real worker in virtual time (`tests.simulation`). The order of that table has nothing to do with connection ids, a
connection may have several items, and which faults hit the workers is chosen by Hypothesis.
"""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gatecast import Broadcast, decode
from tests.memory_members import ForeignItems
from tests.simulation import (
    CONNECTIONS,
    EPOCH,
    LONG_AGO_MS,
    SimulatedWorker,
    World,
    apply_plan,
    make_members,
    run,
    until_empty,
)
from worker.decisions.checkpoint import WINDOW
from worker.pipeline.reaper import YOUNG_SECONDS

HARMLESS = ("terminate", "second worker", "published again", "moved back")
HARMFUL = ("kill", "queue", "table", "lease", "clock forward", "clock back", "handed out again")
PLANS = st.lists(st.tuples(st.floats(0, 3), st.sampled_from([*HARMFUL, *HARMLESS])), max_size=8)
BROADCAST = Broadcast(id="one", room="room", data="x")


def shuffled(ids: list[str], rng: random.Random, *, joined_at_ms: int = LONG_AGO_MS) -> ForeignItems:
    """A table with one item of each in the room, in random order."""
    items = ForeignItems()
    items.add("room", dict.fromkeys(ids, joined_at_ms), rng.sample(range(10 * len(ids) + 1), len(ids)))
    return items


def world_of(items: ForeignItems, ids: list[str], rng: random.Random, *, gone: set[str]) -> World:
    world = World({}, respond=lambda each, _nth: 410 if each in gone else 200, rng=rng, foreign=items)
    world.named.update(ids)
    return world


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(1, 2_500),
    repeated_items=st.integers(0, 300),
    gone_share=st.sampled_from([0.0, 0.1, 0.5]),
    plan=PLANS,
    seed=st.integers(0, 1_000_000),
)
def test_under_any_faults_every_member_is_reached_and_gone_ones_are_removed(
    count: int, repeated_items: int, gone_share: float, plan: list[tuple[float, str]], seed: int
) -> None:
    rng = random.Random(seed)
    ids = [f"c{number:06d}=" for number in range(count)]
    gone = {each for each in ids[1:] if rng.random() < gone_share}
    items = shuffled(ids, rng)
    twice = [rng.choice(ids) for _ in range(repeated_items)]
    items.add("room", dict.fromkeys(twice, LONG_AGO_MS), range(100_000, 100_000 + repeated_items))
    world = world_of(items, ids, rng, gone=gone)
    disturbed = [event for _, event in plan if event not in HARMLESS]

    async def simulation() -> None:
        world.publish(BROADCAST)
        workers = await apply_plan(world, plan, republish=BROADCAST)
        await until_empty(world)
        for number in range(5):  # what was dropped when a worker ended is found by the next broadcasts
            world.publish(Broadcast(id=f"later{number}", room="room", data="y"))
            await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    assert {item.connection_id for item in items.in_room("room")} == set(ids) - gone
    delivered = {each: [data for _, data in received].count("x") for each, received in world.received.items()}
    assert {each for each, times in delivered.items() if times} == set(ids) - gone
    repeated = sum(max(0, times - 1) for times in delivered.values())
    assert repeated <= len(disturbed) * (WINDOW + CONNECTIONS) + repeated_items
    if not disturbed:
        assert repeated <= repeated_items
    assert not world.dead_letters


@pytest.mark.parametrize("moment", [0.3, 0.8, 1.5])
def test_each_kill_repeats_no_more_than_the_window_and_what_is_in_flight(moment: float) -> None:
    rng = random.Random(moment)
    ids = [f"c{number:06d}=" for number in range(8_000)]
    world = world_of(shuffled(ids, rng), ids, rng, gone=set())

    async def simulation() -> None:
        world.publish(BROADCAST)
        for _ in range(3):
            worker = SimulatedWorker(world, visibility_seconds=5)
            await asyncio.sleep(moment)
            await worker.kill()
            await asyncio.sleep(5)
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered) == set(ids)
    assert sum(times - 1 for times in world.delivered.values()) <= 3 * (WINDOW + CONNECTIONS)


@pytest.mark.parametrize("to_foreign", [True, False])
def test_a_broadcast_that_began_in_the_other_table_starts_over(*, to_foreign: bool) -> None:
    """Its checkpoint says nothing about the members of this one."""
    rng = random.Random(1)
    members = make_members(3_000)
    world = World(dict(members), rng=rng)
    items = shuffled(list(members), rng)

    async def simulation() -> None:
        world.foreign = None if to_foreign else items
        world.publish(BROADCAST)
        worker = SimulatedWorker(world, visibility_seconds=5, max_posts_per_second=1_000)
        await asyncio.sleep(2)
        await worker.terminate()
        assert 0 < len(world.delivered) < 3_000
        world.foreign = items if to_foreign else None
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    with capture_logs() as logs:
        run(simulation())
    assert set(world.delivered) == set(members)
    assert [each["log_level"] for each in logs if each["event"] == "broadcast.restarted"] == ["warning"]


def test_a_connection_whose_connect_may_be_running_is_not_removed_whether_its_age_is_known_or_not() -> None:
    """It is established half a minute later; its item was written by `$connect`."""
    ids = ["known=", "unknown=", "witness="]
    items = ForeignItems()
    items.add("room", {"known=": int((EPOCH - 1) * 1000), "unknown=": 0, "witness=": LONG_AGO_MS}, range(3))
    world = world_of(items, ids, random.Random(1), gone={"known=", "unknown="})

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(BROADCAST)
        await asyncio.sleep(YOUNG_SECONDS - 1)
        world.respond = lambda _id, _nth: 200
        world.publish(Broadcast(id="two", room="room", data="y"))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert [item.connection_id for item in items.in_room("room")] == ids
    assert {each: [data for _, data in world.received[each]] for each in ids} == {
        "known=": ["y"],
        "unknown=": ["y"],
        "witness=": ["x", "y"],
    }


def test_dead_letters_reach_whom_they_name_without_a_locator() -> None:
    ids = [f"c{number:06d}=" for number in range(20)]
    slow = set(ids[:3])
    rng = random.Random(1)
    items = shuffled(ids, rng)
    world = world_of(items, ids, rng, gone=set())
    world.respond = lambda each, _nth: 413 if each in slow else 200

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(BROADCAST)
        await until_empty(world)
        world.respond = lambda each, _nth: 410 if each == ids[0] else 200
        [letter] = world.dead_letters
        world.publish(decode(letter.body))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered) == set(ids[1:])
    assert len(items.in_room("room")) == 20, "no item is known, so the next broadcast to the room finds the gone one"
