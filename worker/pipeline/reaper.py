"""Remove gone connections from the table, on proof: a 410 from an endpoint that does deliver to others, or their end.

Connections are removed in batches: first their connection items, so that no join can succeed between reading and
deleting; then consistent queries find their rooms; then the presence items are deleted, then the memberships, and last
the joined-room items that lead to them. That users may have departed is published before or after their presence items
are deleted (`departures`), and in any case before the memberships, through which the connection would be found again.

Reaping is never urgent and never delays a broadcast: its rate is limited, and connections may be dropped here because
there are too many, because proof is missing or because they are too young. The next broadcast finds them again, or they
expire. The same holds for a batch that is in progress when the worker ends: a membership without a connection item is
still found through its room.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, TypeVar

import structlog

from gatecast import table as keys
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from gatecast.table import Key
from worker.decisions.backoff import backoff_seconds
from worker.decisions.endpoint_health import EndpointHealth
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.departures import Departures
from worker.ports import JoinedRoom, MemberTable
from worker.resilience import retry_forever

log = structlog.get_logger()

T = TypeVar("T")

Membership = tuple[str, int]
"""A room and a shard of it."""

YOUNG_SECONDS: Final = 30.0
"""A `$connect` may take 29 s, and until it has ended a 410 does not mean that the connection is gone."""
CONNECTIONS_PER_SECOND: Final = 400
"""Limits reaping to a few hundredths of a core, however many connections are gone."""
_BATCH: Final = keys.MAX_BATCH_WRITE
_BATCH_SECONDS: Final = _BATCH / CONNECTIONS_PER_SECOND
"""Time between the starts of two batches, even if the first was small: then the second one is larger."""
_MAX_WAITING: Final = 20_000
_QUERY_CONCURRENCY: Final = 8
_PROOF_SECONDS: Final = 5.0
"""How long a 410 waits for another post to succeed if none has yet, as after the worker's start."""
_PROOF_POLL_SECONDS: Final = 0.25
_REPORT_DELAY_SECONDS: Final = 1.0
_MAX_DEPARTURE_SECONDS: Final = DEPARTURE_DELAY_SECONDS - 5.0
"""If deleting presence items took longer, a worker may have found them when it looked whether their users departed."""


@dataclass
class _Items:
    """The items of gone connections, in the order in which they are deleted, and the users who may have departed."""

    presence: list[Key] = field(default_factory=list)
    memberships: dict[tuple[str, str, int], Key] = field(default_factory=dict)
    joined_rooms: list[Key] = field(default_factory=list)
    departures: dict[str, list[str]] = field(default_factory=dict)
    """By room."""

    def add(self, connection_id: str, rooms: Sequence[JoinedRoom], found_in: Membership | None) -> None:
        found: list[tuple[str, int | None]] = [(joined.room, joined.shard) for joined in rooms]
        if found_in is not None:
            # Possibly no joined-room item leads to this membership; if it stayed, every broadcast would find it.
            found.append(found_in)
        for room, shard in found:
            if shard is not None:
                self.memberships[connection_id, room, shard] = keys.key(keys.room_pk(room, shard), connection_id)
        for room, _, user in rooms:
            self.joined_rooms.append(keys.key(keys.connection_pk(connection_id), keys.joined_room_sk(room)))
            if user is not None:
                self.presence.append(keys.key(keys.presence_pk(room), keys.presence_sk(user, connection_id)))
                departed = self.departures.setdefault(room, [])
                if user not in departed:
                    departed.append(user)


