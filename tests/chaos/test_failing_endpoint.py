"""`@connections` fails in every way that HTTP knows: nobody is missed, and nobody is given up or removed for it."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from gatecast import Broadcast
from local.backend import Backend
from local.gateway.faults import INTERNAL_ERROR, NOT_JSON, UNAVAILABLE, Answer, Reset, Rule, Stall
from tests.chaos.arena import Arena, Room
from tests.chaos.results import Figures, record
from tests.chaos.rooms import connection_ids, items_left, write_members
from tests.chaos.sizes import FULL, MEMBERS, SEED, rng, side_by_side
from tests.worker_process import WorkerProcess

DATA = "x"
SETTINGS = {"GATECAST_MAX_POSTS_PER_SECOND": "2000" if FULL else "1000"}
PATIENCE_SECONDS = 180
STALL_SECONDS = 30
BURST_SECONDS = 0.5 if FULL else 0.2

GONE = Answer(status=410, error_type="GoneException", body='{"message": null}')
FORBIDDEN = Answer(status=403, error_type="ForbiddenException", body='{"message": "Forbidden"}')
BURSTS: Sequence[tuple[Rule, ...]] = [
    (Rule(fault=UNAVAILABLE),),
    (Rule(fault=INTERNAL_ERROR, share=0.5, of="calls"), Rule(fault=NOT_JSON)),
    (Rule(fault=Answer(status=504)),),
    (Rule(fault=Reset(), share=0.7, of="calls"),),
    (Rule(fault=Reset(cut="headers"), share=0.7, of="calls"),),
    (Rule(fault=Reset(delivers=True, cut="body"), share=0.7, of="calls"),),
    (Rule(fault=Reset(delivers=True), share=0.7, of="calls"),),
    (Rule(fault=Answer(status=200, body="not JSON"), share=0.5, of="calls"),),
]


async def broadcast_to(arena: Arena, room: Room) -> WorkerProcess:
    worker = arena.launch(SETTINGS)
    await worker.ready()
    arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
    return worker


async def recorded(
    arena: Arena, run: str, members: Sequence[str], *, allowed: int = 0, letters: int = 0, notes: str = ""
) -> None:
    """What holds after each of these runs."""
    counts = await arena.endpoint.counts(DATA)
    tally = await arena.tally(DATA, members)
    twice = sum(counts.unanswered.values())
    found = arena.depth(arena.backend.queues.dead_letter_url)
    record(
        Figures(
            run=run,
            members=len(members),
            missing=len(tally.missing),
            repeated=tally.repeated,
            allowed=allowed,
            dead_letters=found,
            seconds=arena.seconds,
            notes=notes or (f"{twice:,} more reached their client, but the answer was cut off" if twice else ""),
        )
    )
    assert not tally.missing
    assert not tally.strangers
    assert tally.repeated <= allowed
    assert found == letters


async def bursts(arena: Arena, room: Room) -> None:
    """A while of each and a while of none, all of them while the broadcast runs."""
    await arena.endpoint.behave(latency_seconds=0.01)
    await broadcast_to(arena, room)
    for number, rules in enumerate(BURSTS):
        await asyncio.sleep(BURST_SECONDS)
        await arena.endpoint.behave(*rules, seed=SEED + number, latency_seconds=0.01)
        await asyncio.sleep(BURST_SECONDS)
        await arena.endpoint.behave(latency_seconds=0.01)
    await arena.drained(seconds=PATIENCE_SECONDS)
    await recorded(arena, "bursts of 5xx, resets and half answers", room.ids)


async def stalls(arena: Arena, room: Room) -> None:
    """A few posts hang for 30 s: the others go on, and these are tried again on other connections."""
    rule = Rule(fault=Stall(seconds=STALL_SECONDS), share=0.02, of="calls", at_most=1_000 if FULL else 30)
    await arena.endpoint.behave(rule, seed=SEED, latency_seconds=0.01)
    await broadcast_to(arena, room)
    await arena.drained(seconds=PATIENCE_SECONDS)
    await recorded(arena, "2% of posts stall for 30 s", room.ids)


async def half_are_gone(arena: Arena, room: Room) -> None:
    """They are removed, all of them and nobody else."""
    gone = rng("gone").sample(room.ids, len(room.ids) // 2)
    living = sorted(set(room.ids) - set(gone))
    await arena.endpoint.behave(Rule(fault=GONE, only=frozenset(gone)))
    worker = await broadcast_to(arena, room)
    await arena.drained(seconds=PATIENCE_SECONDS)
    table = arena.backend.table
    await arena.until(lambda: items_left(arena.dynamodb, table, room.name, gone) == 0, seconds=PATIENCE_SECONDS)
    reaped = await worker.metric("gatecast_memberships_reaped_total")
    await recorded(arena, "50% of connections gone", living, notes=f"{reaped:,.0f} memberships removed")
    assert items_left(arena.dynamodb, table, room.name, living) == 2 * len(living)
    assert reaped == len(gone)


async def refused_then_gone_then_well(arena: Arena, room: Room) -> None:
    """403 for all, 410 for all: a wrong policy, a wrong address. Nobody is removed, and it recovers by itself."""
    await arena.endpoint.behave(Rule(fault=FORBIDDEN))
    worker = await broadcast_to(arena, room)
    await says(arena, worker, "403")
    await asyncio.sleep(10 if FULL else 1)
    await arena.endpoint.behave(Rule(fault=GONE))
    await asyncio.sleep(3)  # shorter than a 410 may wait for its proof
    await arena.endpoint.behave()
    recovered_at = time.monotonic()
    await arena.drained(seconds=PATIENCE_SECONDS)
    await worker.ready()
    recovery = time.monotonic() - recovered_at
    await asyncio.sleep(10 if FULL else 2)
    gone = int(await worker.metric('gatecast_deliveries_total{outcome="gone"}'))
    tally = await arena.tally(DATA, room.ids)
    assert len(tally.missing) == gone
    arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data="again"))
    await arena.drained(seconds=PATIENCE_SECONDS)
    again = await arena.tally("again", room.ids)
    removed = 2 * len(room.ids) - items_left(arena.dynamodb, arena.backend.table, room.name, room.ids)
    record(
        Figures(
            run="403 for all, then 410 for all, then recovery",
            members=len(room.ids),
            missing=len(again.missing),
            repeated=tally.repeated + again.repeated,
            allowed=0,
            dead_letters=arena.depth(arena.backend.queues.dead_letter_url),
            seconds=arena.seconds,
            notes=f"{gone:,} counted as gone, {removed} items removed; recovered within {recovery:.0f} s",
        )
    )
    assert removed == 0
    assert not again.missing
    assert tally.repeated == again.repeated == 0
    assert arena.depth(arena.backend.queues.dead_letter_url) == 0


async def says(arena: Arena, worker: WorkerProcess, word: str) -> None:
    """Returns when the worker is not ready, and says why."""

    async def so() -> bool:
        status, text = await worker.get("/readyz")
        return status == 503 and word in text

    await arena.until(so, seconds=PATIENCE_SECONDS)


async def in_its_own_arena(
    base: Backend, directory: Path, run: Callable[[Arena, Room], Coroutine[None, None, None]], room: Room
) -> None:
    async with Arena.opened(base, f"chaos-{uuid.uuid4().hex[:8]}", directory) as arena:
        await run(arena, room)


async def test_whatever_it_answers_nobody_is_missed_and_only_the_gone_are_removed(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    half_gone = Room(f"gone-{uuid.uuid4().hex[:8]}", connection_ids(MEMBERS if FULL else 600, "g"))
    refused = Room(f"refused-{uuid.uuid4().hex[:8]}", connection_ids(MEMBERS // 10, "r"))
    with chaos_backend.client("dynamodb") as dynamodb:
        for room in (half_gone, refused):
            write_members(dynamodb, chaos_backend.table, room.name, room.ids)
    runs = ((bursts, crowd), (stalls, crowd), (half_are_gone, half_gone), (refused_then_gone_then_well, refused))
    await side_by_side(*(in_its_own_arena(chaos_backend, tmp_path, run, room) for run, room in runs))
