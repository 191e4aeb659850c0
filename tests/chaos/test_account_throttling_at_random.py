"""The account throttles posts at random, or all of them: no client is at fault, so none is closed or missed."""

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest

from gatecast.emulator.faults import THROTTLED, Rule
from local.backend import Backend
from tests.chaos.fault_scene import GRANTED, FaultScene, configure_endpoint
from tests.chaos.results import RunResult, record
from tests.chaos.sampling import rate_limit, sampled
from tests.chaos.scale import FULL, run_all
from tests.chaos.streams import Stream
from tests.chaos.stuck_clients import close_attempted

FAULT_SECONDS: Final = 60 if FULL else 35
CROWD: Final = 3_000 if FULL else 1_000
PER_SECOND: Final = 2
TIMEOUT_SECONDS: Final = 120 if FULL else 60
CALLS: Final = frozenset({"POST", "DELETE", "GET"})


async def throttled(base: Backend, directory: Path, run: str, *, share: float) -> None:
    """Throttle a random share of all calls during one broadcast to a large room and a stream to a small one."""
    async with FaultScene.set_up(base, directory, per_second=PER_SECOND) as scene:
        harness = scene.harness
        crowd = scene.add_room("crowd", CROWD)
        unaffected_stream, crowd_stream = scene.stream(), Stream(harness, crowd)
        await configure_endpoint(harness, Rule(fault=THROTTLED, share=share, methods=CALLS))
        async with sampled(lambda: rate_limit(scene.worker)) as limits:
            await crowd_stream.publish()
            await unaffected_stream.publish_steadily(scene.per_second, seconds=FAULT_SECONDS)
            await configure_endpoint(harness)
            recovered_at = time.monotonic()
            drained = await harness.holds_within(lambda: harness.depth() == 0, seconds=TIMEOUT_SECONDS)

        unaffected, in_crowd = await unaffected_stream.received(), await crowd_stream.received()
        missing = unaffected.missing(scene.unaffected.ids) | in_crowd.missing(crowd.ids)
        repeated = unaffected.repeated() + in_crowd.repeated()
        last_at = max(unaffected.last_delivery_at(scene.unaffected.ids), in_crowd.last_delivery_at(crowd.ids))
        closed = close_attempted(await harness.endpoint.clients())
        misses = await asyncio.to_thread(harness.missed_deliveries)
        record(
            RunResult(
                run=run,
                members=unaffected.expected(scene.unaffected.ids) + len(crowd.ids),
                missing=len(missing),
                repeated=repeated,
                allowed=0,
                dead_letters=misses.total(),
                seconds=harness.elapsed_seconds,
                notes=f"{scene.latencies(unaffected)}; {len(closed):,} closed; rate limit at least {min(limits):,.0f} "
                f"of {GRANTED:,}; all delivered {max(0.0, last_at - recovered_at):.1f} s after the recovery",
            )
        )
        assert not closed
        assert not misses
        assert drained
        assert not missing
        assert repeated == 0


@pytest.mark.timeout(1_800 if FULL else 240)
async def test_account_throttling_at_random_loses_no_message_and_closes_no_connection(
    chaos_backend: Backend, tmp_path: Path
) -> None:
    duration = f"for {FAULT_SECONDS} s"
    await run_all(
        throttled(chaos_backend, tmp_path, f"account throttles half of all posts {duration}", share=0.5),
        throttled(chaos_backend, tmp_path, f"account throttles 90% of all posts {duration}", share=0.9),
        throttled(chaos_backend, tmp_path, f"account throttles all posts {duration}", share=1.0),
    )
