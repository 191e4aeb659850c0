"""Clients whose buffers stay full, in rooms with constant traffic: they delay no other member of any room.

Each run has an unaffected room, which shares only the worker with the stuck clients, and healthy members in the room of
the stuck ones. A stuck client is closed or kept (GATECAST_SLOW_CLIENTS), or recovers before that decision.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from local.backend import Backend
from tests.chaos.fault_scene import GRANTED, NEARLY_ALL, FaultScene, configure_endpoint
from tests.chaos.harness import Room
from tests.chaos.results import RunResult, record
from tests.chaos.sampling import rate_limit, sampled
from tests.chaos.scale import FULL, run_all
from tests.chaos.streams import Stream
from tests.chaos.stuck_clients import (
    CLOSE_SECONDS,
    assert_missed_deliveries,
    close_attempted,
    closed_in_time,
    observed_clients,
    posts_beyond_one_per_second,
    seconds_stuck,
    stuck_rule,
)

HEALTHY_MEMBERS: Final = 10
"""Members of the stuck clients' room that read."""
FLOW_SECONDS: Final = 75 if FULL else 20
RECOVERY_SECONDS: Final = 15
"""Less than the 30 s after which a stuck client is given up."""
SETTLING_SECONDS: Final = 60 if FULL else 20
AFTERWARDS_SECONDS: Final = 20 if FULL else 5
AT_ONCE_SECONDS: Final = 20.0
"""Clearly less than the 30 s after which a single delivery would be given up."""
FIRST_POSTS: Final = 20
"""Maximum posts to a stuck client until it is recognised as stuck; from then on at most one per second."""


def make_busy_room(scene: FaultScene, stuck: int) -> tuple[Room, Sequence[str], Sequence[str]]:
    """The room, its healthy members, and its stuck members."""
    room = scene.add_room("busy", HEALTHY_MEMBERS + stuck)
    return room, room.ids[:HEALTHY_MEMBERS], room.ids[HEALTHY_MEMBERS:]


async def close(base: Backend, directory: Path, run: str, *, stuck: int, per_second: float) -> None:
    async with FaultScene.set_up(base, directory) as scene:
        harness = scene.harness
        room, healthy_ids, stuck_ids = make_busy_room(scene, stuck)
        await configure_endpoint(harness, stuck_rule(stuck_ids))
        unaffected_stream, busy_stream = scene.stream(), Stream(harness, room)
        async with sampled(lambda: rate_limit(scene.worker)) as limits:
            await asyncio.gather(
                unaffected_stream.publish_steadily(scene.per_second, seconds=FLOW_SECONDS),
                busy_stream.publish_steadily(per_second, seconds=FLOW_SECONDS),
            )
            closed = await closed_in_time(harness, stuck_ids)
            drained = await harness.holds_within(lambda: harness.depth() == 0, seconds=SETTLING_SECONDS)

        unaffected, busy = await unaffected_stream.received(), await busy_stream.received()
        clients = await observed_clients(harness, stuck_ids)
        misses = harness.missed_deliveries()
        missing = unaffected.missing(scene.unaffected.ids) | busy.missing(healthy_ids)
        max_throttled = max(client.throttled for client in clients.values())
        max_seconds = max(map(seconds_stuck, clients.values()))
        record(
            RunResult(
                run=run,
                members=unaffected.expected(scene.unaffected.ids) + busy.expected(healthy_ids),
                missing=len(missing),
                repeated=unaffected.repeated() + busy.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=harness.elapsed_seconds,
                notes=f"{scene.latencies(unaffected)}; healthy members of the room {busy.latency(healthy_ids)}; "
                f"rate limit at least {min(limits):,.0f} of {GRANTED:,}; closed within "
                f"{max_seconds:.0f} s, after at most {max_throttled:,} posts",
            )
        )
        scene.assert_unaffected(unaffected)
        assert drained
        assert not missing
        assert busy.repeated() == 0
        assert min(limits) >= NEARLY_ALL * GRANTED
        assert closed
        assert max_seconds <= CLOSE_SECONDS
        assert max(map(posts_beyond_one_per_second, clients.values())) <= FIRST_POSTS
        assert not busy.unexpected(healthy_ids)
        assert_missed_deliveries(misses, busy_stream.published_at, clients)


