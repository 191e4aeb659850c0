"""An invalid connection id, for which every post returns 400: rejected, and no evidence of a failing endpoint.

While nothing else is sent, no other post shows whether the endpoint or the id is at fault. So the worker has to find
out itself, with a reference post: the endpoint returns 410 for unknown ids, which proves address, credentials and
permission.
"""

import asyncio
import json
import time
import uuid
from typing import Final

import pytest

from gatecast import Broadcast
from gatecast.emulator.faults import CannedResponse, Rule
from tests.chaos.fault_scene import configure_endpoint, make_room
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, record
from tests.chaos.sampling import is_ready, sampled
from tests.chaos.scale import FULL
from tests.chaos.streams import Latency, Stream
from tests.queues import DeadLetter
from tests.worker_process import WorkerProcess

BOGUS: Final = "bogus!!"
BAD_REQUEST: Final = CannedResponse(
    status=400, error_type="BadRequestException", body='{"message": "Invalid connectionId"}'
)
QUIET_SECONDS: Final = (0, 70) if FULL else (0,)
"""Silence before each bad id that is sent alone. After a minute, earlier deliveries no longer count as evidence."""
MAX_DURATION_SECONDS: Final = 10
FLOW_SECONDS: Final = 30 if FULL else 5
PER_SECOND: Final = 4
TIMEOUT_SECONDS: Final = 60


async def publish_bogus(harness: Harness) -> str:
    """Publish to the bad id alone. Returns the data."""
    data = f"bogus-{uuid.uuid4().hex}"
    await asyncio.to_thread(harness.publish, Broadcast(id=data, connections=(BOGUS,), data=data))
    return data


async def publish_bogus_alone(harness: Harness, worker: WorkerProcess) -> tuple[float, bool]:
    """Seconds until the broadcast ended (infinite if not in time), and whether the worker was ready throughout."""
    started_at = time.monotonic()
    async with sampled(lambda: is_ready(worker)) as ready:
        await publish_bogus(harness)
        ended = await harness.holds_within(lambda: harness.depth() == 0, seconds=MAX_DURATION_SECONDS)
    return time.monotonic() - started_at if ended else float("inf"), all(ready)


async def publish_bogus_periodically(harness: Harness) -> None:
    for _ in range(FLOW_SECONDS):
        await publish_bogus(harness)
        await asyncio.sleep(1)


def is_rejected_bogus(letter: DeadLetter) -> bool:
    return letter.reason == "rejected" and json.loads(letter.body)["connections"] == [BOGUS]


@pytest.mark.timeout(600 if FULL else 180)
async def test_a_bad_id_in_an_idle_system_is_rejected_without_delaying_others(harness: Harness) -> None:
    room: Room = make_room(harness, f"quiet-{uuid.uuid4().hex[:8]}", 5)
    await configure_endpoint(harness, Rule(fault=BAD_REQUEST, only=frozenset({BOGUS})))
    worker = harness.launch()
    await worker.ready()
    stream_after, stream_during, stream_without = Stream(harness, room), Stream(harness, room), Stream(harness, room)

    found: list[tuple[float, bool]] = []
    for quiet_seconds in QUIET_SECONDS:
        await asyncio.sleep(quiet_seconds)
        found.append(await publish_bogus_alone(harness, worker))
        await stream_after.publish()
        await harness.holds_within(lambda: stream_after.is_complete(room.ids), seconds=MAX_DURATION_SECONDS)
    async with sampled(lambda: is_ready(worker)) as ready_during_stream:
        await asyncio.gather(
            publish_bogus_periodically(harness), stream_during.publish_steadily(PER_SECOND, seconds=FLOW_SECONDS)
        )
        drained = await harness.holds_within(lambda: harness.depth() == 0, seconds=TIMEOUT_SECONDS)
    await stream_without.publish_steadily(PER_SECOND, seconds=FLOW_SECONDS)
    drained = drained and await harness.holds_within(lambda: harness.depth() == 0, seconds=TIMEOUT_SECONDS)

    streams = [await stream.received() for stream in (stream_after, stream_during, stream_without)]
    missing = sum(len(received.missing(room.ids)) for received in streams)
    repeated = sum(received.repeated() for received in streams)
    letters = harness.dead_letters()
    with_bogus = Latency.from_delays([*streams[0].seconds(room.ids), *streams[1].seconds(room.ids)])
    max_seconds = max(seconds for seconds, _ in found)
    ready = all(each for _, each in found) and all(ready_during_stream)
    record(
        RunResult(
            run="an invalid connection id in an idle system",
            members=sum(len(received.published_at) for received in streams) * len(room.ids),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=len(letters),
            seconds=harness.elapsed_seconds,
            notes=f"room of five p50/p99 {with_bogus}, baseline {streams[2].latency(room.ids)}; sent alone, it was "
            f"rejected within {max_seconds:.1f} s; the worker was {'always' if ready else 'not always'} ready",
        )
    )
    assert missing == repeated == 0
    assert drained
    assert max_seconds <= MAX_DURATION_SECONDS
    assert ready
    assert all(map(is_rejected_bogus, letters))
    assert len(letters) == len(QUIET_SECONDS) + FLOW_SECONDS
