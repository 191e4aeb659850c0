"""One worker and an "unaffected" room, which shares only the worker with the members that a fault concerns.

These runs compare its latency during the fault with that before: there must be no head-of-line blocking.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from gatecast import Broadcast
from gatecast.emulator.faults import Rule
from local.backend import Backend
from tests.chaos.endpoint_model import Account
from tests.chaos.harness import Harness, Room
from tests.chaos.sampling import rate_limit
from tests.chaos.scale import FULL, SEED
from tests.chaos.streams import Latency, Received, Stream
from tests.members import connection_ids, write_members
from tests.worker_process import WorkerProcess

GRANTED: Final = 2_000
"""Posts per second: the worker's ceiling, and the account's quota."""
NEARLY_ALL: Final = 0.9
"""A worker must not throttle itself below this share of the quota."""
POST_SECONDS: Final = 0.02
_ACCOUNT: Final = Account(GRANTED, GRANTED // 2)
_WARM_UP: Final = 4
"""Broadcasts to 1,000 connections."""
_BASELINE_SECONDS: Final = 20 if FULL else 3
_TIMEOUT_SECONDS: Final = 60
_BOUND_SECONDS: Final = 1.0
_BOUND_FACTOR: Final = 5


class FaultScene(NamedTuple):
    """`name` makes other rooms and ids unique. `baseline` is the unaffected room's latency without the fault."""

    name: str
    harness: Harness
    worker: WorkerProcess
    unaffected: Room
    per_second: float
    baseline: Latency

    @classmethod
    @asynccontextmanager
    async def set_up(
        cls,
        base: Backend,
        directory: Path,
        *,
        members: int = 20,
        shards: int = 1,
        per_second: float = 10,
        settings: Mapping[str, str] | None = None,
        fifo: bool = False,
    ) -> AsyncIterator["FaultScene"]:
        """Start a worker without faults, wait until its rate limit is near the ceiling, and measure the baseline."""
        name = uuid.uuid4().hex[:8]
        async with Harness.open(base, f"chaos-{name}", directory, fifo=fifo) as harness:
            unaffected = make_room(harness, f"unaffected-{name}", members, shards=shards)
            await configure_endpoint(harness)
            worker = harness.launch({"GATECAST_MAX_POSTS_PER_SECOND": str(GRANTED), **(settings or {})})
            await worker.ready()
            await _warm_up(harness, worker)
            stream = Stream(harness, unaffected)
            await stream.publish_steadily(per_second, seconds=_BASELINE_SECONDS)
            await harness.wait_until_drained(seconds=_TIMEOUT_SECONDS)
            baseline = (await stream.received()).latency(unaffected.ids)
            yield cls(name, harness, worker, unaffected, per_second, baseline)

    def add_room(self, name: str, members: int, *, shards: int = 1) -> Room:
        """Create another room with its own members."""
        return make_room(self.harness, f"{name}-{self.name}", members, shards=shards)

    def stream(self, *, ids: str = "") -> Stream:
        """A stream of broadcasts to the unaffected room, to publish during the fault."""
        return Stream(self.harness, self.unaffected, ids=ids)

    def latencies(self, received: Received) -> str:
        """For the notes: the latency of the unaffected room during the fault and before it."""
        return f"unaffected room p50/p99 {received.latency(self.unaffected.ids)}, baseline {self.baseline}"

    def assert_unaffected(self, received: Received) -> None:
        """No member of the unaffected room was missed or reached twice; at full scale, none was delayed."""
        assert not received.missing(self.unaffected.ids), "members of the unaffected room were missed"
        assert received.repeated() == 0, "members of the unaffected room were reached twice"
        if FULL:
            bound = max(_BOUND_SECONDS, _BOUND_FACTOR * self.baseline.p99)
            assert received.latency(self.unaffected.ids).p99 <= bound, "the unaffected room was delayed"


async def configure_endpoint(harness: Harness, *rules: Rule) -> None:
    """Apply these fault rules from now on, with the standard account quota and latency."""
    await harness.endpoint.configure(*rules, seed=SEED, latency_seconds=POST_SECONDS, account=_ACCOUNT)


def make_room(harness: Harness, name: str, members: int, *, shards: int = 1) -> Room:
    """Create a room whose members are in no other room and can be reaped."""
    room = Room(name, connection_ids(members, f"{name}-"))
    write_members(harness.dynamodb, harness.backend.table, room.name, room.ids, shards=shards)
    return room


async def _warm_up(harness: Harness, worker: WorkerProcess) -> None:
    """Send at the account's quota, in steps of two seconds, until the worker's rate limit has risen close to it."""
    connections = tuple(connection_ids(1_000, "warm-up-"))

    async def has_warmed_up() -> bool:
        for _ in range(_WARM_UP):
            broadcast = Broadcast(id=uuid.uuid4().hex, connections=connections, data="warm-up")
            await asyncio.to_thread(harness.publish, broadcast)
        await harness.wait_until_drained(seconds=_TIMEOUT_SECONDS)
        return await rate_limit(worker) >= NEARLY_ALL * GRANTED

    await harness.wait_until(has_warmed_up, seconds=_TIMEOUT_SECONDS)
