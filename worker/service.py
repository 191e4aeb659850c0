"""The composition root: wires the worker's parts, runs them, and takes them down in order.

Start: clients, health server, engine, consumer. Run: until a signal, or until a part that must not end ends. Drain:
receive nothing more; every broadcast starts nothing more, waits for the answers under way, writes its exact position
and releases its message; then everything closes. A second signal ends the process at once; what is on the queue stays.
"""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from typing import Final

import aioboto3
import structlog

from worker.aws.progress import Progress
from worker.aws.queue import Queue
from worker.aws.session import LONG_POLL_SECONDS, CredentialsKeeper, open_clients, tls_context
from worker.aws.table import Table
from worker.broadcaster import Broadcaster
from worker.consumer import Consumer
from worker.dead_letters import DeadLetters
from worker.delivery.engine import DeliveryEngine
from worker.health import Health, HealthServer
from worker.http.pool import Pool
from worker.http.signing import Address, Signer
from worker.lease import LeaseKeeper
from worker.metrics import Metrics
from worker.perseverance import persevere
from worker.reaper import Reaper
from worker.room_settings import RoomSettingsCache
from worker.settings import Settings
from worker.slots import Slots

log = structlog.get_logger()

_HOT_CONNECTIONS: Final = 64
_LAG_SECONDS: Final = 0.05
_SHARE_FOR_POLLS: Final = 0.5
_SHARE_FOR_ANSWERS: Final = 0.6
_SHARE_FOR_WRITING: Final = 0.9


class Service:
    """One worker. `run` returns after a drain; everything that must not end and does is raised."""

    def __init__(self, settings: Settings, session: aioboto3.Session) -> None:
        self._settings = settings
        self._session = session
        self._stop = asyncio.Event()

    async def run(self) -> None:
        settings = self._settings
        metrics = Metrics()
        health = Health("queue", "table", "credentials")
        async with AsyncExitStack() as stack:
            server = HealthServer(settings.http_host, settings.http_port, health=health, metrics=metrics)
            stack.push_async_callback(server.close)
            await server.open()
            clients = await stack.enter_async_context(
                open_clients(self._session, connections=_HOT_CONNECTIONS, tls=tls_context(self._session))
            )
            queue = Queue(clients.sqs, clients.hot_sqs, settings.queue_url)
            table = Table(clients.dynamodb, clients.hot_dynamodb, settings.table)
            signer, engine = self._engine(metrics)
            health.watch("connections", engine.trouble)
            dead_letter_url = settings.dead_letter_queue_url
            dead_letters = DeadLetters(
                Queue(clients.sqs, clients.hot_sqs, dead_letter_url) if dead_letter_url else None, health
            )
            reaper = Reaper(table, endpoint=engine.endpoint, health=health, metrics=metrics)
            slots = Slots(settings.max_broadcasts)
            broadcaster = Broadcaster(
                queue=queue,
                slots=slots,
                table=table,
                progress=Progress(clients.hot_dynamodb, settings.table),
                dead_letters=dead_letters,
                engine=engine,
                reaper=reaper,
                settings=RoomSettingsCache(table),
                health=health,
                metrics=metrics,
            )
            leases = LeaseKeeper(
                queue,
                visibility_seconds=settings.visibility_seconds,
                health=health,
                outcomes=metrics.lease_extensions,
            )
            consumer = Consumer(
                queue=queue,
                leases=leases,
                broadcaster=broadcaster,
                dead_letters=dead_letters,
                health=health,
                metrics=metrics,
                slots=slots,
                visibility_seconds=settings.visibility_seconds,
                poll_grace_seconds=min(LONG_POLL_SECONDS + 1, settings.drain_seconds * _SHARE_FOR_POLLS),
            )
            self._listen_to_signals()
            log.info("worker.started", queue=settings.queue_url, table=settings.table)
            async with asyncio.TaskGroup() as group:
                side_tasks = [
                    group.create_task(task)
                    for task in (
                        CredentialsKeeper(self._session, health).run(signer, clients.hot_sqs, clients.hot_dynamodb),
                        clients.hot_sqs.run(),
                        clients.hot_dynamodb.run(),
                        engine.run(),
                        leases.run(),
                        reaper.run(),
                        broadcaster.pulse(),
                        _watch(health, metrics),
                        persevere("table", health, lambda: table.settings(["@all"])),
                    )
                ]
                consuming = group.create_task(consumer.run())
                await self._stop.wait()
                await self._drain(consumer, broadcaster, consuming)
                for task in side_tasks:
                    task.cancel()
        log.info("worker.stopped")

    def _engine(self, metrics: Metrics) -> tuple[Signer, DeliveryEngine]:
        settings = self._settings
        address = Address.of(settings.connections_endpoint)
        signer = Signer(address, self._session.region_name, "execute-api")
        tls = tls_context(self._session) if address.scheme == "https" else None
        engine = DeliveryEngine(
            signer=signer,
            pool=lambda owner: Pool(address, size=settings.max_in_flight, owner=owner, tls=tls),
            posts_per_second=settings.max_posts_per_second,
            metrics=metrics,
        )
        metrics.posts_in_flight = lambda: engine.in_flight
        metrics.post_rate_limit = lambda: engine.rate.limit
        return signer, engine

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)

    def _on_signal(self, signum: int) -> None:
        if self._stop.is_set():
            log.warning("worker.killed", signal=signal.Signals(signum).name)
            os._exit(1)
        log.info("worker.draining", signal=signal.Signals(signum).name)
        self._stop.set()

    async def _drain(self, consumer: Consumer, broadcaster: Broadcaster, consuming: asyncio.Task[None]) -> None:
        seconds = self._settings.drain_seconds
        hurry = asyncio.get_running_loop().call_later(seconds * _SHARE_FOR_ANSWERS, broadcaster.hurry)
        consumer.stop()
        _, unfinished = await asyncio.wait({consuming}, timeout=seconds * _SHARE_FOR_WRITING)
        hurry.cancel()
        if unfinished:
            log.warning(
                "worker.drain_incomplete", reason="positions could not be written in time; they will be repeated"
            )
            consuming.cancel()


async def _watch(health: Health, metrics: Metrics) -> None:
    """How late does the loop run a timer? And let the parts report what stops them, so that it is logged."""
    checked_at = 0.0
    while True:
        asked_at = time.monotonic()
        await asyncio.sleep(_LAG_SECONDS)
        now = time.monotonic()
        metrics.loop_lag.observe(max(0.0, now - asked_at - _LAG_SECONDS))
        if now - checked_at >= 1:
            checked_at = now
            health.check()
