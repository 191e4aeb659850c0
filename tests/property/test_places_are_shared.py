"""A burst to one room, or very many shards of one, delays no other room. In virtual time."""

import asyncio
import random

from tests.simulated_streams import HONEST, Streams, percentile, world_with
from tests.simulation import LONG_AGO_MS, SimulatedWorker, World, run, until_empty
from worker.ports import Member, Page

LARGE = tuple(f"large{number:04d}" for number in range(1_000))


def test_a_burst_to_a_large_room_delays_no_other_and_finishes_one_broadcast_after_the_other() -> None:
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
    assert len([end for end in ends.values() if end < 25]) >= 40, "half of the time, nearly half of the broadcasts"


def test_more_messages_to_one_room_than_wait_in_memory_go_back_and_are_delivered_later() -> None:
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


class Sharded(World):
    """Each shard of the room has members of its own."""

    def page(self, room: str, shard: int) -> Page:
        members = self.others[room] if room != "large" else [f"s{shard}-{each}" for each in range(500)]
        return Page([Member(each, LONG_AGO_MS) for each in members], None)


def test_seventy_shards_of_one_room_delay_no_other() -> None:
    world = Sharded({}, rng=random.Random(1), shards=70)
    world.others = {"honest": HONEST[:5]}
    world.named = {f"s{shard}-{each}" for shard in range(70) for each in range(500)}
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=2_000)
        worker.core._table.pages = world.page  # type: ignore[attr-defined]
        streams.publish("large", 0)
        await asyncio.sleep(3)
        world.shards = 1
        worker.core._broadcaster._room_settings._cache.clear()
        await streams.publish_for("honest", per_second=2, seconds=25)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.delivered) == 35_005
    assert {world.delivered[each] for each in world.delivered if each.startswith("s")} == {1}
    assert percentile(streams.latencies(HONEST[:5]), 0.99) < 1
