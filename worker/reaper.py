"""Removing connections that are gone, on proof: a 410 of an endpoint that does deliver.

The connection item goes first, so that no join can succeed behind the reader's back; then a consistent query finds its
rooms; then memberships and joined-room items go in batches. Reaping is never urgent and never in a broadcast's way:
what is dropped here, for there is too much of it or no proof comes, is found again by the next broadcast, or expires.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from gatecast import table as keys
from worker.delivery.endpoint import EndpointHealth
from worker.health import Health
from worker.metrics import Metrics
from worker.perseverance import persevere
from worker.ports import MemberTable
from worker.retry import backoff_seconds

log = structlog.get_logger()

Membership = tuple[str, int]
"""A room and the shard of it."""

_MOST_WAITING: Final = 20_000
_AT_ONCE: Final = 8
_PROOF_SECONDS: Final = 5.0
"""How long a 410 waits for another post's success, where none came before it: a worker has to start somewhere."""


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
    ) -> None:
        self._table = table
        self._endpoint = endpoint
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._waiting: OrderedDict[str, tuple[float | None, Membership | None]] = OrderedDict()
        """When it was offered, if that is not proof enough yet, and where it was found."""
        self._offered = asyncio.Event()
        self.unproven = 0
        """Connections that answered 410 and were left alone, because nothing else succeeded."""

    def offer(self, connection_id: str, membership: Membership | None) -> None:
        """It is gone, says a 410; `membership` is where it was found, if in a room. Costs nothing here."""
        if connection_id not in self._waiting and len(self._waiting) < _MOST_WAITING:
            now = self._clock()
            self._waiting[connection_id] = (None if self._endpoint.proves_gone(now) else now, membership)
            self._offered.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self._offered.wait()
            if not self._waiting:
                self._offered.clear()
                continue
            connection_id, (offered_at, membership) = next(iter(self._waiting.items()))
            if offered_at is not None and not self._endpoint.proves_since(offered_at):
                if self._endpoint.all_were_gone(offered_at) or self._clock() - offered_at > _PROOF_SECONDS:
                    self._leave_unproven(connection_id)
                else:
                    await asyncio.sleep(0.25)
                continue
            del self._waiting[connection_id]
            try:
                await self._remove(connection_id, membership)
            except (KeyError, ValueError):
                # Items that nobody should have written. They expire; the next broadcast finds the connection again.
                log.exception("reaper.failed")

    def _leave_unproven(self, connection_id: str) -> None:
        self._waiting.pop(connection_id, None)
        if not self.unproven:
            log.error("reaper.unproven", reason="every post answers 410: is the endpoint the right one?")
        self.unproven += 1

    async def _remove(self, connection_id: str, membership: Membership | None) -> None:
        self.unproven = 0
        await persevere("reaper", self._health, lambda: self._table.remove_connection(connection_id))
        joined = await persevere("reaper", self._health, lambda: self._table.joined_rooms(connection_id))
        for batch in keys.removal_batches(connection_id, joined):
            await self._delete(batch)
        memberships = {
            (item["sk"]["S"].removeprefix(keys.JOINED_ROOM_PREFIX), int(item["shard"]["N"])) for item in joined
        }
        if membership is not None and membership not in memberships:
            # Nothing leads to it but the broadcast that found it; left there, every broadcast would find it again.
            memberships.add(membership)
            await self._delete([{"DeleteRequest": {"Key": keys.key(keys.room_pk(*membership), connection_id)}}])
        self._metrics.memberships_reaped += len(memberships)

    async def _delete(self, requests: list[dict[str, Any]]) -> None:
        tries = 0
        while requests:
            requests = await persevere("reaper", self._health, partial(self._table.delete_batch, requests))
            if requests:
                tries += 1
                await asyncio.sleep(backoff_seconds(tries, random.random()))
