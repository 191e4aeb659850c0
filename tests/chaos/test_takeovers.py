"""One message in two hands: whoever lost it stops, whoever has it goes on from the checkpoint, nobody is missed."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from gatecast import Broadcast
from local.backend import Backend
from tests.chaos.arena import VISIBILITY_SECONDS, Arena, Room
from tests.chaos.results import Figures, record
from tests.chaos.service_proxy import Answered, ServiceFault, ServiceProxy
from tests.chaos.sizes import FULL, side_by_side
from tests.worker_process import WorkerProcess

IN_FLIGHT = 64
MAY_REPEAT = 1_000 + IN_FLIGHT
POSTS_PER_SECOND = 1_500 if FULL else 350
SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": str(POSTS_PER_SECOND),
    "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT),
    "GATECAST_MAX_BROADCASTS": "1",
}
DATA = "x"
PATIENCE_SECONDS = 90
EXTENDED = Answered(200, '{"Successful": [{"Id": "0"}], "Failed": []}')
NOT_YOURS = Answered.error(400, "ReceiptHandleIsInvalid")
NOT_NOW = Answered.error(400, "ThrottlingException")

Misfortune = Callable[[WorkerProcess, ServiceProxy], Awaitable[None]]


async def extensions_are_swallowed(worker: WorkerProcess, proxy: ServiceProxy) -> None:
    """It believes that it holds the message, and goes on while another one has it."""
    del worker
    proxy.fault = on_extensions(EXTENDED)


async def extensions_are_refused(worker: WorkerProcess, proxy: ServiceProxy) -> None:
    """It hears that the message is not its own any more."""
    del worker
    proxy.fault = on_extensions(NOT_YOURS)


async def it_is_paused(worker: WorkerProcess, proxy: ServiceProxy) -> None:
    """It stands still for longer than its lease, and then goes on as if nothing had happened."""
    del proxy
    worker.pause()
    await asyncio.sleep(VISIBILITY_SECONDS + 2)
    worker.resume()


def on_extensions(fault: ServiceFault) -> Callable[[str], ServiceFault | None]:
    """And it receives nothing more: the message is for the other worker."""
    return {"ChangeMessageVisibilityBatch": fault, "ReceiveMessage": NOT_NOW}.get


async def taken_over(base: Backend, room: Room, directory: Path, misfortune: Misfortune) -> None:
    """The first worker has the message when its misfortune begins; the second one waits for the next message."""
    async with AsyncExitStack() as stack:
        arena = await stack.enter_async_context(Arena.opened(base, f"chaos-{uuid.uuid4().hex[:8]}", directory))
        proxy = await stack.enter_async_context(ServiceProxy.serving(base.ministack.url))
        first = arena.launch({**SETTINGS, **proxy.environment()})
        await first.ready()
        arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=DATA))
        await arena.reached(len(room.ids) // 10, seconds=PATIENCE_SECONDS)
        second = arena.launch(SETTINGS)
        await second.ready()
        await misfortune(first, proxy)
        await arena.drained(seconds=PATIENCE_SECONDS)
        await asyncio.sleep(1)  # would it still post?
        tally = await arena.tally(DATA, room.ids)
        letters = arena.depth(arena.backend.queues.dead_letter_url)
        by_second = await second.metric('gatecast_deliveries_total{outcome="delivered"}')
        record(
            Figures(
                run=f"lease lost: {misfortune.__name__.replace('_', ' ')}",
                members=len(room.ids),
                missing=len(tally.missing),
                repeated=tally.repeated,
                allowed=MAY_REPEAT,
                dead_letters=letters,
                seconds=arena.seconds,
                notes=f"{by_second:,.0f} delivered by the second worker",
            )
        )
        assert not tally.missing
        assert not tally.strangers
        assert tally.repeated <= MAY_REPEAT
        assert letters == 0
        assert by_second > 0


async def test_whoever_loses_its_lease_stops_and_another_one_goes_on(
    chaos_backend: Backend, crowd: Room, tmp_path: Path
) -> None:
    misfortunes: list[Misfortune] = [extensions_are_swallowed, extensions_are_refused, it_is_paused]
    await side_by_side(*(taken_over(chaos_backend, crowd, tmp_path, misfortune) for misfortune in misfortunes))


async def test_the_same_broadcast_in_two_messages_is_delivered_once(arena: Arena, crowd: Room) -> None:
    workers = [arena.launch(SETTINGS | {"GATECAST_MAX_POSTS_PER_SECOND": "4000"}) for _ in range(2)]
    await asyncio.gather(*(worker.ready() for worker in workers))
    broadcast = Broadcast(id=uuid.uuid4().hex, room=crowd.name, data=DATA)
    for _ in range(10):
        arena.publish(broadcast)
    await arena.drained(seconds=PATIENCE_SECONDS)
    tally = await arena.tally(DATA, crowd.ids)
    duplicates = [await worker.metric('gatecast_broadcasts_total{outcome="duplicate"}') for worker in workers]
    record(
        Figures(
            run="the same id published ten times, two workers",
            members=len(crowd.ids),
            missing=len(tally.missing),
            repeated=tally.repeated,
            allowed=0,
            dead_letters=arena.depth(arena.backend.queues.dead_letter_url),
            seconds=arena.seconds,
            notes=f"{sum(duplicates):.0f} messages recognised as duplicates",
        )
    )
    assert not tally.missing
    assert tally.repeated == 0
    assert sum(duplicates) == 9
