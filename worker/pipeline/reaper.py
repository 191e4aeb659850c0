"""Remove gone connections, on proof: a 410 from an endpoint that does deliver to others, or their end.

What is removed, and in which order, is the `Removal`'s business. Reaping is never urgent and never delays a broadcast:
its rate is limited, and connections may be dropped here because there are too many, because proof is missing or because
they are too young. The next broadcast finds them again, or they expire. The same holds for a batch that is in progress
when the worker ends.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from worker.decisions.endpoint_health import EndpointHealth
from worker.observe.metrics import Metrics
from worker.pipeline.removal import MAX_BATCH, Gone, Membership, Removal

log = structlog.get_logger()

YOUNG_SECONDS: Final = 30.0
"""A `$connect` may take 29 s, and until it has ended a 410 does not mean that the connection is gone."""
CONNECTIONS_PER_SECOND: Final = 400
"""Limits reaping to a few hundredths of a core, however many connections are gone."""
_BATCH_SECONDS: Final = MAX_BATCH / CONNECTIONS_PER_SECOND
"""Time between the starts of two batches, even if the first was small: then the second one is larger."""
_MAX_WAITING: Final = 20_000
_MAX_SUSPECTED: Final = 20_000
_PROOF_SECONDS: Final = 5.0
"""How long a 410 waits for another post to succeed if none has yet, as after the worker's start."""
_PROOF_POLL_SECONDS: Final = 0.25
_REPORT_DELAY_SECONDS: Final = 1.0


class Reaper:
    """Gone connections are passed to `offer` and removed while `run` runs."""

    def __init__(
        self,
        removal: Removal,
        *,
        endpoint: EndpointHealth,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._removal = removal
        self._endpoint = endpoint
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: OrderedDict[Gone, tuple[float | None, Gone]] = OrderedDict()
        """By connection id, or by all of it if it has a locator: an item may name one connection after the other. When
        its 410 arrived if it is not proven gone yet, else None.
        """
        self._suspected: OrderedDict[Gone, float] = OrderedDict()
        """When the first 410 of each connection of unknown age arrived, by the same names."""
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
        locator: str = "",
    ) -> None:
        """Queue a connection that returned 410, or was closed, for removal. Makes no calls.

        `proven`: it is certain that the connection has ended, whatever other posts return.
        `membership` is where the connection was found, if in a room; in a table that is not Gatecast's, `locator` says
        where. `joined_at_ms` is when it joined or, failing that, when it connected; None or 0 if the table contains
        neither. Young connections are ignored: their `$connect` may end well after this 410, so no waiting would turn
        it into proof.
        """
        if joined_at_ms is not None and self._wall_clock() - joined_at_ms / 1000 < YOUNG_SECONDS:
            return
        gone, now = Gone(connection_id, membership, locator), self._clock()
        name = gone if locator else Gone(connection_id, None)
        if not (proven or joined_at_ms or self._removal.knows_ages or self._is_old(name, now)):
            return
        if name not in self._waiting and len(self._waiting) < _MAX_WAITING:
            # The 410 arrived when the engine recorded its last one, which may be slightly before this call.
            gone_at = self._endpoint.last_gone_at if now - self._endpoint.last_gone_at < _REPORT_DELAY_SECONDS else now
            is_proven = proven or self._endpoint.recently_delivered(now)
            self._waiting[name] = (None if is_proven else gone_at, gone)
            self._offered.set()

    def _is_old(self, name: Gone, now: float) -> bool:
        """Whether an earlier 410 of this connection is so old that its `$connect` has ended since."""
        if now - self._suspected.setdefault(name, now) >= YOUNG_SECONDS:
            del self._suspected[name]
            return True
        if len(self._suspected) > _MAX_SUSPECTED:
            self._suspected.popitem(last=False)
        return False

    async def run(self) -> None:
        """Remove connections until cancelled."""
        while True:
            await self._offered.wait()
            if batch := self._next_batch():
                started_at = self._clock()
                self.unproven = 0
                self._metrics.memberships_reaped += await self._removal.remove(batch)
                await asyncio.sleep(max(0.0, started_at + _BATCH_SECONDS - self._clock()))
            elif self._waiting:
                await asyncio.sleep(_PROOF_POLL_SECONDS)
            else:
                self._offered.clear()

    def _next_batch(self) -> list[Gone]:
        """The oldest connections that are proven gone, at most one batch. Drops those that can no longer be proven."""
        batch: list[Gone] = []
        while self._waiting and len(batch) < MAX_BATCH:
            name, (gone_at, gone) = next(iter(self._waiting.items()))
            if gone_at is None or self._endpoint.succeeded_after(gone_at):
                batch.append(gone)
            elif self._endpoint.in_gone_streak(gone_at) or self._clock() - gone_at > _PROOF_SECONDS:
                self._count_unproven()
            else:
                break
            del self._waiting[name]
        return batch

    def _count_unproven(self) -> None:
        if not self.unproven:
            log.error("reaper.unproven", reason="every post returns 410: is the endpoint the right one?")
        self.unproven += 1
