"""SQS and DynamoDB refuse, throttle, hang and lie: the worker waits, says so, recovers by itself, and misses nobody."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from gatecast import Broadcast
from local.backend import Backend
from tests.chaos.arena import Arena, Room
from tests.chaos.results import Figures, record
from tests.chaos.rooms import connection_ids, write_members
from tests.chaos.service_proxy import Answered, Cut, Hang, ServiceFault, ServiceProxy
from tests.chaos.sizes import FULL, rng, side_by_side
from tests.worker_process import WorkerProcess

DATA = "x"
IN_FLIGHT = 256
MAY_REPEAT = 1_000 + IN_FLIGHT
SETTINGS = {"GATECAST_MAX_POSTS_PER_SECOND": "1500" if FULL else "600", "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT)}
DOWN_SECONDS = 20 if FULL else 5
PATIENCE_SECONDS = 180
CALLS = 9
"""About as many calls as a broadcast to a room of two shards takes, beside the receives."""

ERRORS: Sequence[ServiceFault] = (
    Answered.error(500, "InternalServerError"),
    Answered.error(503, "ServiceUnavailable"),
    Answered.error(400, "ThrottlingException"),
    Answered.error(400, "AccessDeniedException"),
    Answered.error(400, "ExpiredTokenException"),
    Answered(502, "<html><body>Bad Gateway</body></html>"),
    Answered(500, ""),
    Answered(200, "<html><body>Please log in</body></html>"),
    Cut("before"),
    Cut("after"),
    Hang(1.0),
)
"""All that a call may end with, whether it has had an effect or not."""

Run = Callable[[Arena, ServiceProxy, Room], Coroutine[None, None, None]]


async def in_its_own_arena(base: Backend, directory: Path, run: Run, room: Room) -> None:
    async with (
        Arena.opened(base, f"chaos-{uuid.uuid4().hex[:8]}", directory) as arena,
        ServiceProxy.serving(base.ministack.url) as proxy,
    ):
        await run(arena, proxy, room)


async def recorded(arena: Arena, run: str, room: Room, *, allowed: int, notes: str = "") -> None:
    """What holds after each of these runs."""
    tally = await arena.tally(DATA, room.ids)
    letters = arena.depth(arena.backend.queues.dead_letter_url)
    record(
        Figures(
            run=run,
            members=len(room.ids),
            missing=len(tally.missing),
            repeated=tally.repeated,
            allowed=allowed,
            dead_letters=letters,
            seconds=arena.seconds,
            notes=notes,
        )
    )
    assert not tally.missing
    assert not tally.strangers
    assert tally.repeated <= allowed
    assert letters == 0


async def begun(arena: Arena, proxy: ServiceProxy, room: Room) -> WorkerProcess:
    """A broadcast of which a tenth has been delivered, by a worker behind the proxy."""
    worker = arena.launch({**SETTINGS, **proxy.environment()})
    arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
    await arena.reached(len(room.ids) // 10, seconds=PATIENCE_SECONDS)
    return worker


async def down(arena: Arena, proxy: ServiceProxy, room: Room) -> None:
    """Both refuse connections. No checkpoint can be written, so deliveries stop after a thousand."""
    worker = await begun(arena, proxy, room)
    await proxy.down()
    await arena.until(lambda: not_ready(worker), seconds=PATIENCE_SECONDS)
    await asyncio.sleep(DOWN_SECONDS)
    await proxy.up()
    up_at = time.monotonic()
    await worker.ready(seconds=PATIENCE_SECONDS)
    recovery = time.monotonic() - up_at
    await arena.drained(seconds=PATIENCE_SECONDS)
    run = f"SQS and DynamoDB down for {DOWN_SECONDS} s"
    await recorded(arena, run, room, allowed=MAY_REPEAT, notes=f"ready again after {recovery:.1f} s")
    assert len(worker.log.read_text().splitlines()) < 100, "one line when it starts and one when it ends, not each try"


async def not_ready(worker: WorkerProcess) -> bool:
    return (await worker.get("/readyz"))[0] == 503


async def throttled(arena: Arena, proxy: ServiceProxy, room: Room) -> None:
    """A third of all calls are throttled, at random, all the time."""
    thrown = rng("throttled services")
    throttle = Answered.error(400, "ThrottlingException")
    proxy.fault = lambda _operation: throttle if thrown.random() < 1 / 3 else None
    await begun(arena, proxy, room)
    await arena.drained(seconds=PATIENCE_SECONDS)
    calls = f"{proxy.faults} of {proxy.calls.total()} calls"
    await recorded(arena, "a third of all calls to SQS and DynamoDB throttled", room, allowed=MAY_REPEAT, notes=calls)


async def failing_in_turn(arena: Arena, proxy: ServiceProxy, room: Room) -> None:
    """Every other call of every operation fails, each time in another way."""
    ways = itertools.cycle(ERRORS)
    seen: set[tuple[str, int]] = set()

    def fault(operation: str) -> ServiceFault | None:
        if proxy.calls[operation] % 2 == 0:
            return None
        way = next(ways)
        seen.add((operation, ERRORS.index(way)))
        return way

    proxy.fault = fault
    await begun(arena, proxy, room)
    await arena.drained(seconds=PATIENCE_SECONDS)
    notes = f"{proxy.faults} failures, {len(seen)} kinds of call and error"
    await recorded(arena, "every other call to SQS and DynamoDB fails", room, allowed=MAY_REPEAT, notes=notes)


async def failing_once(arena: Arena, proxy: ServiceProxy, room: Room) -> None:
    """The first call of a broadcast fails, in every way; then the second; and so on, as long as there are calls."""
    worker = arena.launch(proxy.environment())
    await worker.ready()
    cases = [(call, way) for call in range(1, CALLS + 1) for way in range(len(ERRORS))]
    chosen = cases if FULL else rng("calls").sample(cases, 6)
    hit: set[str] = set()
    for call, way in chosen:
        operation = await broadcast_with_one_error(arena, proxy, room, call, ERRORS[way])
        hit |= {operation} if operation else set()
    tallies = [await arena.tally(f"{call}/{ERRORS[way]}", room.ids) for call, way in chosen]
    missing, repeated = sum(len(tally.missing) for tally in tallies), sum(tally.repeated for tally in tallies)
    record(
        Figures(
            run=f"one call fails, {len(chosen)} broadcasts",
            members=len(room.ids) * len(chosen),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=arena.depth(arena.backend.queues.dead_letter_url),
            seconds=arena.seconds,
            notes=f"calls that failed: {', '.join(sorted(hit))}",
        )
    )
    assert missing == repeated == 0
    assert arena.depth(arena.backend.queues.dead_letter_url) == 0


async def broadcast_with_one_error(
    arena: Arena, proxy: ServiceProxy, room: Room, call: int, error: ServiceFault
) -> str:
    """The operation that failed; empty where the broadcast needed fewer calls. Long polls are not counted."""
    calls = itertools.count(1)
    failed: list[str] = []

    def fault(operation: str) -> ServiceFault | None:
        if operation == "ReceiveMessage" or next(calls) != call:
            return None
        failed.append(operation)
        return error

    proxy.fault = fault
    data = f"{call}/{error}"
    arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=data))
    await arena.drained(seconds=PATIENCE_SECONDS)
    return "".join(failed)


async def test_services_that_are_down_throttle_or_fail_cost_nobody_a_message(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    few = Room(f"few-{uuid.uuid4().hex[:8]}", connection_ids(20, "f"))
    with chaos_backend.client("dynamodb") as dynamodb:
        write_members(dynamodb, chaos_backend.table, few.name, few.ids, memberships_only=True, shards=2)
    runs = ((down, crowd), (throttled, crowd), (failing_in_turn, crowd), (failing_once, few))
    await side_by_side(*(in_its_own_arena(chaos_backend, tmp_path, run, room) for run, room in runs))
