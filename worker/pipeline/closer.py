"""Close connections whose token has expired, so that their clients notice: no worker posts to them any more.

All items of a connection expire together with its token. So a page of members shows which connections have expired, and
they are passed to `offer`. Each one whose connection item has expired as well, or is gone, is closed by the engine,
paced; a client of the dialect `gatecast.v2` is posted a frame that says why before. A membership that another program
wrote, and that expired before its connection did, closes nothing.

Expiry alone removes nothing from the table. A connection that has been closed, or no longer exists, is passed to the
reaper; one that could not be closed remains, and the next broadcast finds it again. So does one that is dropped here
because there are too many, or that was waiting when the worker ended. Nothing here ever delays a delivery.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import Final, Protocol

import structlog

from gatecast import frames
from worker.decisions.endpoint_health import SUCCESS_MEMORY_SECONDS
from worker.delivery.errands import Closing, has_ended
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.reaper import Reaper
from worker.pipeline.removal import Membership
from worker.ports import MAX_BATCH_GET, Connection, Member, MemberSource
from worker.resilience import retry_forever

log = structlog.get_logger()

CLOCK_DIFFERENCE_SECONDS: Final = 5.0
"""Expired for less than this, a connection may not have expired yet by the clocks of the routes."""
MAX_PENDING: Final = 10_000
_MAX_CLOSING: Final = 1_000
"""Connections that the engine has to close at a time. Some of them wait for a retry."""
REST_SECONDS: Final = 15.0
"""How long a connection is ignored after its end here: the reaper needs a moment, and a failure should not repeat."""
_MAX_RESTING: Final = 20_000
_GATHER_SECONDS: Final = 5.0
_LOG_INTERVAL_SECONDS: Final = 60.0
"""Outcomes are logged together: some seconds after the first, and at most once per interval."""
_FAREWELL: Final = frames.closed("token_expired", retry=True)
_OK_END: Final = 300


class ExpiredOutcome(StrEnum):
    """What became of a connection whose token has expired."""

    CLOSED = "closed"
    GONE = "gone"
    """It had ended before."""
    FAILED = "failed"


class ClosesConnections(Protocol):
    """The engine, as far as it is needed here."""

    def close(self, closing: Closing) -> None: ...


class Closer:
    """Expired connections are passed to `offer`, and closed while `run` runs."""

    def __init__(
        self,
        table: MemberSource,
        *,
        engine: ClosesConnections,
        reaper: Reaper,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._engine = engine
        self._reaper = reaper
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: OrderedDict[str, tuple[Member, Membership]] = OrderedDict()
        self._closing: set[str] = set()
        self._resting: OrderedDict[str, float] = OrderedDict()
        """When each connection's rest ends, in monotonic seconds, in this order."""
        self._changed = asyncio.Event()
        self._closed_at = float("-inf")
        self._outcomes: Counter[ExpiredOutcome] = Counter()
        """Those that are not in the log yet."""
        self._report_at = float("-inf")

    def offer(self, expired: Sequence[Member], found_in: Membership) -> None:
        """Queue members of this room and shard whose membership has expired. Makes no calls."""
        if not expired:
            return
        self._wake_rested()
        for member in expired:
            connection_id = member.connection_id
            if connection_id in self._waiting or connection_id in self._closing or connection_id in self._resting:
                continue
            if len(self._waiting) >= MAX_PENDING:
                break
            self._waiting[connection_id] = (member, found_in)
            self._changed.set()

    async def run(self) -> None:
        """Close connections until cancelled."""
        while True:
            await self._wait()
            self._report()
            while self._waiting and len(self._closing) < _MAX_CLOSING:
                await self._close_next()

    async def _wait(self) -> None:
        """Until something has changed, or a line in the log is due."""
        try:
            async with asyncio.timeout(max(0.0, self._report_at - self._clock()) if self._outcomes else None):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def _report(self) -> None:
        now = self._clock()
        if self._outcomes and now >= self._report_at:
            self._report_at = now + _LOG_INTERVAL_SECONDS
            log.info("expired_connections.closed", **{str(each): count for each, count in self._outcomes.items()})
            self._outcomes.clear()

    async def _close_next(self) -> None:
        """Start closing the connections that have waited longest."""
        limit = min(MAX_BATCH_GET, _MAX_CLOSING - len(self._closing))
        batch = dict(islice(self._waiting.items(), limit))
        found = await retry_forever("reaper", self._health, partial(self._table.connections, list(batch)))
        now = self._clock()
        for connection_id, (member, found_in) in batch.items():
            del self._waiting[connection_id]
            if self._is_connected(found.get(connection_id)):
                self._rest(connection_id, now)
                continue
            self._closing.add(connection_id)
            farewell = _FAREWELL if member.frames == frames.V2 else b""
            on_end = partial(self._ended, member, found_in)
            self._engine.close(Closing(connection_id, on_end, farewell, paced=True))

    def _is_connected(self, connection: Connection | None) -> bool:
        """Whether the connection itself has not expired, or only just."""
        return connection is not None and connection.expires_at > self._wall_clock() - CLOCK_DIFFERENCE_SECONDS

    def _ended(self, member: Member, found_in: Membership, status: int, now: float, failure: object) -> None:
        outcome = self._outcome(status)
        self._closing.discard(member.connection_id)
        self._rest(member.connection_id, now)
        self._metrics.expired_connections[outcome] += 1
        if not self._outcomes:
            self._report_at = max(self._report_at, now + _GATHER_SECONDS)
        self._outcomes[outcome] += 1
        if outcome is ExpiredOutcome.CLOSED:
            self._closed_at = now
        elif outcome is ExpiredOutcome.FAILED and self._outcomes[outcome] == 1:
            log.warning("expired_connection.not_closed", status=status, reason=str(failure))
        if outcome is not ExpiredOutcome.FAILED:
            # Like a post, a request to close is rejected with 410 for everything if the endpoint is the wrong one.
            proven = outcome is ExpiredOutcome.CLOSED or now - self._closed_at <= SUCCESS_MEMORY_SECONDS
            self._reaper.offer(
                member.connection_id,
                found_in,
                None if outcome is ExpiredOutcome.CLOSED else member.joined_at_ms,
                proven=proven,
            )
        self._changed.set()

    @staticmethod
    def _outcome(status: int) -> ExpiredOutcome:
        if not has_ended(status):
            return ExpiredOutcome.FAILED
        return ExpiredOutcome.CLOSED if status < _OK_END else ExpiredOutcome.GONE

    def _rest(self, connection_id: str, now: float) -> None:
        self._resting[connection_id] = now + REST_SECONDS
        if len(self._resting) > _MAX_RESTING:
            self._resting.popitem(last=False)

    def _wake_rested(self) -> None:
        now = self._clock()
        while self._resting and next(iter(self._resting.values())) <= now:
            self._resting.popitem(last=False)
