"""Clients whose buffers stay full, in rooms that are never silent: they hold up nobody, in no room.

Each run has a room of honest members that share nothing with the stuck ones but the worker, and honest ones in the room
of the stuck. A stuck client is closed, or kept (GATECAST_SLOW_CLIENTS), or recovers before that is decided.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from local.backend import Backend
from tests.chaos.arena import Room
from tests.chaos.results import Figures, record
from tests.chaos.scene import GRANTED, NEARLY_ALL, Scene, behave
from tests.chaos.sizes import FULL, side_by_side
from tests.chaos.streams import Stream
from tests.chaos.stuck import (
    CLOSE_SECONDS,
    assert_misses,
    closed_in_time,
    deleted,
    posts_beyond_one_per_second,
    seconds_stuck,
    stuck_clients,
    stuck_rule,
)
from tests.chaos.watching import rate_limit, sampled

HONEST_BESIDE: Final = 10
"""Members of the stuck clients' room that read."""
FLOW_SECONDS: Final = 75 if FULL else 20
RECOVERY_SECONDS: Final = 15
"""Less than the 30 s that a client is given."""
SETTLING_SECONDS: Final = 60 if FULL else 20
AFTERWARDS_SECONDS: Final = 20 if FULL else 5
AT_ONCE_SECONDS: Final = 20.0
"""Clearly less than the 30 s that a delivery of its own would take."""
FIRST_POSTS: Final = 20
"""To a stuck client, until it is known to be one; from then on at most one per second."""


def make_busy_room(scene: Scene, stuck: int) -> tuple[Room, Sequence[str], Sequence[str]]:
    """The room, those of its members that read, and the stuck ones."""
    room = scene.room("busy", HONEST_BESIDE + stuck)
    return room, room.ids[:HONEST_BESIDE], room.ids[HONEST_BESIDE:]


async def are_closed(base: Backend, directory: Path, run: str, *, stuck: int, per_second: float) -> None:
    async with Scene.set_up(base, directory) as scene:
        arena = scene.arena
        room, beside, stuck_ids = make_busy_room(scene, stuck)
        await behave(arena, stuck_rule(stuck_ids))
        honest_stream, busy_stream = scene.stream(), Stream(arena, room)
        async with sampled(lambda: rate_limit(scene.worker)) as limits:
            await asyncio.gather(
                honest_stream.flow(scene.per_second, seconds=FLOW_SECONDS),
                busy_stream.flow(per_second, seconds=FLOW_SECONDS),
            )
            closed = await closed_in_time(arena, stuck_ids)
            drained = await arena.within(lambda: arena.depth() == 0, seconds=SETTLING_SECONDS)

        honest, busy = await honest_stream.received(), await busy_stream.received()
        clients = await stuck_clients(arena, stuck_ids)
        misses = arena.misses()
        missing = honest.missing(scene.honest.ids) | busy.missing(beside)
        most = max(client.throttled for client in clients.values())
        longest = max(map(seconds_stuck, clients.values()))
        record(
            Figures(
                run=run,
                members=len(honest.published_at) * len(scene.honest.ids) + len(busy.published_at) * len(beside),
                missing=len(missing),
                repeated=honest.repeated() + busy.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=arena.seconds,
                notes=f"{scene.latencies(honest)}; beside the stuck {busy.latency(beside)}; limit at least "
                f"{min(limits):,.0f} of {GRANTED:,}; closed after {longest:.0f} s at most, posted to {most:,} times "
                f"at most",
            )
        )
        scene.assert_honest(honest)
        assert drained
        assert not missing
        assert busy.repeated() == 0
        assert min(limits) >= NEARLY_ALL * GRANTED
        assert closed
        assert longest <= CLOSE_SECONDS
        assert max(map(posts_beyond_one_per_second, clients.values())) <= FIRST_POSTS
        assert not busy.strangers(beside)
        assert_misses(misses, busy_stream.published_at, clients)


