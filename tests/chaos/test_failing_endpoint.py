"""`@connections` fails in every way that HTTP allows: no member is missed, given up or wrongly removed."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Final

from gatecast import Broadcast
from gatecast.emulator.faults import INTERNAL_ERROR, NOT_JSON, UNAVAILABLE, CannedResponse, Reset, Rule, Stall
from local.backend import Backend
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, check_broadcast, record
from tests.chaos.scale import FULL, MEMBERS, SEED, rng, run_all
from tests.members import connection_ids, items_left, write_members
from tests.worker_process import WorkerProcess

DATA = "x"
SETTINGS = {"GATECAST_MAX_POSTS_PER_SECOND": "2000" if FULL else "1000"}
TIMEOUT_SECONDS = 180
STALL_SECONDS = 30
BURST_SECONDS = 0.5 if FULL else 0.2

GONE = CannedResponse(status=410, error_type="GoneException", body='{"message": null}')
FORBIDDEN = CannedResponse(status=403, error_type="ForbiddenException", body='{"message": "Forbidden"}')
BURSTS_NAME: Final = "bursts of 5xx, resets and truncated responses"
BURSTS: Sequence[tuple[Rule, ...]] = [
    (Rule(fault=UNAVAILABLE),),
    (Rule(fault=INTERNAL_ERROR, share=0.5, of="calls"), Rule(fault=NOT_JSON)),
    (Rule(fault=CannedResponse(status=504)),),
    (Rule(fault=Reset(), share=0.7, of="calls"),),
    (Rule(fault=Reset(cut="headers"), share=0.7, of="calls"),),
    (Rule(fault=Reset(delivers=True, cut="body"), share=0.7, of="calls"),),
    (Rule(fault=Reset(delivers=True), share=0.7, of="calls"),),
    (Rule(fault=CannedResponse(status=200, body="not JSON"), share=0.5, of="calls"),),
]


async def start_broadcast(harness: Harness, room: Room) -> WorkerProcess:
    worker = harness.launch(SETTINGS)
    await worker.ready()
    harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
    return worker


async def unacknowledged_note(harness: Harness) -> str:
    count = sum((await harness.endpoint.counts(DATA)).unacknowledged.values())
    return f"{count:,} more reached their client, but the response was cut off" if count else ""


async def bursts(harness: Harness, room: Room) -> None:
    """Each kind of fault for a while, with fault-free periods in between, all during the same broadcast."""
    await harness.endpoint.configure(latency_seconds=0.01)
    await start_broadcast(harness, room)
    for number, rules in enumerate(BURSTS):
        await asyncio.sleep(BURST_SECONDS)
        await harness.endpoint.configure(*rules, seed=SEED + number, latency_seconds=0.01)
        await asyncio.sleep(BURST_SECONDS)
        await harness.endpoint.configure(latency_seconds=0.01)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    notes = await unacknowledged_note(harness)
    await check_broadcast(harness, BURSTS_NAME, room.ids, DATA, notes=notes)


async def stalls(harness: Harness, room: Room) -> None:
    """A few posts hang for 30 s: the others continue, and these are retried on other connections."""
    rule = Rule(fault=Stall(seconds=STALL_SECONDS), share=0.02, of="calls", max_count=1_000 if FULL else 30)
    await harness.endpoint.configure(rule, seed=SEED, latency_seconds=0.01)
    await start_broadcast(harness, room)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    notes = await unacknowledged_note(harness)
    await check_broadcast(harness, "2% of posts stall for 30 s", room.ids, DATA, notes=notes)


async def half_are_gone(harness: Harness, room: Room) -> None:
    """Gone connections are removed, all of them and no others."""
    gone = rng("gone").sample(room.ids, len(room.ids) // 2)
    connected = sorted(set(room.ids) - set(gone))
    await harness.endpoint.configure(Rule(fault=GONE, only=frozenset(gone)))
    worker = await start_broadcast(harness, room)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    table = harness.backend.table
    await harness.wait_until(lambda: items_left(harness.dynamodb, table, room.name, gone) == 0, seconds=TIMEOUT_SECONDS)
    reaped = await worker.metric("gatecast_memberships_reaped_total")
    notes = f"{reaped:,.0f} memberships removed"
    await check_broadcast(harness, "50% of connections gone", connected, DATA, notes=notes)
    assert items_left(harness.dynamodb, table, room.name, connected) == 2 * len(connected)
    assert reaped == len(gone)


async def forbidden_then_gone_then_healthy(harness: Harness, room: Room) -> None:
    """403 for all, 410 for all: a wrong policy, a wrong address. No member is removed, and the worker recovers."""
    await harness.endpoint.configure(Rule(fault=FORBIDDEN))
    worker = await start_broadcast(harness, room)
    await harness.wait_until(lambda: worker.is_not_ready("403"), seconds=TIMEOUT_SECONDS)
    await asyncio.sleep(10 if FULL else 1)
    await harness.endpoint.configure(Rule(fault=GONE))
    await asyncio.sleep(3)  # shorter than the time that a 410 may stay unproven
    await harness.endpoint.configure()
    recovered_at = time.monotonic()
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    await worker.ready()
    recovery = time.monotonic() - recovered_at
    await asyncio.sleep(10 if FULL else 2)
    gone = int(await worker.metric('gatecast_deliveries_total{outcome="gone"}'))
    tally = await harness.tally(DATA, room.ids)
    assert len(tally.missing) == gone
    harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data="second"))
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    second = await harness.tally("second", room.ids)
    removed = 2 * len(room.ids) - items_left(harness.dynamodb, harness.backend.table, room.name, room.ids)
    record(
        RunResult(
            run="403 for all, then 410 for all, then recovery",
            members=len(room.ids),
            missing=len(second.missing),
            repeated=tally.repeated + second.repeated,
            allowed=0,
            dead_letters=harness.dead_letter_depth(),
            seconds=harness.elapsed_seconds,
            notes=f"{gone:,} counted as gone, {removed} items removed; recovered within {recovery:.0f} s",
        )
    )
    assert removed == 0
    assert not second.missing
    assert tally.repeated == second.repeated == 0
    assert harness.dead_letter_depth() == 0


async def in_own_harness(
    base: Backend, directory: Path, run: Callable[[Harness, Room], Coroutine[None, None, None]], room: Room
) -> None:
    async with Harness.open(base, f"chaos-{uuid.uuid4().hex[:8]}", directory) as harness:
        await run(harness, room)


async def test_a_failing_endpoint_misses_no_member_and_removes_only_gone_ones(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    half_gone = Room(f"gone-{uuid.uuid4().hex[:8]}", connection_ids(MEMBERS if FULL else 600, "g"))
    forbidden = Room(f"forbidden-{uuid.uuid4().hex[:8]}", connection_ids(MEMBERS // 10, "r"))
    with chaos_backend.client("dynamodb") as dynamodb:
        for room in (half_gone, forbidden):
            write_members(dynamodb, chaos_backend.table, room.name, room.ids)
    runs = (
        (bursts, crowd),
        (stalls, crowd),
        (half_are_gone, half_gone),
        (forbidden_then_gone_then_healthy, forbidden),
    )
    await run_all(*(in_own_harness(chaos_backend, tmp_path, run, room) for run, room in runs))
