"""A connection id that is none, always answered with 400: it ends as rejected, and says nothing of the endpoint.

While nothing else is sent no other post can tell whether the endpoint or the id is at fault. So the worker has to find
out by itself; the stand-in answers ids that nobody has made with 410, which proves address, credentials and permission.
"""

import asyncio
import json
import time
import uuid
from typing import Final

import pytest

from gatecast import Broadcast
from local.gateway.faults import Answer, Rule
from tests.chaos.arena import Arena, DeadLetter, Room
from tests.chaos.results import Figures, record
from tests.chaos.scene import behave, make_room
from tests.chaos.sizes import FULL
from tests.chaos.streams import Latency, Stream
from tests.chaos.watching import is_ready, sampled
from tests.worker_process import WorkerProcess

BOGUS: Final = "bogus!!"
BAD_REQUEST: Final = Answer(status=400, error_type="BadRequestException", body='{"message": "Invalid connectionId"}')
QUIET_SECONDS: Final = (0, 70) if FULL else (0,)
"""Before each bad id that comes alone. What was delivered before says nothing any more after a minute."""
ENDS_SECONDS: Final = 10
FLOW_SECONDS: Final = 30 if FULL else 5
PER_SECOND: Final = 4
PATIENCE_SECONDS: Final = 60


async def publish_bogus(arena: Arena) -> str:
    """To the bad id alone. Returns the data."""
    data = f"bogus-{uuid.uuid4().hex}"
    await asyncio.to_thread(arena.publish, Broadcast(id=data, connections=(BOGUS,), data=data))
    return data


async def alone(arena: Arena, worker: WorkerProcess) -> tuple[float, bool]:
    """After how many seconds it ended (infinite: not in time), and whether the worker was ready throughout."""
    started_at = time.monotonic()
    async with sampled(lambda: is_ready(worker)) as ready:
        await publish_bogus(arena)
        ended = await arena.within(lambda: arena.depth() == 0, seconds=ENDS_SECONDS)
    return time.monotonic() - started_at if ended else float("inf"), all(ready)


async def among_others(arena: Arena) -> None:
    for _ in range(FLOW_SECONDS):
        await publish_bogus(arena)
        await asyncio.sleep(1)


def names_bogus(letter: DeadLetter) -> bool:
    return letter.reason == "rejected" and json.loads(letter.body)["connections"] == [BOGUS]


@pytest.mark.timeout(600 if FULL else 180)
async def test_a_bad_id_in_a_quiet_system_is_rejected_and_holds_up_nobody(arena: Arena) -> None:
    room: Room = make_room(arena, f"quiet-{uuid.uuid4().hex[:8]}", 5)
    await behave(arena, Rule(fault=BAD_REQUEST, only=frozenset({BOGUS})))
    worker = arena.launch()
    await worker.ready()
    after_it, beside_it, without_it = Stream(arena, room), Stream(arena, room), Stream(arena, room)

    found: list[tuple[float, bool]] = []
    for quiet_seconds in QUIET_SECONDS:
        await asyncio.sleep(quiet_seconds)
        found.append(await alone(arena, worker))
        await after_it.publish()
        await arena.within(lambda: after_it.complete(room.ids), seconds=ENDS_SECONDS)
    async with sampled(lambda: is_ready(worker)) as ready_among_others:
        await asyncio.gather(among_others(arena), beside_it.flow(PER_SECOND, seconds=FLOW_SECONDS))
        drained = await arena.within(lambda: arena.depth() == 0, seconds=PATIENCE_SECONDS)
    await without_it.flow(PER_SECOND, seconds=FLOW_SECONDS)
    drained = drained and await arena.within(lambda: arena.depth() == 0, seconds=PATIENCE_SECONDS)

    streams = [await stream.received() for stream in (after_it, beside_it, without_it)]
    missing = sum(len(received.missing(room.ids)) for received in streams)
    repeated = sum(received.repeated() for received in streams)
    letters = arena.dead_letters()
    with_it = Latency.of([*streams[0].seconds(room.ids), *streams[1].seconds(room.ids)])
    longest = max(seconds for seconds, _ in found)
    ready = all(each for _, each in found) and all(ready_among_others)
    record(
        Figures(
            run="a bad connection id in a quiet system",
            members=sum(len(received.published_at) for received in streams) * len(room.ids),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=len(letters),
            seconds=arena.seconds,
            notes=f"room of five p50/p99 {with_it}, without {streams[2].latency(room.ids)}; alone it ended after "
            f"{longest:.1f} s at most, the worker was {'always' if ready else 'not always'} ready",
        )
    )
    assert missing == repeated == 0
    assert drained
    assert longest <= ENDS_SECONDS
    assert ready
    assert all(map(names_bogus, letters))
    assert len(letters) == len(QUIET_SECONDS) + FLOW_SECONDS