async def recover(base: Backend, directory: Path, run: str, *, stuck: int, per_second: float) -> None:
    """Nobody is closed, and what waited arrives before what came later."""
    async with Scene.set_up(base, directory) as scene:
        arena = scene.arena
        room, beside, stuck_ids = make_busy_room(scene, stuck)
        await behave(arena, stuck_rule(stuck_ids))
        honest_stream, busy_stream = scene.stream(), Stream(arena, room)

        async def recovery() -> float:
            await asyncio.sleep(RECOVERY_SECONDS)
            await behave(arena)
            return time.monotonic()

        async with sampled(lambda: rate_limit(scene.worker)) as limits:
            recovered_at, *_ = await asyncio.gather(
                recovery(),
                honest_stream.flow(scene.per_second, seconds=FLOW_SECONDS),
                busy_stream.flow(per_second, seconds=FLOW_SECONDS),
            )
            drained = await arena.within(lambda: arena.depth() == 0, seconds=SETTLING_SECONDS)

        honest, busy = await honest_stream.received(), await busy_stream.received()
        clients = await stuck_clients(arena, stuck_ids)
        misses = arena.misses()
        missing = honest.missing(scene.honest.ids) | busy.missing(room.ids)
        waited = busy.last_delivery_at(stuck_ids, published_before=recovered_at) - recovered_at
        overtaken = busy.overtaken(stuck_ids)
        record(
            Figures(
                run=run,
                members=len(honest.published_at) * len(scene.honest.ids) + len(busy.published_at) * len(room.ids),
                missing=len(missing),
                repeated=honest.repeated() + busy.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=arena.seconds,
                notes=f"{scene.latencies(honest)}; beside the stuck {busy.latency(beside)}; limit at least "
                f"{min(limits):,.0f} of {GRANTED:,}; what waited was delivered {waited:.1f} s after the recovery at "
                f"most, {overtaken:,} deliveries overtaken",
            )
        )
        scene.assert_honest(honest)
        assert drained
        assert not missing
        assert busy.repeated() == 0
        assert min(limits) >= NEARLY_ALL * GRANTED
        assert not deleted(clients)
        assert not misses
        assert overtaken == busy.overtaken(beside) == 0


async def are_kept(base: Backend, directory: Path, run: str, *, per_second: float) -> None:
    """Once it is known to be stuck, what is for it is missed at once, until it reads again. It is never closed."""
    async with Scene.set_up(base, directory, settings={"GATECAST_SLOW_CLIENTS": "keep"}) as scene:
        arena = scene.arena
        room, beside, stuck_ids = make_busy_room(scene, 1)
        await behave(arena, stuck_rule(stuck_ids))
        honest_stream, busy_stream, ended = scene.stream(), Stream(arena, room), asyncio.Event()

        async def is_missed(data: str) -> bool:
            return (data, stuck_ids[0]) in await asyncio.to_thread(arena.misses)

        async def reads_again() -> bool:
            return bool((await busy_stream.received()).seconds(stuck_ids))

        async with asyncio.TaskGroup() as flows:
            flows.create_task(honest_stream.flow(scene.per_second, until=ended))
            flows.create_task(busy_stream.flow(per_second, until=ended))
            dead_letters_url = arena.backend.queues.dead_letter_url
            known = await arena.within(lambda: arena.depth(dead_letters_url), seconds=CLOSE_SECONDS)
            late = await busy_stream.publish()
            at_once = await arena.within(lambda: is_missed(late), seconds=AT_ONCE_SECONDS)
            missed_after = time.monotonic() - busy_stream.published_at[late]
            await behave(arena)
            recovered_at = time.monotonic()
            again = await arena.within(reads_again, seconds=CLOSE_SECONDS)
            again_at = time.monotonic()
            await asyncio.sleep(AFTERWARDS_SECONDS)
            ended.set()
        drained = await arena.within(lambda: arena.depth() == 0, seconds=SETTLING_SECONDS)

        honest, busy = await honest_stream.received(), await busy_stream.received()
        clients = await stuck_clients(arena, stuck_ids)
        misses = arena.misses()
        missing = honest.missing(scene.honest.ids) | busy.missing(beside)
        record(
            Figures(
                run=run,
                members=len(honest.published_at) * len(scene.honest.ids) + len(busy.published_at) * len(beside),
                missing=len(missing),
                repeated=honest.repeated() + busy.repeated(),
                allowed=0,
                dead_letters=misses.total(),
                seconds=arena.seconds,
                notes=f"{scene.latencies(honest)}; beside the stuck {busy.latency(beside)}; what came when it was "
                f"known to be stuck was missed after {missed_after:.1f} s; reached again "
                f"{again_at - recovered_at:.0f} s after it read again",
            )
        )
        scene.assert_honest(honest)
        assert drained
        assert not missing
        assert busy.repeated() == 0
        assert known
        assert at_once
        assert again
        assert not deleted(clients)
        not_delivered = busy.missing(stuck_ids)
        assert set(misses) == not_delivered
        assert misses.total() == len(misses)
        assert not {data for data, _ in not_delivered if busy.published_at[data] > again_at + 1}


@pytest.mark.timeout(1_800 if FULL else 300)
async def test_stuck_clients_hold_up_nobody(chaos_backend: Backend, tmp_path: Path) -> None:
    await side_by_side(
        are_closed(chaos_backend, tmp_path, "one stuck client, 3 messages per second", stuck=1, per_second=3),
        are_closed(chaos_backend, tmp_path, "one stuck client, 10 messages per second", stuck=1, per_second=10),
        are_closed(chaos_backend, tmp_path, "100 stuck clients, 10 messages per second", stuck=100, per_second=10),
        recover(chaos_backend, tmp_path, "100 stuck clients that recover after 15 s", stuck=100, per_second=10),
        are_kept(chaos_backend, tmp_path, "one stuck client, kept", per_second=3),
    )
