"""Removing connections that are gone, on proof: a 410 of an endpoint that does deliver.

In batches of many connections: their connection items go first, so that no join can succeed behind the reader's back;
then consistent queries find their rooms; then the memberships go, and last the joined-room items that lead to them.

Reaping is never urgent and never in a broadcast's way: it is paced, and what is dropped here, because there is too much
of it, no proof comes or the connection is too young, is found again by the next broadcast, or expires. So is whatever
is under way when the worker ends: a membership without a connection item is still found by its room.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final, TypeVar

import structlog

from gatecast import table as keys
from gatecast.table import Key
from worker.decisions.backoff import backoff_seconds
from worker.decisions.endpoint_health import EndpointHealth
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.ports import JoinedRoom, MemberTable
from worker.resilience import retry_forever

log = structlog.get_logger()

T = TypeVar("T")

Membership = tuple[str, int]
"""A room and the shard of it."""

YOUNG_SECONDS: Final = 30.0
"""A `$connect` may take 29 s, and until it has ended a 410 says nothing about the connection."""
CONNECTIONS_PER_SECOND: Final = 400
"""So that reaping takes a few hundredths of a core, whatever there is to reap."""
_BATCH: Final = keys.MAX_BATCH_WRITE
_BATCH_SECONDS: Final = _BATCH / CONNECTIONS_PER_SECOND
"""From one batch to the next, also after a small one: then the next is larger."""
_MAX_WAITING: Final = 20_000
_QUERIES_AT_ONCE: Final = 8
_PROOF_SECONDS: Final = 5.0
"""How long a 410 waits for another post's success, where none came before it: a worker has to start somewhere."""
_PROOF_POLL_SECONDS: Final = 0.25
_TOLD_SECONDS: Final = 1.0


class Reaper:
    """Give it gone connections with `offer`; they are removed while `run` runs."""

    def __init__(
        self,
        table: MemberTable,
        *,
        endpoint: EndpointHealth,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._endpoint = endpoint
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: OrderedDict[str, tuple[float | None, Membership | None]] = OrderedDict()
        """When each was offered, if that is not proof enough yet, and where it was found."""
        self._offered = asyncio.Event()
        self.unproven = 0
        """Connections that were left alone, because nothing but 410 came back from the endpoint."""

    def offer(self, connection_id: str, membership: Membership | None, joined_at_ms: int | None = None) -> None:
        """Remove this connection, for which a post has just returned 410. Costs nothing here.

        `membership` is where it was found, if in a room; `joined_at_ms` is since when it has been a member, or else
        connected, and None if the table knows neither. Not taken are young ones: their `$connect` may end well after
        this 410, so waiting here would not make it proof.
        """
        if joined_at_ms is not None and self._wall_clock() - joined_at_ms / 1000 < YOUNG_SECONDS:
            return
        if connection_id not in self._waiting and len(self._waiting) < _MAX_WAITING:
            now = self._clock()
            # The engine's time of the 410 itself: what is told later of the same moment came at the same moment.
            gone_at = self._endpoint.last_gone_at if now - self._endpoint.last_gone_at < _TOLD_SECONDS else now
            self._waiting[connection_id] = (None if self._endpoint.proves_gone(now) else gone_at, membership)
            self._offered.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._offered.wait()
            if batch := self._take():
                started_at = self._clock()
                await self._remove(batch)
                await asyncio.sleep(max(0.0, started_at + _BATCH_SECONDS - self._clock()))
            elif self._waiting:
                await asyncio.sleep(_PROOF_POLL_SECONDS)
            else:
                self._offered.clear()

    def _take(self) -> dict[str, Membership | None]:
        """The oldest that are proven to be gone, a batch at most. Those that will never be are dropped."""
        batch: dict[str, Membership | None] = {}
        while self._waiting and len(batch) < _BATCH:
            connection_id, (offered_at, membership) = next(iter(self._waiting.items()))
            if offered_at is None or self._endpoint.proves_since(offered_at):
                batch[connection_id] = membership
            elif self._endpoint.all_were_gone(offered_at) or self._clock() - offered_at > _PROOF_SECONDS:
                self._count_unproven()
            else:
                break
            del self._waiting[connection_id]
        return batch

    def _count_unproven(self) -> None:
        if not self.unproven:
            log.error("reaper.unproven", reason="every post answers 410: is the endpoint the right one?")
        self.unproven += 1

    async def _remove(self, batch: dict[str, Membership | None]) -> None:
        self.unproven = 0
        await self._until_processed(self._table.remove_connections, list(batch))
        memberships: dict[tuple[str, str, int], Key] = {}
        joined_rooms: list[Key] = []
        for connection_id, rooms in zip(batch, await self._joined_rooms(list(batch)), strict=True):
            found_in = batch[connection_id]
            found: list[tuple[str, int | None]] = [*rooms]
            if found_in is not None:
                # Perhaps nothing leads to it but the broadcast that found it; left there, each would find it again.
                found.append(found_in)
            for room, shard in found:
                if shard is not None:
                    memberships[connection_id, room, shard] = keys.key(keys.room_pk(room, shard), connection_id)
            pk = keys.connection_pk(connection_id)
            joined_rooms += [keys.key(pk, keys.joined_room_sk(joined.room)) for joined in rooms]
        for doomed in (list(memberships.values()), joined_rooms):
            for some in _batches(doomed, _BATCH):
                await self._until_processed(self._table.delete_batch, some)
        self._metrics.memberships_reaped += len(memberships)

    async def _joined_rooms(self, connection_ids: list[str]) -> list[list[JoinedRoom]]:
        found: list[list[JoinedRoom]] = []
        for some in _batches(connection_ids, _QUERIES_AT_ONCE):
            async with asyncio.TaskGroup() as group:
                queries = [
                    group.create_task(retry_forever("reaper", self._health, partial(self._table.joined_rooms, each)))
                    for each in some
                ]
            found += [query.result() for query in queries]
        return found

    async def _until_processed(self, call: Callable[[Sequence[T]], Awaitable[list[T]]], items: list[T]) -> None:
        """Repeat the call with what it returns as unprocessed."""
        tries = 0
        while items:
            items = await retry_forever("reaper", self._health, partial(call, items))
            if items:
                tries += 1
                await asyncio.sleep(backoff_seconds(tries, random.random()))


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
