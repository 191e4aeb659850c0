"""A worker loses its lease: it stops, another worker resumes from the checkpoint, and no member is missed."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from gatecast import Broadcast
from local.backend import Backend
from tests.chaos.harness import VISIBILITY_SECONDS, Harness, Room
from tests.chaos.results import RunResult, check_broadcast, record
from tests.chaos.scale import FULL, run_all
from tests.chaos.service_proxy import ServiceFault, ServiceProxy, ServiceResponse
from tests.worker_process import WorkerProcess

IN_FLIGHT = 64
MAX_REPEATED = 1_000 + IN_FLIGHT
POSTS_PER_SECOND = 1_500 if FULL else 350
SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": str(POSTS_PER_SECOND),
    "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT),
    "GATECAST_MAX_BROADCASTS": "1",
}
DATA = "x"
TIMEOUT_SECONDS = 90
EXTENDED = ServiceResponse(200, '{"Successful": [{"Id": "0"}], "Failed": []}')
STALE_RECEIPT = ServiceResponse.error(400, "ReceiptHandleIsInvalid")
THROTTLED = ServiceResponse.error(400, "ThrottlingException")

FaultInjector = Callable[[WorkerProcess, ServiceProxy], Awaitable[None]]


async def extensions_silently_dropped(worker: WorkerProcess, proxy: ServiceProxy) -> None:
    """The worker believes that it still holds the lease, and continues while another one has received the message."""
    del worker
    proxy.fault = on_extensions(EXTENDED)


async def extensions_rejected(worker: WorkerProcess, proxy: ServiceProxy) -> None:
    """The worker receives the error that its receipt handle is no longer valid."""
    del worker
    proxy.fault = on_extensions(STALE_RECEIPT)


async def worker_paused(worker: WorkerProcess, proxy: ServiceProxy) -> None:
    """The worker is suspended for longer than its lease, then continues unaware."""
    del proxy
    worker.pause()
    await asyncio.sleep(VISIBILITY_SECONDS + 2)
    worker.resume()


def on_extensions(fault: ServiceFault) -> Callable[[str], ServiceFault | None]:
    """Inject this fault into lease extensions, and let the worker receive nothing more: the other one must."""
    return {"ChangeMessageVisibilityBatch": fault, "ReceiveMessage": THROTTLED}.get


async def take_over(base: Backend, room: Room, directory: Path, inject: FaultInjector) -> None:
    """The first worker holds the lease when the fault is injected; the second one waits for a message."""
    async with AsyncExitStack() as stack:
        harness = await stack.enter_async_context(Harness.open(base, f"chaos-{uuid.uuid4().hex[:8]}", directory))
        proxy = await stack.enter_async_context(ServiceProxy.serving(base.ministack.url))
        first = harness.launch({**SETTINGS, **proxy.environment()})
        await first.ready()
        harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
        await harness.wait_until_reached(len(room.ids) // 10, seconds=TIMEOUT_SECONDS)
        second = harness.launch(SETTINGS)
        await second.ready()
        await inject(first, proxy)
        await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
        await asyncio.sleep(1)  # time for late posts by the first worker
        by_second = await second.metric('gatecast_deliveries_total{outcome="delivered"}')
        run = f"lease lost: {inject.__name__.replace('_', ' ')}"
        notes = f"{by_second:,.0f} delivered by the second worker"
        await check_broadcast(harness, run, room.ids, DATA, allowed=MAX_REPEATED, notes=notes)
        assert by_second > 0


async def test_a_worker_that_loses_its_lease_stops_and_another_resumes(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    injectors: list[FaultInjector] = [extensions_silently_dropped, extensions_rejected, worker_paused]
    await run_all(*(take_over(chaos_backend, crowd, tmp_path, inject) for inject in injectors))


async def test_a_broadcast_published_ten_times_is_delivered_once(harness: Harness, crowd: Room) -> None:
    workers = [harness.launch(SETTINGS | {"GATECAST_MAX_POSTS_PER_SECOND": "4000"}) for _ in range(2)]
    await asyncio.gather(*(worker.ready() for worker in workers))
    broadcast = Broadcast(id=uuid.uuid4().hex, room=crowd.name, data=DATA)
    for _ in range(10):
        harness.publish(broadcast)
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    tally = await harness.tally(DATA, crowd.ids)
    duplicates = [await worker.metric('gatecast_broadcasts_total{outcome="duplicate"}') for worker in workers]
    record(
        RunResult(
            run="the same id published ten times, two workers",
            members=len(crowd.ids),
            missing=len(tally.missing),
            repeated=tally.repeated,
            allowed=0,
            dead_letters=harness.dead_letter_depth(),
            seconds=harness.elapsed_seconds,
            notes=f"{sum(duplicates):.0f} messages recognised as duplicates",
        )
    )
    assert not tally.missing
    assert tally.repeated == 0
    assert sum(duplicates) == 9
