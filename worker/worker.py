"""The worker without its adapters: wires everything between receiving a message and acknowledging it.

`service` passes it the real queue, table, connections and clock; the simulation passes simulated ones. It runs until
`stop` is set and then drains: it receives no more messages, and every broadcast starts no more posts, waits for the
responses to those in flight, writes its exact position and releases its message.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from worker.decisions.dearest_rooms import DearestRooms
from worker.delivery.engine import DeliveryEngine, Exchange
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.broadcaster import Broadcaster
from worker.pipeline.capacity import Capacity
from worker.pipeline.closer import Closer
from worker.pipeline.completions import Completions
from worker.pipeline.consumer import Consumer
from worker.pipeline.counts import Counts
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.departures import Departures
from worker.pipeline.foreign_removal import ItemRemoval, QueueRemoval
from worker.pipeline.history import History
from worker.pipeline.lease import LeaseKeeper
from worker.pipeline.payloads import Payloads
from worker.pipeline.presence import Announcer
from worker.pipeline.queue_depth import poll_depth
from worker.pipeline.reaper import Reaper
from worker.pipeline.receipts import Receipts
from worker.pipeline.removal import MembershipRemoval, Removal
from worker.pipeline.room_settings import RoomSettingsCache
from worker.pipeline.sender import Sender
from worker.pipeline.services import Services
from worker.ports import (
    ForeignMembers,
    MemberTable,
    MessageQueue,
    PayloadStore,
    PresenceStore,
    ProgressStore,
    ReceiptStore,
    StreamStore,
)
from worker.resilience import retry_forever
from worker.settings import Settings
from worker.transport.pool import ExchangeHandler, Pool
from worker.transport.signing import Signer

log = structlog.get_logger()

MAX_POLL_SECONDS: Final = 6.0
"""Upper bound on the duration of a receive. A drain waits for the open ones."""
_MAX_DEAREST_ROOMS: Final = 20
_SHARE_FOR_POLLS: Final = 0.5
"""Share of the drain time that may be spent waiting for open receives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Everything outside the worker. `clock` returns monotonic seconds, `wall_clock` seconds since the epoch.

    `members` are the members of rooms if they are not in `table`; then gone ones are sent to `gone_queue`, or deleted
    if there is none.
    """

    queue: MessageQueue
    dead_letter_queue: MessageQueue | None
    table: MemberTable
    progress: ProgressStore
    stream: StreamStore
    presence: PresenceStore
    receipts: ReceiptStore
    receipts_queue: MessageQueue | None = None
    members: ForeignMembers | None = None
    gone_queue: MessageQueue | None = None
    signer: Signer
    pool: Callable[[ExchangeHandler[Exchange]], Pool[Exchange]]
    payloads: PayloadStore | None = None
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


class Worker:
    """One worker. `run` returns after a drain; it raises an error if a task ends that must not end."""

    def __init__(self, settings: Settings, adapters: Adapters, *, health: Health, metrics: Metrics) -> None:
        self._drain_seconds = settings.drain_seconds
        self._clock = adapters.clock
        self._wall_clock = adapters.wall_clock
        clock, wall_clock = adapters.clock, adapters.wall_clock
        self.engine = DeliveryEngine(
            signer=adapters.signer,
            pool=adapters.pool,
            posts_per_second=settings.max_posts_per_second,
            metrics=metrics,
            close_slow_clients=settings.slow_clients == "close",
            clock=clock,
            wall_clock=wall_clock,
        )
        sender = Sender(adapters.queue, health)
        members = adapters.members or adapters.table
        self._reaper = Reaper(
            _removal(adapters, sender, health),
            endpoint=self.engine.endpoint,
            metrics=metrics,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._leases = LeaseKeeper(
            adapters.queue,
            visibility_seconds=settings.visibility_seconds,
            health=health,
            outcomes=metrics.lease_extensions,
            clock=clock,
        )
        self._capacity = Capacity(settings.max_broadcasts)
        damaged = DamagedItems(metrics.damaged_items)
        dead_letters = DeadLetters(adapters.dead_letter_queue, health, metrics.dead_letters, damaged)
        self._closer = Closer(
            members,
            engine=self.engine,
            reaper=self._reaper,
            health=health,
            metrics=metrics,
            clock=clock,
            wall_clock=wall_clock,
        )
        room_settings = RoomSettingsCache(members, clock)
        self._counts = Counts(adapters.presence, room_settings, clock=clock, wall_clock=wall_clock)
        self._dearest_rooms = DearestRooms()
        services = Services(
            sender=sender,
            table=members,
            locator_prefix=adapters.members.prefix if adapters.members else "",
            progress=adapters.progress,
            dead_letters=dead_letters,
            engine=self.engine,
            reaper=self._reaper,
            closer=self._closer,
            announcer=Announcer(adapters.presence, room_settings, health, wall_clock),
            payloads=Payloads(adapters.payloads, health),
            receipts=Receipts(
                adapters.receipts_queue,
                store=adapters.receipts,
                progress=adapters.progress,
                health=health,
                metrics=metrics,
            ),
            dearest_rooms=self._dearest_rooms,
            counts=self._counts,
            health=health,
            metrics=metrics,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._completions = Completions(adapters.progress, health)
        history = History(
            adapters.stream, health=health, metrics=metrics, damaged=damaged, clock=clock, wall_clock=wall_clock
        )
        self._broadcaster = Broadcaster(services, room_settings, history, self._completions, damaged)
        self._consumer = Consumer(
            queue=adapters.queue,
            leases=self._leases,
            broadcaster=self._broadcaster,
            dead_letters=dead_letters,
            health=health,
            metrics=metrics,
            capacity=self._capacity,
            visibility_seconds=settings.visibility_seconds,
            poll_grace_seconds=min(MAX_POLL_SECONDS, settings.drain_seconds * _SHARE_FOR_POLLS),
            wall_clock=wall_clock,
        )
        self._table = adapters.table
        self._health = health
        self._queues = {"main": adapters.queue}
        if adapters.dead_letter_queue is not None:
            self._queues["dead_letter"] = adapters.dead_letter_queue
        self._metrics = metrics
        self._register_gauges(settings)
        health.register_check("connections", self.engine.problem)

    def in_progress(self) -> dict[str, object]:
        """The number of leased queue messages, and the oldest broadcasts that are being delivered."""
        return {"total": len(self._leases), "broadcasts": self._broadcaster.active.shown()}

    def dearest_rooms(self) -> list[dict[str, object]]:
        """The rooms whose posts cost most in the last minutes, with their billed units."""
        dearest = self._dearest_rooms.dearest(_MAX_DEAREST_ROOMS, self._clock())
        return [{"room": room, "billed_units": units} for room, units in dearest]

    def _register_gauges(self, settings: Settings) -> None:
        """Let the metrics read numbers that the components keep anyway."""
        self._metrics.rate_cuts = lambda: self.engine.rate.cuts
        self._metrics.references = lambda: self.engine.references
        self._metrics.billed_messages = lambda: self._broadcaster.active.billed_units
        self._metrics.register_gauges(
            gatecast_posts_in_flight=lambda: self.engine.in_flight,
            gatecast_posts_in_flight_limit=lambda: settings.max_in_flight,
            gatecast_post_rate_limit=lambda: self.engine.rate.limit,
            gatecast_post_rate_ceiling=lambda: self.engine.rate.ceiling,
            gatecast_http_connections=lambda: self.engine.open_connections,
            gatecast_deliveries_waiting=lambda: self._broadcaster.active.waiting,
            gatecast_connections_stalled=lambda: self.engine.stalled_connections,
            gatecast_broadcasts_in_progress=lambda: self._capacity.taken,
            gatecast_broadcasts_in_progress_limit=lambda: settings.max_broadcasts,
            gatecast_broadcasts_parked=lambda: self._capacity.parked,
            gatecast_broadcasts_waiting=lambda: self._consumer.waiting,
            gatecast_oldest_broadcast_age_seconds=lambda: self._leases.oldest_age_seconds(self._wall_clock() * 1000),
            gatecast_unproven_gone=lambda: self._reaper.unproven,
        )

    async def run(self, stop: asyncio.Event, **background: Awaitable[None]) -> None:
        """Run until `stop` is set and the drain is over. `background` tasks, by name, run alongside; none may end."""
        background |= {
            "engine": self.engine.run(),
            "leases": self._leases.run(),
            "reaper": self._reaper.run(),
            "closer": self._closer.run(),
            "counts": self._counts.run(),
            "broadcaster": self._broadcaster.active.wake_periodically(),
            "completions": self._completions.run(),
            "queue depth": poll_depth(self._queues, self._metrics),
        }
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_must_not_end(name, task), name=name) for name, task in background.items()]
            tasks.append(group.create_task(self._check_table(), name="table check"))
            consuming = group.create_task(self._consumer.run(), name="consumer")
            await stop.wait()
            await self._drain(consuming)
            for task in tasks:
                task.cancel()

    async def _check_table(self) -> None:
        """Read from the table once: readiness requires one response from it."""
        await retry_forever("table", self._health, lambda: self._table.settings(["@all"]))

    async def _drain(self, consuming: asyncio.Task[None]) -> None:
        seconds = self._drain_seconds
        # Responses get nearly all of the time: a post whose response arrives too late will be repeated.
        cut_short_timer = asyncio.get_running_loop().call_later(
            seconds - min(2.0, seconds * 0.15), self._broadcaster.active.cut_short
        )
        self._consumer.stop()
        _, unfinished = await asyncio.wait({consuming}, timeout=seconds - min(1.0, seconds * 0.05))
        cut_short_timer.cancel()
        if unfinished:
            log.warning("worker.drain_incomplete", reason="not every position could be written in time")
            consuming.cancel()
        try:
            async with asyncio.timeout(min(1.0, seconds * 0.05)):
                await self._completions.flush()
        except TimeoutError:
            log.warning("worker.drain_incomplete", reason="not every completion could be written in time")


def _removal(adapters: Adapters, sender: Sender, health: Health) -> Removal:
    """What is done about gone connections."""
    if adapters.members is None:
        departures = Departures(sender, adapters.wall_clock)
        return MembershipRemoval(adapters.table, departures=departures, health=health, clock=adapters.clock)
    if adapters.gone_queue is None:
        return ItemRemoval(adapters.members, health)
    return QueueRemoval(Sender(adapters.gone_queue, health, "reaper"), adapters.clock)


async def _must_not_end(name: str, task: Awaitable[None]) -> None:
    """Raise an error, which ends the worker, when a task returns that must run until it is cancelled."""
    await task
    raise RuntimeError(f"the task {name!r} has ended, but must run as long as the worker does")
