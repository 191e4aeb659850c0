"""A large room or a hostile room name does not slow other rooms down."""

import asyncio
import bisect
import itertools
from pathlib import Path
from typing import Final

import pytest

from local.backend import Backend
from tests.chaos.fault_scene import GRANTED, FaultScene, configure_endpoint, make_room
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL
from tests.chaos.streams import Received, Stream, percentile
from tests.chaos.stuck_clients import closed_in_time, observed_clients, seconds_stuck, stuck_rule

BURST: Final = 200 if FULL else 120
LARGE_ROOM: Final = 1_000 if FULL else 300
SETTLING_SECONDS: Final = 60
FIFO_SECONDS: Final = 60 if FULL else 12
FIFO_TIMEOUT_SECONDS: Final = 20
"""Clearly less than the 30 s after which a stuck client is given up."""
SHARDS: Final = 4


def posts_between(burst: Received, small: Received) -> float:
    """The p99 of the posts to the large room between publishing and delivering a message to the small room."""
    all_at = sorted(at for counts in burst.counts.values() for at in counts.first_delivered_at.values())
    return percentile(
        (
            bisect.bisect(all_at, at) - bisect.bisect(all_at, small.published_at[data])
            for data, counts in small.counts.items()
            for at in counts.first_delivered_at.values()
        ),
        0.99,
    )


@pytest.mark.timeout(600 if FULL else 180)
async def test_a_burst_to_a_large_room_does_not_delay_a_small_room(chaos_backend: Backend, tmp_path: Path) -> None:
    async with FaultScene.set_up(chaos_backend, tmp_path, members=5, per_second=1 if FULL else 4) as scene:
        harness = scene.harness
        large = scene.add_room("large", LARGE_ROOM)
        small_stream, burst_stream, ended = scene.stream(), Stream(harness, large), asyncio.Event()
        async with asyncio.TaskGroup() as flows:
            flows.create_task(small_stream.publish_steadily(scene.per_second, until=ended))
            for _ in range(BURST):
                await burst_stream.publish()
            drained = await harness.holds_within(
                lambda: harness.depth() == 0, seconds=BURST * LARGE_ROOM / GRANTED + SETTLING_SECONDS
            )
            ended.set()
        drained = drained and await harness.holds_within(lambda: harness.depth() == 0, seconds=SETTLING_SECONDS)

        small, burst = await small_stream.received(), await burst_stream.received()
        missing = small.missing(scene.unaffected.ids) | burst.missing(large.ids)
        between = posts_between(burst, small)
        letters = harness.dead_letter_depth()
        record(
            RunResult(
                run=f"a burst of {BURST} broadcasts to {LARGE_ROOM:,} members",
                members=BURST * LARGE_ROOM + small.expected(scene.unaffected.ids),
                missing=len(missing),
                repeated=small.repeated() + burst.repeated(),
                allowed=0,
                dead_letters=letters,
                seconds=harness.elapsed_seconds,
                notes=f"{scene.latencies(small)}; {between:,.0f} posts to the large room came first (p99); "
                f"large room {burst.latency(large.ids)}",
            )
        )
        scene.assert_unaffected(small)
        assert drained
        assert not missing
        assert burst.repeated() == letters == 0
        assert between <= 2 * GRANTED


@pytest.mark.timeout(600 if FULL else 180)
async def test_fifo_with_shared_ids_and_hostile_names(chaos_backend: Backend, tmp_path: Path) -> None:
    """The same ids for messages to two rooms with several shards, and a room named like the first one's shard `#0`."""
    async with FaultScene.set_up(chaos_backend, tmp_path, members=40, shards=SHARDS, per_second=2, fifo=True) as scene:
        harness = scene.harness
        hall = scene.add_room("hall", 40, shards=SHARDS)
        hostile = make_room(harness, f"{scene.unaffected.name}#0", 6)
        healthy_ids, stuck_ids = hostile.ids[:-1], hostile.ids[-1:]
        await configure_endpoint(harness, stuck_rule(stuck_ids))
        ids = f"shared-{scene.name}"
        unaffected_stream, hall_stream = scene.stream(ids=ids), Stream(harness, hall, ids=ids)
        hostile_stream = Stream(harness, hostile)

        async def complete() -> bool:
            return await unaffected_stream.is_complete(scene.unaffected.ids) and await hall_stream.is_complete(hall.ids)

        await asyncio.gather(
            unaffected_stream.publish_steadily(scene.per_second, seconds=FIFO_SECONDS),
            hall_stream.publish_steadily(scene.per_second, seconds=FIFO_SECONDS),
            hostile_stream.publish_steadily(1, seconds=FIFO_SECONDS),
        )
        reached = await harness.holds_within(complete, seconds=FIFO_TIMEOUT_SECONDS)
        unaffected, in_hall = await unaffected_stream.received(), await hall_stream.received()
        missing = unaffected.missing(scene.unaffected.ids) | in_hall.missing(hall.ids)
        notes = f"{scene.latencies(unaffected)}; other room with the same ids {in_hall.latency(hall.ids)}"
        drained = True
        if FULL:  # members of the hostile room wait for the stuck one, because a FIFO queue keeps order
            closed = await closed_in_time(harness, stuck_ids)
            drained = await harness.holds_within(lambda: harness.depth() == 0, seconds=SETTLING_SECONDS)
            missing |= (await hostile_stream.received()).missing(healthy_ids)
            clients = await observed_clients(harness, stuck_ids)
            notes += f"; stuck client closed after {max(map(seconds_stuck, clients.values())):.0f} s"
        misses = harness.missed_deliveries()
        record(
            RunResult(
                run="FIFO: the same ids to two rooms, and a stuck client in a room named like a shard",
                members=unaffected.expected(scene.unaffected.ids) + in_hall.expected(hall.ids),
                missing=len(missing),
                repeated=unaffected.repeated() + in_hall.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=harness.elapsed_seconds,
                notes=notes,
            )
        )
        scene.assert_unaffected(unaffected)
        assert reached
        assert drained
        assert not missing
        assert in_hall.repeated() == 0
        assert unaffected.out_of_order(scene.unaffected.ids, tolerance_seconds=0) == 0
        assert in_hall.out_of_order(hall.ids, tolerance_seconds=0) == 0
        assert set(misses) <= set(itertools.product(hostile_stream.published_at, stuck_ids))
        assert misses.total() == len(misses)
        if FULL:  # messages on the queue until the close find the connection gone: they are not missed deliveries
            assert closed
            assert (next(iter(hostile_stream.published_at)), stuck_ids[0]) in misses
