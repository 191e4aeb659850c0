"""SQS and DynamoDB fail, throttle, hang and return garbage: the worker reports it, retries and misses no member."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from gatecast import Broadcast
from local.backend import Backend
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, check_broadcast, record
from tests.chaos.scale import FULL, rng, run_all
from tests.chaos.service_proxy import Cut, Hang, ServiceFault, ServiceProxy, ServiceResponse
from tests.members import connection_ids, write_members
from tests.worker_process import WorkerProcess

DATA = "x"
IN_FLIGHT = 256
MAX_REPEATED = 1_000 + IN_FLIGHT
SETTINGS = {"GATECAST_MAX_POSTS_PER_SECOND": "1500" if FULL else "600", "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT)}
DOWN_SECONDS = 20 if FULL else 5
TIMEOUT_SECONDS = 180
CALLS = 9
"""Approximate number of calls, without receives, per broadcast to a room of two shards."""

ERRORS: Sequence[ServiceFault] = (
    ServiceResponse.error(500, "InternalServerError"),
    ServiceResponse.error(503, "ServiceUnavailable"),
    ServiceResponse.error(400, "ThrottlingException"),
    ServiceResponse.error(400, "AccessDeniedException"),
    ServiceResponse.error(400, "ExpiredTokenException"),
    ServiceResponse(502, "<html><body>Bad Gateway</body></html>"),
    ServiceResponse(500, ""),
    ServiceResponse(200, "<html><body>Please log in</body></html>"),
    Cut("before"),
    Cut("after"),
    Hang(1.0),
)
"""All ways in which a call may fail, with or without having taken effect."""

Run = Callable[[Harness, ServiceProxy, Room], Coroutine[None, None, None]]


async def in_own_harness(base: Backend, directory: Path, run: Run, room: Room) -> None:
    async with (
        Harness.open(base, f"chaos-{uuid.uuid4().hex[:8]}", directory) as harness,
        ServiceProxy.serving(base.ministack.url) as proxy,
    ):
        await run(harness, proxy, room)


async def start_broadcast(harness: Harness, proxy: ServiceProxy, room: Room) -> WorkerProcess:
    """Start a worker behind the proxy and a broadcast; return once a tenth has been delivered."""
    worker = harness.launch({**SETTINGS, **proxy.environment()})
    harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
    await harness.wait_until_reached(len(room.ids) // 10, seconds=TIMEOUT_SECONDS)
    return worker


async def down(harness: Harness, proxy: ServiceProxy, room: Room) -> None:
    """Both services refuse connections. No checkpoint can be written, so deliveries stop after a thousand."""
    worker = await start_broadcast(harness, proxy, room)
    await proxy.stop()
    await harness.wait_until(worker.is_not_ready, seconds=TIMEOUT_SECONDS)
    await asyncio.sleep(DOWN_SECONDS)
    await proxy.start()
    up_at = time.monotonic()
    await worker.ready(seconds=TIMEOUT_SECONDS)
    recovery = time.monotonic() - up_at
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    run = f"SQS and DynamoDB down for {DOWN_SECONDS} s"
    notes = f"ready again after {recovery:.1f} s"
    await check_broadcast(harness, run, room.ids, DATA, allowed=MAX_REPEATED, notes=notes)
    assert len(worker.log.read_text().splitlines()) < 100, (
        "one line when a failure starts and one when it ends, not per attempt"
    )


async def throttled(harness: Harness, proxy: ServiceProxy, room: Room) -> None:
    """A random third of all calls is throttled throughout."""
    random = rng("throttled services")
    throttle = ServiceResponse.error(400, "ThrottlingException")
    proxy.fault = lambda _operation: throttle if random.random() < 1 / 3 else None
    await start_broadcast(harness, proxy, room)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    run, notes = "a third of all calls to SQS and DynamoDB throttled", f"{proxy.faults} of {proxy.calls.total()} calls"
    await check_broadcast(harness, run, room.ids, DATA, allowed=MAX_REPEATED, notes=notes)


async def failing_in_turn(harness: Harness, proxy: ServiceProxy, room: Room) -> None:
    """Every other call of every operation fails, with each error in turn."""
    errors = itertools.cycle(ERRORS)
    seen: set[tuple[str, int]] = set()

    def fault(operation: str) -> ServiceFault | None:
        if proxy.calls[operation] % 2 == 0:
            return None
        error = next(errors)
        seen.add((operation, ERRORS.index(error)))
        return error

    proxy.fault = fault
    await start_broadcast(harness, proxy, room)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    run = "every other call to SQS and DynamoDB fails"
    notes = f"{proxy.faults} failures, {len(seen)} combinations of operation and error"
    await check_broadcast(harness, run, room.ids, DATA, allowed=MAX_REPEATED, notes=notes)


async def failing_once(harness: Harness, proxy: ServiceProxy, room: Room) -> None:
    """The first call of a broadcast fails with each error in turn, then the second call, and so on."""
    worker = harness.launch(proxy.environment())
    await worker.ready()
    cases = [(call, error) for call in range(1, CALLS + 1) for error in range(len(ERRORS))]
    chosen = cases if FULL else rng("calls").sample(cases, 6)
    hit: set[str] = set()
    for call, error in chosen:
        operation = await broadcast_with_one_error(harness, proxy, room, call, ERRORS[error])
        hit |= {operation} if operation else set()
    tallies = [await harness.tally(f"{call}/{ERRORS[error]}", room.ids) for call, error in chosen]
    missing, repeated = sum(len(tally.missing) for tally in tallies), sum(tally.repeated for tally in tallies)
    record(
        RunResult(
            run=f"one call fails, {len(chosen)} broadcasts",
            members=len(room.ids) * len(chosen),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=harness.dead_letter_depth(),
            seconds=harness.elapsed_seconds,
            notes=f"calls that failed: {', '.join(sorted(hit))}",
        )
    )
    assert missing == repeated == 0
    assert harness.dead_letter_depth() == 0


async def broadcast_with_one_error(
    harness: Harness, proxy: ServiceProxy, room: Room, call: int, error: ServiceFault
) -> str:
    """Return the operation that failed; empty if the broadcast needed fewer calls. Long polls are not counted."""
    calls = itertools.count(1)
    failed: list[str] = []

    def fault(operation: str) -> ServiceFault | None:
        if operation == "ReceiveMessage" or next(calls) != call:
            return None
        failed.append(operation)
        return error

    proxy.fault = fault
    data = f"{call}/{error}"
    harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=data))
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    return "".join(failed)


async def test_failing_services_lose_no_message(chaos_backend: Backend, crowd: Room, tmp_path: Path) -> None:
    few = Room(f"few-{uuid.uuid4().hex[:8]}", connection_ids(20, "f"))
    with chaos_backend.client("dynamodb") as dynamodb:
        write_members(dynamodb, chaos_backend.table, few.name, few.ids, memberships_only=True, shards=2)
    runs = ((down, crowd), (throttled, crowd), (failing_in_turn, crowd), (failing_once, few))
    await run_all(*(in_own_harness(chaos_backend, tmp_path, run, room) for run, room in runs))