async def recover(base: Backend, directory: Path, run: str, *, stuck: int, per_second: float) -> None:
    """No client is closed, and waiting messages are delivered before later ones."""
    async with FaultScene.set_up(base, directory) as scene:
        harness = scene.harness
        room, healthy_ids, stuck_ids = make_busy_room(scene, stuck)
        await configure_endpoint(harness, stuck_rule(stuck_ids))
        unaffected_stream, busy_stream = scene.stream(), Stream(harness, room)

        async def recovery() -> float:
            await asyncio.sleep(RECOVERY_SECONDS)
            await configure_endpoint(harness)
            return time.monotonic()

        async with sampled(lambda: rate_limit(scene.worker)) as limits:
            recovered_at, *_ = await asyncio.gather(
                recovery(),
                unaffected_stream.publish_steadily(scene.per_second, seconds=FLOW_SECONDS),
                busy_stream.publish_steadily(per_second, seconds=FLOW_SECONDS),
            )
            drained = await harness.holds_within(lambda: harness.depth() == 0, seconds=SETTLING_SECONDS)

        unaffected, busy = await unaffected_stream.received(), await busy_stream.received()
        clients = await observed_clients(harness, stuck_ids)
        misses = harness.missed_deliveries()
        missing = unaffected.missing(scene.unaffected.ids) | busy.missing(room.ids)
        waited = busy.last_delivery_at(stuck_ids, published_before=recovered_at) - recovered_at
        out_of_order = busy.out_of_order(stuck_ids)
        record(
            RunResult(
                run=run,
                members=unaffected.expected(scene.unaffected.ids) + busy.expected(room.ids),
                missing=len(missing),
                repeated=unaffected.repeated() + busy.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=harness.elapsed_seconds,
                notes=f"{scene.latencies(unaffected)}; healthy members of the room {busy.latency(healthy_ids)}; "
                f"rate limit at least {min(limits):,.0f} of {GRANTED:,}; waiting messages delivered within "
                f"{waited:.1f} s of the recovery, {out_of_order:,} deliveries out of order",
            )
        )
        scene.assert_unaffected(unaffected)
        assert drained
        assert not missing
        assert busy.repeated() == 0
        assert min(limits) >= NEARLY_ALL * GRANTED
        assert not close_attempted(clients)
        assert not misses
        assert out_of_order == busy.out_of_order(healthy_ids) == 0


async def keep(base: Backend, directory: Path, run: str, *, per_second: float) -> None:
    """Once a client is recognised as stuck, deliveries to it are missed at once until it reads again; never closed."""
    async with FaultScene.set_up(base, directory, settings={"GATECAST_SLOW_CLIENTS": "keep"}) as scene:
        harness = scene.harness
        room, healthy_ids, stuck_ids = make_busy_room(scene, 1)
        await configure_endpoint(harness, stuck_rule(stuck_ids))
        unaffected_stream, busy_stream, ended = scene.stream(), Stream(harness, room), asyncio.Event()

        async def is_missed(data: str) -> bool:
            return (data, stuck_ids[0]) in await asyncio.to_thread(harness.missed_deliveries)

        async def reads_again() -> bool:
            return bool((await busy_stream.received()).seconds(stuck_ids))

        async with asyncio.TaskGroup() as flows:
            flows.create_task(unaffected_stream.publish_steadily(scene.per_second, until=ended))
            flows.create_task(busy_stream.publish_steadily(per_second, until=ended))
            recognised = await harness.holds_within(harness.dead_letter_depth, seconds=CLOSE_SECONDS)
            late = await busy_stream.publish()
            at_once = await harness.holds_within(lambda: is_missed(late), seconds=AT_ONCE_SECONDS)
            missed_after = time.monotonic() - busy_stream.published_at[late]
            await configure_endpoint(harness)
            recovered_at = time.monotonic()
            reached = await harness.holds_within(reads_again, seconds=CLOSE_SECONDS)
            reached_at = time.monotonic()
            await asyncio.sleep(AFTERWARDS_SECONDS)
            ended.set()
        drained = await harness.holds_within(lambda: harness.depth() == 0, seconds=SETTLING_SECONDS)

        unaffected, busy = await unaffected_stream.received(), await busy_stream.received()
        clients = await observed_clients(harness, stuck_ids)
        misses = harness.missed_deliveries()
        missing = unaffected.missing(scene.unaffected.ids) | busy.missing(healthy_ids)
        record(
            RunResult(
                run=run,
                members=unaffected.expected(scene.unaffected.ids) + busy.expected(healthy_ids),
                missing=len(missing),
                repeated=unaffected.repeated() + busy.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=harness.elapsed_seconds,
                notes=f"{scene.latencies(unaffected)}; healthy members of the room {busy.latency(healthy_ids)}; "
                f"a message to the stuck client was missed after {missed_after:.1f} s; reached "
                f"{reached_at - recovered_at:.0f} s after it read again",
            )
        )
        scene.assert_unaffected(unaffected)
        assert drained
        assert not missing
        assert busy.repeated() == 0
        assert recognised
        assert at_once
        assert reached
        assert not close_attempted(clients)
        not_delivered = busy.missing(stuck_ids)
        assert set(misses) == not_delivered
        assert misses.total() == len(misses)
        assert not {data for data, _ in not_delivered if busy.published_at[data] > reached_at + 1}


@pytest.mark.timeout(1_800 if FULL else 300)
async def test_stuck_clients_do_not_delay_others(chaos_backend: Backend, tmp_path: Path) -> None:
    await run_all(
        close(chaos_backend, tmp_path, "one stuck client, 3 messages per second", stuck=1, per_second=3),
        close(chaos_backend, tmp_path, "one stuck client, 10 messages per second", stuck=1, per_second=10),
        close(chaos_backend, tmp_path, "100 stuck clients, 10 messages per second", stuck=100, per_second=10),
        recover(chaos_backend, tmp_path, "100 stuck clients that recover after 15 s", stuck=100, per_second=10),
        keep(chaos_backend, tmp_path, "one stuck client, kept", per_second=3),
    )
