"""What a large room or a hostile name does to other rooms: nothing that they would notice."""

import asyncio
import bisect
import itertools
from pathlib import Path
from typing import Final

import pytest

from local.backend import Backend
from tests.chaos.results import Figures, record
from tests.chaos.scene import GRANTED, Scene, behave, make_room
from tests.chaos.sizes import FULL
from tests.chaos.streams import Received, Stream, percentile
from tests.chaos.stuck import closed_in_time, seconds_stuck, stuck_clients, stuck_rule

BURST: Final = 200 if FULL else 120
LARGE_ROOM: Final = 1_000 if FULL else 300
SETTLING_SECONDS: Final = 60
FIFO_SECONDS: Final = 60 if FULL else 12
FIFO_PATIENCE_SECONDS: Final = 20
"""Clearly less than the 30 s that a stuck client is given."""
SHARDS: Final = 4


def posts_between(burst: Received, small: Received) -> float:
    """How many posts to the large room went before a message to the small one since it was published: the p99."""
    all_at = sorted(at for counts in burst.counts.values() for at in counts.first_at.values())
    return percentile(
        (
            bisect.bisect(all_at, at) - bisect.bisect(all_at, small.published_at[data])
            for data, counts in small.counts.items()
            for at in counts.first_at.values()
        ),
        0.99,
    )


@pytest.mark.timeout(600 if FULL else 180)
async def test_a_burst_to_a_large_room_delays_no_small_one(chaos_backend: Backend, tmp_path: Path) -> None:
    async with Scene.set_up(chaos_backend, tmp_path, members=5, per_second=1 if FULL else 4) as scene:
        arena = scene.arena
        large = scene.room("large", LARGE_ROOM)
        small_stream, burst_stream, ended = scene.stream(), Stream(arena, large), asyncio.Event()
        async with asyncio.TaskGroup() as flows:
            flows.create_task(small_stream.flow(scene.per_second, until=ended))
            for _ in range(BURST):
                await burst_stream.publish()
            drained = await arena.within(
                lambda: arena.depth() == 0, seconds=BURST * LARGE_ROOM / GRANTED + SETTLING_SECONDS
            )
            ended.set()
        drained = drained and await arena.within(lambda: arena.depth() == 0, seconds=SETTLING_SECONDS)

        small, burst = await small_stream.received(), await burst_stream.received()
        missing = small.missing(scene.honest.ids) | burst.missing(large.ids)
        between = posts_between(burst, small)
        letters = arena.depth(arena.backend.queues.dead_letter_url)
        record(
            Figures(
                run=f"a burst of {BURST} broadcasts to {LARGE_ROOM:,} members",
                members=BURST * LARGE_ROOM + len(small.published_at) * len(scene.honest.ids),
                missing=len(missing),
                repeated=small.repeated() + burst.repeated(),
                allowed=0,
                dead_letters=letters,
                seconds=arena.seconds,
                notes=f"{scene.latencies(small)}, {between:,.0f} posts to the large room went before; "
                f"the large room {burst.latency(large.ids)}",
            )
        )
        scene.assert_honest(small)
        assert drained
        assert not missing
        assert burst.repeated() == letters == 0
        assert between <= 2 * GRANTED


@pytest.mark.timeout(600 if FULL else 180)
async def test_fifo_with_shared_ids_and_hostile_names(chaos_backend: Backend, tmp_path: Path) -> None:
    """One id for messages to two rooms of several shards; and a room whose name is that of one of them with `#0`."""
    async with Scene.set_up(chaos_backend, tmp_path, members=40, shards=SHARDS, per_second=2, fifo=True) as scene:
        arena = scene.arena
        hall = scene.room("hall", 40, shards=SHARDS)
        hostile = make_room(arena, f"{scene.honest.name}#0", 6)
        beside, stuck_ids = hostile.ids[:-1], hostile.ids[-1:]
        await behave(arena, stuck_rule(stuck_ids))
        ids = f"shared-{scene.name}"
        honest_stream, hall_stream = scene.stream(ids=ids), Stream(arena, hall, ids=ids)
        hostile_stream = Stream(arena, hostile)

        async def complete() -> bool:
            return await honest_stream.complete(scene.honest.ids) and await hall_stream.complete(hall.ids)

        await asyncio.gather(
            honest_stream.flow(scene.per_second, seconds=FIFO_SECONDS),
            hall_stream.flow(scene.per_second, seconds=FIFO_SECONDS),
            hostile_stream.flow(1, seconds=FIFO_SECONDS),
        )
        reached = await arena.within(complete, seconds=FIFO_PATIENCE_SECONDS)
        honest, in_hall = await honest_stream.received(), await hall_stream.received()
        missing = honest.missing(scene.honest.ids) | in_hall.missing(hall.ids)
        notes = f"{scene.latencies(honest)}; the room with the same ids {in_hall.latency(hall.ids)}"
        drained = True
        if FULL:  # the hostile room's own members wait for the stuck one, as a FIFO queue has it
            closed = await closed_in_time(arena, stuck_ids)
            drained = await arena.within(lambda: arena.depth() == 0, seconds=SETTLING_SECONDS)
            missing |= (await hostile_stream.received()).missing(beside)
            clients = await stuck_clients(arena, stuck_ids)
            notes += f"; the stuck one closed after {max(map(seconds_stuck, clients.values())):.0f} s"
        misses = arena.misses()
        record(
            Figures(
                run="FIFO: one id to two rooms, and a stuck client in a room named as a shard",
                members=len(honest.published_at) * len(scene.honest.ids) + len(in_hall.published_at) * len(hall.ids),
                missing=len(missing),
                repeated=honest.repeated() + in_hall.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=arena.seconds,
                notes=notes,
            )
        )
        scene.assert_honest(honest)
        assert reached
        assert drained
        assert not missing
        assert in_hall.repeated() == 0
        assert honest.overtaken(scene.honest.ids, same_moment_seconds=0) == 0
        assert in_hall.overtaken(hall.ids, same_moment_seconds=0) == 0
        assert set(misses) <= set(itertools.product(hostile_stream.published_at, stuck_ids))
        assert misses.total() == len(misses)
        if FULL:  # what waited on the queue until the close found the connection gone: that is no miss
            assert closed
            assert (next(iter(hostile_stream.published_at)), stuck_ids[0]) in misses
