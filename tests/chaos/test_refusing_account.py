"""An account that refuses posts at random, or all of them: no client is at fault, so none is closed or missed."""

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest

from local.backend import Backend
from local.gateway.faults import THROTTLED, Rule
from tests.chaos.results import Figures, record
from tests.chaos.scene import GRANTED, Scene, behave
from tests.chaos.sizes import FULL, side_by_side
from tests.chaos.streams import Stream
from tests.chaos.stuck import deleted
from tests.chaos.watching import rate_limit, sampled

LASTS_SECONDS: Final = 60 if FULL else 35
CROWD: Final = 3_000 if FULL else 1_000
PER_SECOND: Final = 2
PATIENCE_SECONDS: Final = 120 if FULL else 60
CALLS: Final = frozenset({"POST", "DELETE", "GET"})


async def refused(base: Backend, directory: Path, run: str, *, share: float) -> None:
    """This share of all calls, chosen by dice, while one broadcast goes to many and others to few."""
    async with Scene.set_up(base, directory, per_second=PER_SECOND) as scene:
        arena = scene.arena
        crowd = scene.room("crowd", CROWD)
        honest_stream, crowd_stream = scene.stream(), Stream(arena, crowd)
        await behave(arena, Rule(fault=THROTTLED, share=share, methods=CALLS))
        async with sampled(lambda: rate_limit(scene.worker)) as limits:
            await crowd_stream.publish()
            await honest_stream.flow(scene.per_second, seconds=LASTS_SECONDS)
            await behave(arena)
            granted_at = time.monotonic()
            drained = await arena.within(lambda: arena.depth() == 0, seconds=PATIENCE_SECONDS)

        honest, in_crowd = await honest_stream.received(), await crowd_stream.received()
        missing = honest.missing(scene.honest.ids) | in_crowd.missing(crowd.ids)
        repeated = honest.repeated() + in_crowd.repeated()
        last_at = max(honest.last_delivery_at(scene.honest.ids), in_crowd.last_delivery_at(crowd.ids))
        closed = deleted(await arena.endpoint.clients())
        misses = await asyncio.to_thread(arena.misses)
        record(
            Figures(
                run=run,
                members=len(honest.published_at) * len(scene.honest.ids) + len(crowd.ids),
                missing=len(missing),
                repeated=repeated,
                allowed=0,
                dead_letters=misses.total(),
                seconds=arena.seconds,
                notes=f"{scene.latencies(honest)}; {len(closed):,} closed; limit at least {min(limits):,.0f} of "
                f"{GRANTED:,}; all delivered {max(0.0, last_at - granted_at):.1f} s after it granted everything again",
            )
        )
        assert not closed
        assert not misses
        assert drained
        assert not missing
        assert repeated == 0


@pytest.mark.timeout(1_800 if FULL else 240)
async def test_an_account_that_refuses_costs_nobody_a_message_or_a_connection(
    chaos_backend: Backend, tmp_path: Path
) -> None:
    lasts = f"for {LASTS_SECONDS} s"
    await side_by_side(
        refused(chaos_backend, tmp_path, f"account refuses half of all posts {lasts}", share=0.5),
        refused(chaos_backend, tmp_path, f"account refuses 90% of all posts {lasts}", share=0.9),
        refused(chaos_backend, tmp_path, f"account refuses all posts {lasts}", share=1.0),
    )
