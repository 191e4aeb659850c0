"""A burst to one room, or a room with very many shards, delays no other room. In virtual time."""

import asyncio
import random

from tests.simulated_streams import HONEST, Streams, percentile, world_with
from tests.simulation import SimulatedWorker, World, run, until_empty

LARGE = tuple(f"large{number:04d}" for number in range(1_000))


def test_a_burst_to_a_large_room_delays_no_other_room_and_completes_in_order() -> None:
    world = world_with({"large": LARGE, "honest": HONEST[:5]}, lambda _each, _nth: 200)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=2_000)
        await asyncio.sleep(1)
        for number in range(100):
            streams.publish("large", number)
        await streams.publish_for("honest", per_second=2, seconds=60)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert streams.all_received("large", LARGE)
    assert streams.all_received("honest", HONEST[:5])
    assert percentile(streams.latencies(HONEST[:5]), 0.99) < 1
    ends = {name: max(at for each in LARGE[:50] for at, got in world.received[each] if got == name) for name in
            streams.names("large")}  # fmt: skip
    assert len([end for end in ends.values() if end < 25]) >= 40, (
        "after half of the time, nearly half of the broadcasts are complete"
    )


def test_messages_beyond_the_waiting_limit_are_deferred_and_delivered_later() -> None:
    world = world_with({"large": LARGE[:50], "honest": HONEST[:5]}, lambda _each, _nth: 200)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=1_000)
        await asyncio.sleep(1)
        for number in range(800):
            streams.publish("large", number)
        await streams.publish_for("honest", per_second=2, seconds=30)
        assert worker.metrics.deferred > 0
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert streams.all_received("large", LARGE[:50])
    assert percentile(streams.latencies(HONEST[:5]), 0.99) < 1


def test_seventy_shards_of_one_room_delay_no_other_room() -> None:
    world = World({}, rng=random.Random(1))
    world.add_members("honest", HONEST[:5])
    for shard in range(70):
        world.add_members("large", [f"s{shard}-{each}" for each in range(500)], shard=shard)
    world.set_shards("large", 70)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=2_000)
        streams.publish("large", 0)
        await asyncio.sleep(3)
        await streams.publish_for("honest", per_second=2, seconds=25)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.delivered) == 35_005
    assert {world.delivered[each] for each in world.delivered if each.startswith("s")} == {1}
    assert percentile(streams.latencies(HONEST[:5]), 0.99) < 1