class Reaper:
    """Gone connections are passed to `offer` and removed while `run` runs."""

    def __init__(
        self,
        table: MemberTable,
        *,
        endpoint: EndpointHealth,
        departures: Departures,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._endpoint = endpoint
        self._departures = departures
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: OrderedDict[str, tuple[float | None, Membership | None]] = OrderedDict()
        """By connection id: when its 410 arrived if it is not proven gone yet (else None), and where it was found."""
        self._offered = asyncio.Event()
        self.unproven = 0
        """The number of connections not removed because the endpoint returned nothing but 410."""

    def offer(
        self,
        connection_id: str,
        membership: Membership | None,
        joined_at_ms: int | None = None,
        *,
        proven: bool = False,
    ) -> None:
        """Queue a connection that returned 410, or was closed, for removal. Makes no calls.

        `proven`: it is certain that the connection has ended, whatever other posts return.
        `membership` is where the connection was found, if in a room. `joined_at_ms` is when it joined or, failing that,
        when it connected; None if the table contains neither. Young connections are ignored: their `$connect` may end
        well after this 410, so no waiting would turn it into proof.
        """
        if joined_at_ms is not None and self._wall_clock() - joined_at_ms / 1000 < YOUNG_SECONDS:
            return
        if connection_id not in self._waiting and len(self._waiting) < _MAX_WAITING:
            now = self._clock()
            # The 410 arrived when the engine recorded its last one, which may be slightly before this call.
            gone_at = self._endpoint.last_gone_at if now - self._endpoint.last_gone_at < _REPORT_DELAY_SECONDS else now
            is_proven = proven or self._endpoint.recently_delivered(now)
            self._waiting[connection_id] = (None if is_proven else gone_at, membership)
            self._offered.set()

    async def run(self) -> None:
        """Remove connections until cancelled."""
        while True:
            await self._offered.wait()
            if batch := self._next_batch():
                started_at = self._clock()
                await self._remove(batch)
                await asyncio.sleep(max(0.0, started_at + _BATCH_SECONDS - self._clock()))
            elif self._waiting:
                await asyncio.sleep(_PROOF_POLL_SECONDS)
            else:
                self._offered.clear()

    def _next_batch(self) -> dict[str, Membership | None]:
        """The oldest connections that are proven gone, at most one batch. Drops those that can no longer be proven."""
        batch: dict[str, Membership | None] = {}
        while self._waiting and len(batch) < _BATCH:
            connection_id, (gone_at, membership) = next(iter(self._waiting.items()))
            if gone_at is None or self._endpoint.succeeded_after(gone_at):
                batch[connection_id] = membership
            elif self._endpoint.in_gone_streak(gone_at) or self._clock() - gone_at > _PROOF_SECONDS:
                self._count_unproven()
            else:
                break
            del self._waiting[connection_id]
        return batch

    def _count_unproven(self) -> None:
        if not self.unproven:
            log.error("reaper.unproven", reason="every post returns 410: is the endpoint the right one?")
        self.unproven += 1

    async def _remove(self, batch: dict[str, Membership | None]) -> None:
        self.unproven = 0
        await self._retry_unprocessed(self._table.remove_connections, list(batch))
        items = _Items()
        for connection_id, rooms in zip(batch, await self._joined_rooms(list(batch)), strict=True):
            items.add(connection_id, rooms, batch[connection_id])
        if items.presence:
            await self._depart(items)
        await self._delete(list(items.memberships.values()))
        await self._delete(items.joined_rooms)
        self._metrics.memberships_reaped += len(items.memberships)

    async def _depart(self, items: _Items) -> None:
        """Delete the presence items, and publish that their users may have departed."""
        began_at = self._clock()
        before = self._departures.before_deletion
        if before:
            await self._departures.publish(items.departures)
        await self._delete(items.presence)
        if not before or self._clock() - began_at > _MAX_DEPARTURE_SECONDS:
            await self._departures.publish(items.departures)

    async def _delete(self, doomed: list[Key]) -> None:
        for chunk in _batches(doomed, _BATCH):
            await self._retry_unprocessed(self._table.delete_batch, chunk)

    async def _joined_rooms(self, connection_ids: list[str]) -> list[list[JoinedRoom]]:
        found: list[list[JoinedRoom]] = []
        for chunk in _batches(connection_ids, _QUERY_CONCURRENCY):
            async with asyncio.TaskGroup() as group:
                queries = [
                    group.create_task(
                        retry_forever("reaper", self._health, partial(self._table.joined_rooms, each)),
                        name="find joined rooms",
                    )
                    for each in chunk
                ]
            found += [query.result() for query in queries]
        return found

    async def _retry_unprocessed(self, call: Callable[[Sequence[T]], Awaitable[list[T]]], items: list[T]) -> None:
        """Repeat the call with the items that it returns as unprocessed, until there are none."""
        attempts = 0
        while items:
            items = await retry_forever("reaper", self._health, partial(call, items))
            if items:
                attempts += 1
                await asyncio.sleep(backoff_seconds(attempts, random.random()))


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
