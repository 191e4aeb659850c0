"""Clients that do not read hold up nobody, and what they missed can be sent again."""

import asyncio
import itertools
import json
import sys
import uuid
from collections.abc import Sequence

from gatecast import Broadcast
from local.gateway.faults import THROTTLED, Rule
from tests.chaos.arena import Arena, Room
from tests.chaos.endpoint import CHECKOUT, Tally
from tests.chaos.results import Figures, record
from tests.chaos.sizes import FULL, rng
from tests.worker_process import WorkerProcess, eventually

SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": "2000",
    "GATECAST_SLOW_CLIENTS": "keep",  # what they missed is sent to them again
}
PATIENCE_SECONDS = 120


def slow_ids(room: Room) -> list[str]:
    return rng("slow clients").sample(room.ids, len(room.ids) // 20)


async def seconds_to_reach(arena: Arena, members: int) -> float:
    """From the first post to the last connection that was reached for the first time."""
    await arena.reached(members, seconds=PATIENCE_SECONDS)
    summary = await arena.endpoint.summary()
    assert summary.first_post_at is not None
    assert summary.last_new_at is not None
    return summary.last_new_at - summary.first_post_at


async def test_slow_clients_hold_up_nobody(arena: Arena, crowd: Room) -> None:
    slow = slow_ids(crowd)
    others = sorted(set(crowd.ids) - set(slow))
    await arena.endpoint.behave(Rule(fault=THROTTLED, only=frozenset(slow)), latency_seconds=0.02)
    worker = arena.launch(SETTINGS)
    await worker.ready()
    arena.publish(Broadcast(id=uuid.uuid4().hex, room=crowd.name, data="slow"))
    with_them = await seconds_to_reach(arena, len(others))
    reached = Tally.of(await arena.endpoint.counts("slow"), others)
    letters = await dead_letters_of(arena) if FULL else []
    without_them = await without_slow_clients(arena, slow, len(others), worker)
    record(
        Figures(
            run="5% slow clients",
            members=len(crowd.ids),
            missing=len(reached.missing),
            repeated=reached.repeated,
            allowed=0,
            dead_letters=len(letters),
            seconds=arena.seconds,
            notes=f"the other 95% in {with_them:.1f} s, {with_them / without_them:.2f} × the time without slow ones",
        )
    )
    assert not reached.missing
    assert not reached.strangers
    assert reached.repeated == 0
    if FULL:
        assert sorted(letters) == sorted(slow)
        assert with_them <= 1.2 * without_them
        await sent_again_they_reach_exactly_the_slow(arena, slow)


async def without_slow_clients(arena: Arena, slow: Sequence[str], others: int, worker: WorkerProcess) -> float:
    """The same broadcast to the same room, without the slow ones, through another worker and endpoint."""
    worker.kill()
    async with Arena.opened(arena.backend, f"chaos-{uuid.uuid4().hex[:8]}", arena.directory) as other:
        await other.endpoint.behave(latency_seconds=0.02)
        await other.launch(SETTINGS).ready()
        other.publish(Broadcast(id=uuid.uuid4().hex, room="crowd", data="quick", except_=tuple(slow)))
        return await seconds_to_reach(other, others)


async def dead_letters_of(arena: Arena) -> list[str]:
    """The connections on the dead-letter queue, once everything has ended."""
    await arena.drained(seconds=PATIENCE_SECONDS)
    letters = arena.dead_letters()
    assert {letter.reason for letter in letters} == {"undelivered"}
    return list(itertools.chain.from_iterable(json.loads(letter.body)["connections"] for letter in letters))


async def sent_again_they_reach_exactly_the_slow(arena: Arena, slow: Sequence[str]) -> None:
    await arena.endpoint.behave()
    await redrive(arena)
    await eventually(lambda: arena.depth(arena.backend.queues.dead_letter_url) == 0)
    await arena.launch(SETTINGS).ready()
    await arena.drained(seconds=PATIENCE_SECONDS)
    everybody = Tally.of(await arena.endpoint.counts("slow"), slow)
    assert not everybody.missing
    assert everybody.repeated == 0
    assert arena.depth(arena.backend.queues.dead_letter_url) == 0


async def redrive(arena: Arena) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker.redrive", cwd=CHECKOUT, env=arena.backend.environment()
    )
    assert await process.wait() == 0
