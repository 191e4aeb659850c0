"""Remove gone connections from Gatecast's table, completely and in an order in which nothing is forgotten.

Connections are removed in batches: first their connection items, so that no join can succeed between reading and
deleting; then consistent queries find their rooms; then the presence items are deleted, then the memberships, and last
the joined-room items that lead to them. That users may have departed is published before or after their presence items
are deleted (`departures`), and in any case before the memberships, through which the connection would be found again.

What if we die at an await? A membership without a connection item is still found through its room.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from gatecast import table as keys
from gatecast.presence import DEPARTURE_DELAY_SECONDS
from gatecast.table import Key
from worker.decisions.backoff import backoff_seconds
from worker.observe.health import Health
from worker.pipeline.departures import Departures
from worker.ports import JoinedRoom, MemberTable
from worker.resilience import retry_forever

T = TypeVar("T")

Membership = tuple[str, int]
"""A room and a shard of it."""

MAX_BATCH: Final = keys.MAX_BATCH_WRITE
_QUERY_CONCURRENCY: Final = 8
_MAX_DEPARTURE_SECONDS: Final = DEPARTURE_DELAY_SECONDS - 5.0
"""If deleting presence items took longer, a worker may have found them when it looked whether their users departed."""


class Gone(NamedTuple):
    """A connection that is gone, and where it was found, as far as that is known."""

    connection_id: str
    found_in: Membership | None
    locator: str = ""
    """In a table that is not Gatecast's."""


class Removal(Protocol):
    """What is done about gone connections. Failing calls are retried forever."""

    @property
    def knows_ages(self) -> bool:
        """Whether a connection of unknown age is an old one: then its `$connect` cannot still be running."""

    async def remove(self, gone: Sequence[Gone]) -> int:
        """Remove at most MAX_BATCH connections, all different. Returns how many of their memberships were removed."""


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


class MembershipRemoval:
    """Removes connections from Gatecast's own table."""

    knows_ages = True

    def __init__(
        self,
        table: MemberTable,
        *,
        departures: Departures,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._departures = departures
        self._health = health
        self._clock = clock

    async def remove(self, gone: Sequence[Gone]) -> int:
        connection_ids = [each.connection_id for each in gone]
        await self._retry_unprocessed(self._table.remove_connections, connection_ids)
        items = _Items()
        for (connection_id, found_in, _), rooms in zip(gone, await self._joined_rooms(connection_ids), strict=True):
            items.add(connection_id, rooms, found_in)
        if items.presence:
            await self._depart(items)
        await self._delete(list(items.memberships.values()))
        await self._delete(items.joined_rooms)
        return len(items.memberships)

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
        for chunk in batches(doomed, MAX_BATCH):
            await self._retry_unprocessed(self._table.delete_batch, chunk)

    async def _joined_rooms(self, connection_ids: list[str]) -> list[list[JoinedRoom]]:
        found: list[list[JoinedRoom]] = []
        for chunk in batches(connection_ids, _QUERY_CONCURRENCY):
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


def batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
