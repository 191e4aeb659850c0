"""One worker, an honest room that has nothing to do with the fault, and how late its messages are without it.

The honest room's latency, with and without the fault, is what these runs are about: nobody holds up anybody.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from gatecast import Broadcast
from local.backend import Backend
from local.gateway.faults import Rule
from tests.chaos.arena import Arena, Room
from tests.chaos.counting import Account
from tests.chaos.rooms import connection_ids, write_members
from tests.chaos.sizes import FULL, SEED
from tests.chaos.streams import Latency, Received, Stream
from tests.chaos.watching import rate_limit
from tests.worker_process import WorkerProcess

GRANTED: Final = 2_000
"""Posts per second: the worker's ceiling, and what the account grants."""
NEARLY_ALL: Final = 0.9
"""The share of what is granted below which a worker must not throttle itself."""
POST_SECONDS: Final = 0.02
_ACCOUNT: Final = Account(GRANTED, GRANTED // 2)
_WARM_UP: Final = 4
"""Broadcasts to 1,000 connections."""
_BASELINE_SECONDS: Final = 20 if FULL else 3
_PATIENCE_SECONDS: Final = 60
_BOUND_SECONDS: Final = 1.0
_BOUND_FACTOR: Final = 5


class Scene(NamedTuple):
    """`name` makes other rooms and ids unique. `without` is the honest room's latency without the fault."""

    name: str
    arena: Arena
    worker: WorkerProcess
    honest: Room
    per_second: float
    without: Latency

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
    ) -> AsyncIterator["Scene"]:
        """Without a fault so far. A worker that starts gently has reached its ceiling, then the baseline was taken."""
        name = uuid.uuid4().hex[:8]
        async with Arena.opened(base, f"chaos-{name}", directory, fifo=fifo) as arena:
            honest = make_room(arena, f"honest-{name}", members, shards=shards)
            await behave(arena)
            worker = arena.launch({"GATECAST_MAX_POSTS_PER_SECOND": str(GRANTED), **(settings or {})})
            await worker.ready()
            await _warm_up(arena, worker)
            stream = Stream(arena, honest)
            await stream.flow(per_second, seconds=_BASELINE_SECONDS)
            await arena.drained(seconds=_PATIENCE_SECONDS)
            without = (await stream.received()).latency(honest.ids)
            yield cls(name, arena, worker, honest, per_second, without)

    def room(self, name: str, members: int, *, shards: int = 1) -> Room:
        """One more room, with members of its own."""
        return make_room(self.arena, f"{name}-{self.name}", members, shards=shards)

    def stream(self, *, ids: str = "") -> Stream:
        """To the honest room, while the fault lasts."""
        return Stream(self.arena, self.honest, ids=ids)

    def latencies(self, received: Received) -> str:
        """For the notes: the honest room with the fault, and without."""
        return f"honest room p50/p99 {received.latency(self.honest.ids)}, without {self.without}"

    def assert_honest(self, received: Received) -> None:
        """Nobody was missed or had anything twice. In full form: nobody was held up."""
        assert not received.missing(self.honest.ids), "members of the honest room were missed"
        assert received.repeated() == 0, "members of the honest room had something twice"
        if FULL:
            bound = max(_BOUND_SECONDS, _BOUND_FACTOR * self.without.p99)
            assert received.latency(self.honest.ids).p99 <= bound, "the honest room was held up"


async def behave(arena: Arena, *rules: Rule) -> None:
    """From now on, with the usual account and latency."""
    await arena.endpoint.behave(*rules, seed=SEED, latency_seconds=POST_SECONDS, account=_ACCOUNT)


def make_room(arena: Arena, name: str, members: int, *, shards: int = 1) -> Room:
    """With members that are in no other room, and can be reaped."""
    room = Room(name, connection_ids(members, f"{name}-"))
    write_members(arena.dynamodb, arena.backend.table, room.name, room.ids, shards=shards)
    return room


async def _warm_up(arena: Arena, worker: WorkerProcess) -> None:
    """As much as is granted, for two seconds or until the worker has found out how much that is."""
    connections = tuple(connection_ids(1_000, "warm-up-"))

    async def has_warmed_up() -> bool:
        for _ in range(_WARM_UP):
            broadcast = Broadcast(id=uuid.uuid4().hex, connections=connections, data="warm-up")
            await asyncio.to_thread(arena.publish, broadcast)
        await arena.drained(seconds=_PATIENCE_SECONDS)
        return await rate_limit(worker) >= NEARLY_ALL * GRANTED

    await arena.until(has_warmed_up, seconds=_PATIENCE_SECONDS)
