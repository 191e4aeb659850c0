"""Clients that do not read delay no others, and the deliveries that they missed can be redriven."""

import asyncio
import itertools
import json
import sys
import uuid
from collections.abc import Sequence

from gatecast import Broadcast
from gatecast.emulator.faults import THROTTLED, Rule
from tests.chaos.endpoint import CHECKOUT, Tally
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL, rng
from tests.worker_process import WorkerProcess, eventually

SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": "2000",
    "GATECAST_SLOW_CLIENTS": "keep",  # so that missed deliveries can be redriven
}
TIMEOUT_SECONDS = 120


def slow_ids(room: Room) -> list[str]:
    return rng("slow clients").sample(room.ids, len(room.ids) // 20)


async def seconds_to_reach(harness: Harness, members: int) -> float:
    """Seconds from the first post until the last of these members was reached."""
    await harness.wait_until_reached(members, seconds=TIMEOUT_SECONDS)
    summary = await harness.endpoint.summary()
    assert summary.first_posted_at is not None
    assert summary.last_first_delivery_at is not None
    return summary.last_first_delivery_at - summary.first_posted_at


async def test_slow_clients_do_not_delay_others(harness: Harness, crowd: Room) -> None:
    slow = slow_ids(crowd)
    others = sorted(set(crowd.ids) - set(slow))
    await harness.endpoint.configure(Rule(fault=THROTTLED, only=frozenset(slow)), latency_seconds=0.02)
    worker = harness.launch(SETTINGS)
    await worker.ready()
    harness.publish(Broadcast(id=uuid.uuid4().hex, room=crowd.name, data="slow"))
    with_them = await seconds_to_reach(harness, len(others))
    reached = Tally.from_counts(await harness.endpoint.counts("slow"), others)
    letters = await dead_lettered_connections(harness) if FULL else []
    without_them = await without_slow_clients(harness, slow, len(others), worker)
    record(
        RunResult(
            run="5% slow clients",
            members=len(crowd.ids),
            missing=len(reached.missing),
            repeated=reached.repeated,
            allowed=0,
            dead_letters=len(letters),
            seconds=harness.elapsed_seconds,
            notes=f"the other 95% in {with_them:.1f} s, {with_them / without_them:.2f} × the time without slow clients",
        )
    )
    assert not reached.missing
    assert not reached.unexpected
    assert reached.repeated == 0
    if FULL:
        assert sorted(letters) == sorted(slow)
        assert with_them <= 1.2 * without_them
        await redrive_reaches_exactly_the_slow_clients(harness, slow)


async def without_slow_clients(harness: Harness, slow: Sequence[str], others: int, worker: WorkerProcess) -> float:
    """The time of the same broadcast to the same room, except the slow clients, with another worker and endpoint."""
    worker.kill()
    async with Harness.open(harness.backend, f"chaos-{uuid.uuid4().hex[:8]}", harness.directory) as other:
        await other.endpoint.configure(latency_seconds=0.02)
        await other.launch(SETTINGS).ready()
        other.publish(Broadcast(id=uuid.uuid4().hex, room="crowd", data="quick", except_=tuple(slow)))
        return await seconds_to_reach(other, others)


async def dead_lettered_connections(harness: Harness) -> list[str]:
    """The connections on the dead-letter queue, once the broadcast queue is empty."""
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    letters = harness.dead_letters()
    assert {letter.reason for letter in letters} == {"undelivered"}
    return list(itertools.chain.from_iterable(json.loads(letter.body)["connections"] for letter in letters))


async def redrive_reaches_exactly_the_slow_clients(harness: Harness, slow: Sequence[str]) -> None:
    await harness.endpoint.configure()
    await redrive(harness)
    await eventually(lambda: harness.dead_letter_depth() == 0)
    await harness.launch(SETTINGS).ready()
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    tally = Tally.from_counts(await harness.endpoint.counts("slow"), slow)
    assert not tally.missing
    assert tally.repeated == 0
    assert harness.dead_letter_depth() == 0


async def redrive(harness: Harness) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gatecast.cli", "dead-letters", "redrive", cwd=CHECKOUT, env=harness.backend.environment()
    )
    assert await process.wait() == 0
