"""Clients whose token has expired are disconnected, whatever happens to the workers, and disturb no other clients.

The real worker in virtual time (`tests.simulation`).
"""

import asyncio
import json
import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast
from gatecast.frames import V1, V2
from tests.simulation import SimulatedWorker, World, apply_plan, make_members, run, until_empty
from worker.delivery.errands import MAX_PACED_IN_FLIGHT, PACED_SHARE

EVENTS = ("kill", "terminate", "second worker", "queue", "table", "page", "clock forward", "clock back")
"""A clock that is 40 s ahead must close nobody early, so tokens here end minutes before or after the start."""
FAREWELL = {"type": "closed", "code": "token_expired", "retry": True}


def named(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:05d}=" for number in range(count)]


async def publish_until(world: World, everything_done: Sequence[str], *, seconds: float = 600) -> None:
    """Publish to the room every few seconds until these connections are no longer in the table."""
    number = 0
    while not set(everything_done) <= world.removed:
        number += 1
        assert world.now() < seconds, f"still in the table: {set(everything_done) - world.removed}"
        world.publish(Broadcast(id=f"again{number}", room="room", data="x"))
        await asyncio.sleep(5)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.tuples(*[st.integers(0, 300)] * 5),
    plan=st.lists(st.tuples(st.floats(0, 3), st.sampled_from(EVENTS)), max_size=6),
    failing=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1_000_000),
)
def test_exactly_the_connections_whose_token_has_expired_are_closed_and_removed(
    sizes: tuple[int, ...], plan: list[tuple[float, str]], failing: float, seed: int
) -> None:
    rng = random.Random(seed)
    live, old, new, ended, borrowed = (named(kind, size) for kind, size in zip("lonex", sizes, strict=True))
    world = World(make_members(1), rng=rng, close_status=lambda _: 503 if rng.random() < failing else 204)
    for members, version in ((live, V1), (old, V1), (new, V2), (ended, V2), (borrowed, V2)):
        world.add_members("room", members, frames=version)
    for members in (old, new, ended):
        world.expire(members)
    world.expire(borrowed)
    world.add_connections(borrowed)  # their memberships end before their connections: another program wrote them
    world.ended.update(ended)

    async def simulation() -> None:
        for number in range(3):
            world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
        workers = await apply_plan(world, plan)
        await publish_until(world, [*old, *new, *ended])
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    assert set(world.closed) == {*old, *new}
    assert world.removed == {*old, *new, *ended}
    assert not set(old) & set(world.posts), "v1: closed without a word"
    for each in new:
        assert {text for _, text in world.received[each]} <= {json.dumps(FAREWELL, separators=(",", ":"))}
    assert not set(borrowed) & set(world.posts)
    for each in live:
        assert {"b0", "b1", "b2"} <= {f"b{number}" for number in range(3) if world.delivered[each]}
        assert world.delivered[each] >= 3


def test_an_expired_client_of_v2_learns_why_before_it_is_closed() -> None:
    world = World(make_members(1), rng=random.Random(1))
    world.add_members("room", ["v2="], frames=V2)
    world.expire(["v2="])

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await asyncio.sleep(30)
        await worker.terminate()
        assert worker.metrics.expired_connections == {"closed": 1, "gone": 0, "failed": 0}

    run(simulation())
    assert [json.loads(text) for _, text in world.received["v2="]] == [FAREWELL]
    assert world.closed == {"v2=": 1}
    assert world.removed == {"v2="}
    assert world.current_members("room") == set(world.members)


@pytest.mark.parametrize("status", [403, 404, 410, 429, 503, None])
def test_while_no_request_succeeds_nothing_is_removed(status: int | None) -> None:
    """404 and 410 for everything mean a wrong endpoint, not that every connection has ended."""
    world = World(
        make_members(30),
        respond=lambda _id, _nth: status,
        close_status=lambda _: status,
        reference_status=lambda: status,
        rng=random.Random(2),
    )
    world.add_members("room", named("x", 30), frames=V2)
    world.expire(named("x", 30))
    everyone = world.current_members("room")

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        for number in range(20):
            world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
            await asyncio.sleep(5)
        assert world.current_members("room") == everyone
        assert not world.removed
        await worker.kill()

    run(simulation())


def completion_times(expired: int, *, version: int = V1, latency: float = 0.01) -> list[float]:
    """How long each of six broadcasts to 900 members took, in seconds, at 1,000 posts per second, beside this number of
    expired members in this room and another one, whose closing takes `latency` seconds per request.
    """
    world = World(make_members(900), rng=random.Random(3), latency=lambda: 0.01)
    shards = 25
    world.set_shards("crowd", shards)
    for shard in range(shards):
        crowd = named(f"x{shard:02d}-", expired // shards)
        world.add_members("crowd", crowd, shard=shard, frames=version)
        world.expire(crowd, "crowd", shard=shard)
    neighbours = named("y", min(expired, 2_000))
    world.add_members("room", neighbours, frames=version)
    world.expire(neighbours)
    world.close_latency = latency
    times: list[float] = []

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=1_000)
        await asyncio.sleep(5)
        for number in range(6):
            if number % 2 == 0:
                world.publish(Broadcast(id=f"crowd{number}", room="crowd", data="x"))
            began_at = world.now()
            world.publish(Broadcast(id=f"b{number}", room="room", data=f"b{number}"))
            await asyncio.sleep(2)
            ended_at = max(at for each in world.members for at, text in world.received[each] if text == f"b{number}")
            times.append(ended_at - began_at)
        if expired and latency < 1:
            share = PACED_SHARE * 1_000 * 12 / version
            assert share * 0.8 < worker.metrics.expired_connections["closed"] < share * 1.2
        elif expired:
            assert len(world.closed) == MAX_PACED_IN_FLIGHT
        await worker.kill()

    run(simulation())
    return times


@cache
def undisturbed_times() -> list[float]:
    return completion_times(0)


@pytest.mark.parametrize(("version", "latency"), [(V1, 0.01), (V2, 0.01), (V1, 30.0)])
def test_a_hundred_thousand_expired_members_delay_no_delivery(version: int, latency: float) -> None:
    alone = undisturbed_times()
    beside = completion_times(100_000, version=version, latency=latency)
    assert max(beside) < max(alone) * (1 + 2 * PACED_SHARE) + 0.05


def test_a_worker_that_is_killed_repeatedly_leaves_no_expired_connection() -> None:
    world = World(make_members(50), rng=random.Random(4))
    for kind, version in (("o", V1), ("n", V2)):
        world.add_members("room", named(kind, 1_500), frames=version)
        world.expire(named(kind, 1_500))
    expired = [*named("o", 1_500), *named("n", 1_500)]

    async def simulation() -> None:
        number = 0
        while not set(expired) <= world.removed:
            worker = SimulatedWorker(world, max_posts_per_second=10_000)
            for _ in range(2):
                number += 1
                world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
                await asyncio.sleep(0.9)
            await worker.kill()
            assert world.now() < 600

    run(simulation())
    assert set(world.closed) == set(expired)
    assert world.current_members("room") == set(world.members)
