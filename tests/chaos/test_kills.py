"""A broadcast whose worker is killed or terminated repeatedly: no member is missed, and repeats are bounded."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from gatecast import Broadcast
from local.backend import Backend
from tests.chaos.endpoint import Tally
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL, INTERRUPTIONS, interruption_points, run_all
from tests.worker_process import WorkerProcess

IN_FLIGHT = 256
MAX_REPEATED = 1_000 + IN_FLIGHT
"""After one kill: deliveries since the last checkpoint, and posts in flight."""
SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": "4000" if FULL else "1500",
    "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT),
    "GATECAST_DRAIN_SECONDS": "20" if FULL else "6",
}
DATA = "x"
TIMEOUT_SECONDS = 60


class Lane(NamedTuple):
    """The result of one broadcast. `repeats` is the cumulative count, at every interruption and at the end."""

    tally: Tally
    repeats: list[int]
    dead_letters: int

    @property
    def max_per_interruption(self) -> int:
        """The maximum number of repeats that one interruption caused."""
        return max(after - before for before, after in pairwise(self.repeats))


Ending = Callable[[WorkerProcess], Awaitable[None]]


async def kill(worker: WorkerProcess) -> None:
    await asyncio.to_thread(worker.kill)


async def terminate(worker: WorkerProcess) -> None:
    worker.terminate()
    assert await worker.ended(seconds=TIMEOUT_SECONDS) == 0, worker.log_tail()


async def broadcast_with_interruptions(harness: Harness, room: Room, at: list[int], end: Ending) -> list[int]:
    """Deliver one broadcast with successive workers, ended one by one at these numbers of members reached."""
    repeats: list[int] = []
    worker = harness.launch(SETTINGS)
    await worker.ready()
    harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
    for members in at:
        posts = (await harness.endpoint.summary()).posts
        await harness.wait_until(partial(has_resumed, harness, posts), seconds=TIMEOUT_SECONDS)
        await wait_until_reached(harness, members)
        await end(worker)
        repeats.append((await harness.tally(DATA, room.ids)).repeated)
        worker = harness.launch(SETTINGS)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    repeats.append((await harness.tally(DATA, room.ids)).repeated)
    return repeats


async def has_resumed(harness: Harness, posts_before: int) -> bool:
    return (await harness.endpoint.summary()).posts > posts_before


async def wait_until_reached(harness: Harness, members: int) -> None:
    """Polls more often than `Harness.wait_until_reached`, to interrupt at the chosen points."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (await harness.endpoint.summary()).reached < members:
        assert time.monotonic() < deadline, f"{members} members were not reached"
        await asyncio.sleep(0.005)


async def interrupted(
    backend: Backend, room: Room, directory: Path, *, what: str, end: Ending, max_repeated: int
) -> None:
    """All interruptions of one broadcast or, at small scale, one interruption each of several concurrent broadcasts."""
    started_at = time.monotonic()
    at = interruption_points(what, INTERRUPTIONS, len(room.ids))

    async def lane(its: list[int]) -> Lane:
        async with Harness.open(backend, f"chaos-{uuid.uuid4().hex[:8]}", directory) as harness:
            repeats = await broadcast_with_interruptions(harness, room, its, end)
            letters = harness.dead_letter_depth()
            return Lane(await harness.tally(DATA, room.ids), repeats, letters)

    lanes = await asyncio.gather(*map(lane, [at] if FULL else [[members] for members in at]))
    record(
        RunResult(
            run=f"{what} at {INTERRUPTIONS} random moments",
            members=len(room.ids) * len(lanes),
            missing=sum(len(each.tally.missing) for each in lanes),
            repeated=sum(each.tally.repeated for each in lanes),
            allowed=max_repeated * INTERRUPTIONS,
            dead_letters=sum(each.dead_letters for each in lanes),
            seconds=time.monotonic() - started_at,
            notes=f"maximum per interruption: {max(each.max_per_interruption for each in lanes):,} of {max_repeated:,}",
        )
    )
    for each in lanes:
        assert not each.tally.missing
        assert not each.tally.unexpected
        for interruptions, repeated in enumerate(each.repeats):
            assert repeated <= max_repeated * interruptions
        assert each.dead_letters == 0


async def test_a_broadcast_interrupted_at_random_reaches_every_member(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    await run_all(
        interrupted(chaos_backend, crowd, tmp_path, what="kill -9", end=kill, max_repeated=MAX_REPEATED),
        interrupted(chaos_backend, crowd, tmp_path, what="SIGTERM", end=terminate, max_repeated=0),
    )
