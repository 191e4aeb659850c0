"""Members in a table of the operator's own, read from an index: a worker that is killed misses nobody.

The index is sorted by the time of joining, which many share, so its order says nothing about connection ids, and a page
continues after a key of three attributes. A tenth of the members is gone, and removed from the table.
"""

import time
import uuid
from pathlib import Path

from gatecast import Broadcast
from local.backend import Backend
from tests.chaos.harness import Harness
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL, interruption_points
from tests.foreign_tables import BY_TIME
from tests.members import connection_ids
from tests.worker_process import eventually

MEMBERS = 20_000 if FULL else 2_000
KILLS = 10 if FULL else 1
IN_FLIGHT = 256
MAX_REPEATED = 1_000 + IN_FLIGHT
"""After one kill: deliveries since the last checkpoint, and posts in flight."""
TIMEOUT_SECONDS = 120 if FULL else 60
ROOM = "crowd"


async def test_a_foreign_index_is_delivered_to_and_cleaned_while_workers_are_killed(
    chaos_backend: Backend, tmp_path: Path
) -> None:
    started_at = time.monotonic()
    ids = connection_ids(MEMBERS - MEMBERS // 10)
    gone = [f"g{number:06d}gone=" for number in range(MEMBERS // 10)]  # no clients of the endpoint's
    points = interruption_points("kill -9 with a foreign index", KILLS, len(ids))
    async with Harness.open(chaos_backend, f"chaos-{uuid.uuid4().hex[:8]}", tmp_path) as harness:
        name = f"foreign-{uuid.uuid4().hex[:8]}"
        BY_TIME.create(harness.dynamodb, name)
        joined_at_ms = int(time.time() * 1000) - 3_600_000
        BY_TIME.fill(harness.dynamodb, name, ROOM, ids, joined_at_ms=joined_at_ms)
        BY_TIME.fill(harness.dynamodb, name, ROOM, gone, joined_at_ms=joined_at_ms)
        settings = {
            "GATECAST_MEMBERS": BY_TIME.members(name),
            "GATECAST_MAX_POSTS_PER_SECOND": "4000" if FULL else "1500",
            "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT),
        }

        worker = harness.launch(settings)
        await worker.ready()
        harness.publish(Broadcast(id="one", room=ROOM, data="x"))
        for members in points:
            await harness.wait_until_reached(members, seconds=TIMEOUT_SECONDS)
            worker.kill()
            worker = harness.launch(settings)
        await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)

        tally, letters = await harness.tally("x", ids), harness.dead_letter_depth()
        record(
            RunResult(
                run=f"members in a foreign index, kill -9 at {KILLS} random moments",
                members=len(ids),
                missing=len(tally.missing),
                repeated=tally.repeated,
                allowed=MAX_REPEATED * KILLS,
                dead_letters=letters,
                seconds=time.monotonic() - started_at,
                notes=f"and {len(gone):,} gone ones, which are removed from it",
            )
        )
        assert not tally.missing
        assert not tally.unexpected
        assert tally.repeated <= MAX_REPEATED * KILLS
        assert not letters

        # What a killed worker had not removed yet, the next broadcast finds.
        harness.publish(Broadcast(id="two", room=ROOM, data="y"))
        await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
        await eventually(lambda: BY_TIME.ids(harness.dynamodb, name) == set(ids), seconds=TIMEOUT_SECONDS)
