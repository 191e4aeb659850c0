"""A broadcast whose worker is killed, again and again, or told to stop: nobody is missed, and repeats are bounded."""

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
from tests.chaos.arena import Arena, Room
from tests.chaos.endpoint import Tally
from tests.chaos.results import Figures, record
from tests.chaos.sizes import FULL, MOMENTS, moments, side_by_side
from tests.worker_process import WorkerProcess

IN_FLIGHT = 256
MAY_REPEAT = 1_000 + IN_FLIGHT
"""After one kill: what came after the last checkpoint, and what was in flight."""
SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": "4000" if FULL else "1500",
    "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT),
    "GATECAST_DRAIN_SECONDS": "20" if FULL else "6",
}
DATA = "x"
PATIENCE_SECONDS = 60


class Lane(NamedTuple):
    """What became of one broadcast. `repeats` counts all so far, at every interruption and at the end."""

    tally: Tally
    repeats: list[int]
    dead_letters: int

    @property
    def most_at_once(self) -> int:
        """The most that any one interruption has led to."""
        return max(after - before for before, after in pairwise(self.repeats))


Ending = Callable[[WorkerProcess], Awaitable[None]]


async def kill(worker: WorkerProcess) -> None:
    await asyncio.to_thread(worker.kill)


async def terminate(worker: WorkerProcess) -> None:
    worker.terminate()
    assert await worker.ended(seconds=PATIENCE_SECONDS) == 0, worker.log_tail()


async def broadcast_with_interruptions(arena: Arena, room: Room, at: list[int], end: Ending) -> list[int]:
    """One broadcast, and a worker after the other, each ended once so many have been reached. Repeats after each."""
    repeats: list[int] = []
    worker = arena.launch(SETTINGS)
    await worker.ready()
    arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
    for moment in at:
        posts = (await arena.endpoint.summary()).posts
        await arena.until(partial(posted_again, arena, posts), seconds=PATIENCE_SECONDS)
        await reached(arena, moment)
        await end(worker)
        repeats.append((await arena.tally(DATA, room.ids)).repeated)
        worker = arena.launch(SETTINGS)
    await arena.drained(seconds=PATIENCE_SECONDS)
    repeats.append((await arena.tally(DATA, room.ids)).repeated)
    return repeats


async def posted_again(arena: Arena, before: int) -> bool:
    return (await arena.endpoint.summary()).posts > before


async def reached(arena: Arena, members: int) -> None:
    """Looks more often than `Arena.reached`, so that moments are hit as they were drawn."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (await arena.endpoint.summary()).reached < members:
        assert time.monotonic() < deadline, f"{members} members were not reached"
        await asyncio.sleep(0.005)


async def interrupted(
    backend: Backend, room: Room, directory: Path, *, what: str, end: Ending, may_repeat: int
) -> None:
    """All moments on one broadcast, or, where time is short, one each on several broadcasts side by side."""
    started_at = time.monotonic()
    at = moments(what, MOMENTS, len(room.ids))

    async def lane(its: list[int]) -> Lane:
        async with Arena.opened(backend, f"chaos-{uuid.uuid4().hex[:8]}", directory) as arena:
            repeats = await broadcast_with_interruptions(arena, room, its, end)
            letters = arena.depth(arena.backend.queues.dead_letter_url)
            return Lane(await arena.tally(DATA, room.ids), repeats, letters)

    lanes = await asyncio.gather(*map(lane, [at] if FULL else [[moment] for moment in at]))
    record(
        Figures(
            run=f"{what} at {MOMENTS} random moments",
            members=len(room.ids) * len(lanes),
            missing=sum(len(each.tally.missing) for each in lanes),
            repeated=sum(each.tally.repeated for each in lanes),
            allowed=may_repeat * MOMENTS,
            dead_letters=sum(each.dead_letters for each in lanes),
            seconds=time.monotonic() - started_at,
            notes=f"most after one of them: {max(each.most_at_once for each in lanes):,} of {may_repeat:,}",
        )
    )
    for each in lanes:
        assert not each.tally.missing
        assert not each.tally.strangers
        for interruptions, repeated in enumerate(each.repeats):
            assert repeated <= may_repeat * interruptions
        assert each.dead_letters == 0


async def test_interrupted_at_random_moments_it_reaches_everybody(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    await side_by_side(
        interrupted(chaos_backend, crowd, tmp_path, what="kill -9", end=kill, may_repeat=MAY_REPEAT),
        interrupted(chaos_backend, crowd, tmp_path, what="SIGTERM", end=terminate, may_repeat=0),
    )
