"""The composition root: finds the services, opens the health server, and runs the core between its signals.

Start: health server, services, core. Run: until a signal, or until a part that must not end ends. The first SIGTERM or
SIGINT drains; the second one ends the process at once, and what is on the queue stays there.
"""

import asyncio
import gc
import os
import signal
import ssl
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import aioboto3
import structlog

from worker.aws.progress import Progress
from worker.aws.queue import Queue
from worker.aws.session import CredentialsKeeper, Services, find_services, tls_context
from worker.aws.table import Table
from worker.observe.admin_server import AdminServer
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.settings import Settings
from worker.transport.pool import Pool
from worker.transport.signing import Address, Signer
from worker.worker import Adapters, Worker

log = structlog.get_logger()

_CONNECTIONS: Final = 64
"""To each of SQS and DynamoDB, at most."""
_LAG_SECONDS: Final = 0.05
_KEPT_BODY_BYTES: Final = 4 * 1024
"""Of the responses to posts, whose statuses say all that is asked."""


async def serve(settings: Settings, session: aioboto3.Session) -> None:
    """Runs one worker. Returns after a drain; raises InvalidSettings, or whatever else ends it."""
    health = Health("queue", "table", "credentials")
    metrics = Metrics(health)
    stop = _stop_on_signals()
    tls = tls_context(session)
    async with AsyncExitStack() as stack:
        server = AdminServer(settings.http_host, settings.http_port, health=health, metrics=metrics)
        stack.push_async_callback(server.close)
        await server.open()
        credentials = CredentialsKeeper(session, health)
        if not await _or_stop(credentials.find(), stop):
            return
        services = await find_services(session, connections=_CONNECTIONS, tls=tls, calls=metrics.service_calls)
        around = _surroundings(settings, session, tls, services, metrics)
        core = Worker(settings, around, health=health, metrics=metrics)
        server.in_progress = core.in_progress
        metrics.follow(
            gatecast_draining=stop.is_set,
            gatecast_credentials_expiry_timestamp_seconds=lambda: credentials.expires_at,
        )
        # What is loaded by now stays: looked through at every full collection, it would stop the loop for 30 ms.
        gc.collect()
        gc.freeze()
        log.info("worker.started", queue=settings.queue_url, table=settings.table)
        await core.run(
            stop,
            credentials.run(around.signer, services.sqs, services.dynamodb),
            services.sqs.run(),
            services.dynamodb.run(),
            _watch(health, metrics),
        )
    log.info("worker.stopped")


def _surroundings(
    settings: Settings, session: aioboto3.Session, tls: ssl.SSLContext, services: Services, metrics: Metrics
) -> Adapters:
    address = Address.of(settings.connections_endpoint)
    dead_letter_url = settings.dead_letter_queue_url
    return Adapters(
        queue=Queue(services.sqs, settings.queue_url),
        dead_letter_queue=Queue(services.sqs, dead_letter_url) if dead_letter_url else None,
        table=Table(services.dynamodb, settings.table, damaged=DamagedItems(metrics.damaged_items)),
        progress=Progress(services.dynamodb, settings.table),
        signer=Signer(address, session.region_name, "execute-api"),
        pool=lambda owner: Pool(
            address,
            size=settings.max_in_flight,
            owner=owner,
            tls=tls if address.scheme == "https" else None,
            kept_body_bytes=_KEPT_BODY_BYTES,
        ),
    )


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal(signum: signal.Signals) -> None:
        if stop.is_set():
            log.warning("worker.killed", signal=signum.name)
            os._exit(1)
        log.info("worker.draining", signal=signum.name)
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, on_signal, signum)
    return stop


async def _or_stop(waiting: Coroutine[Any, Any, object], stop: asyncio.Event) -> bool:
    """Did it end before a signal came? If not, it is cancelled."""
    tasks = {asyncio.create_task(waiting), asyncio.create_task(stop.wait())}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return not stop.is_set()


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
            health.poll()
