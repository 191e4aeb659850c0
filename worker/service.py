"""The composition root: find the services, start the admin server, and run the worker until a signal.

Startup: admin server, services, worker. The worker runs until a signal arrives, or until a task ends that must not end.
The first SIGTERM or SIGINT starts a drain; the second one ends the process at once and leaves messages on the queue.
"""

import asyncio
import dataclasses
import gc
import os
import signal
import ssl
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from aiobotocore.session import AioSession

from gatecast.addresses import region_of
from gatecast.queue_check import ATTRIBUTES, find_circle
from worker.aws.foreign_members import ForeignTable, find_keys
from worker.aws.json_service import JsonService
from worker.aws.payloads import open_payloads
from worker.aws.presence import PresenceTable
from worker.aws.progress import Progress
from worker.aws.queue import Queue
from worker.aws.receipts import SharedReceipts
from worker.aws.session import AwsServices, CredentialsKeeper, find_services, session_region, tls_context
from worker.aws.stream import Stream
from worker.aws.table import Table
from worker.members_setting import InvalidMembers
from worker.observe.admin_server import AdminServer
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.ports import DependencyError
from worker.resilience import retry_forever
from worker.settings import ConfigurationError, Settings
from worker.transport.pool import Pool
from worker.transport.signing import Address, Signer
from worker.worker import Adapters, Worker

log = structlog.get_logger()

T = TypeVar("T")

_MAX_CONNECTIONS: Final = 64
"""Maximum number of connections to each of SQS and DynamoDB."""
_CHECK_SECONDS: Final = 5.0
"""How long the check of the queues may delay the start."""
_LAG_PROBE_SECONDS: Final = 0.05
_KEPT_BODY_BYTES: Final = 4 * 1024
"""How much of the body of a post's response is kept; only its status is used."""


async def serve(settings: Settings, session: AioSession) -> None:
    """Run one worker. Returns after a drain. Raises ConfigurationError, or the error that ended the worker."""
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
        services = await find_services(session, connections=_MAX_CONNECTIONS, tls=tls, calls=metrics.service_calls)
        adapters = _make_adapters(settings, session, tls, services, metrics)
        # Calls get responses only while these run.
        signing = asyncio.create_task(
            credentials.run(adapters.signer, services.sqs, services.dynamodb), name="credentials"
        )
        sqs = asyncio.create_task(services.sqs.run(), name="sqs")
        dynamodb = asyncio.create_task(services.dynamodb.run(), name="dynamodb")
        for task in (signing, sqs, dynamodb):
            stack.callback(task.cancel)
        await _check_queues(settings, services.sqs)
        if settings.members is not None:
            members = await _or_stop(_open_members(settings, session, services, health, metrics), stop)
            if members is None:
                return
            gone_queue_url = settings.members.gone_queue_url
            gone_queue = Queue(services.sqs, gone_queue_url) if gone_queue_url else None
            adapters = dataclasses.replace(adapters, members=members, gone_queue=gone_queue)
        if settings.payload_bucket is not None:
            payloads = open_payloads(
                session,
                settings.payload_bucket,
                calls=metrics.service_calls,
                credentials_expire_at=lambda: credentials.expires_at,
            )
            adapters = dataclasses.replace(adapters, payloads=await stack.enter_async_context(payloads))
        worker = Worker(settings, adapters, health=health, metrics=metrics)
        server.in_progress = worker.in_progress
        server.dearest_rooms = worker.dearest_rooms
        metrics.register_gauges(
            gatecast_draining=stop.is_set,
            gatecast_credentials_expiry_timestamp_seconds=lambda: credentials.expires_at,
        )
        # Objects that exist by now live until the end. Scanning them in every full collection would stop the event
        # loop for 30 ms each time.
        gc.collect()
        gc.freeze()
        log.info("worker.started", queue=settings.queue_url, table=settings.table)
        await worker.run(
            stop,
            credentials=signing,
            sqs=sqs,
            dynamodb=dynamodb,
            health=_monitor(health, metrics),
        )
    log.info("worker.stopped")


def _make_adapters(
    settings: Settings, session: AioSession, tls: ssl.SSLContext, services: AwsServices, metrics: Metrics
) -> Adapters:
    address = Address.from_url(settings.connections_endpoint)
    dead_letter_url, receipts_url = settings.dead_letter_queue_url, settings.receipts_queue_url
    return Adapters(
        queue=Queue(services.sqs, settings.queue_url),
        dead_letter_queue=Queue(services.sqs, dead_letter_url) if dead_letter_url else None,
        table=Table(services.dynamodb, settings.table, damaged=DamagedItems(metrics.damaged_items)),
        progress=Progress(services.dynamodb, settings.table),
        stream=Stream(services.dynamodb, settings.table),
        receipts=SharedReceipts(services.dynamodb, settings.table),
        receipts_queue=Queue(services.sqs, receipts_url) if receipts_url else None,
        presence=PresenceTable(services.dynamodb, settings.table),
        signer=Signer(address, session_region(session), "execute-api"),
        pool=lambda handler: Pool(
            address,
            size=settings.max_in_flight,
            handler=handler,
            tls=tls if address.scheme == "https" else None,
            kept_body_bytes=_KEPT_BODY_BYTES,
        ),
    )


async def _check_queues(settings: Settings, sqs: JsonService) -> None:
    """Raise ConfigurationError if messages circle. A queue that cannot be read now is not checked, and logged."""
    urls = (settings.queue_url, settings.dead_letter_queue_url, settings.receipts_queue_url)
    if circle := find_circle(*await asyncio.gather(*(_read_attributes(sqs, url) for url in urls))):
        raise ConfigurationError(circle)


async def _open_members(
    settings: Settings, session: AioSession, services: AwsServices, health: Health, metrics: Metrics
) -> ForeignTable:
    """The members in the table that GATECAST_MEMBERS describes, whose description is awaited.

    Raises ConfigurationError.
    """
    source = settings.members
    assert source is not None  # noqa: S101 - the caller has checked
    region = session_region(session)
    if source.gone_queue_url and region_of(source.gone_queue_url) not in (None, region):
        raise ConfigurationError(
            f"GATECAST_MEMBERS: on_gone is a queue in {region_of(source.gone_queue_url)}: expected one in {region}"
        )
    try:
        keys = await retry_forever("table", health, partial(find_keys, services.dynamodb, source))
    except InvalidMembers as error:
        raise ConfigurationError(f"GATECAST_MEMBERS: {error}") from None
    if keys.is_consistent:
        log.info("members.source", table=source.table, index=source.index)
    else:
        log.warning(
            "members.source",
            table=source.table,
            index=source.index,
            reason="a global index is eventually consistent: a member whom it does not show yet misses the broadcast",
        )
    damaged = DamagedItems(metrics.damaged_items)
    own = Table(services.dynamodb, settings.table, damaged=damaged)
    return ForeignTable(services.dynamodb, own, source, keys, damaged=damaged)


async def _read_attributes(sqs: JsonService, url: str | None) -> dict[str, str]:
    """Empty if there is no such queue, or if it cannot be read."""
    if url is None:
        return {}
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            return await Queue(sqs, url).attributes(*ATTRIBUTES)
    except (DependencyError, TimeoutError) as error:
        reason = error.reason if isinstance(error, DependencyError) else "no response in time"
        log.warning("queue.unchecked", queue=url, reason=reason)
        return {}


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


async def _or_stop(awaited: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """What it returns or raises; None if a signal arrives before. Then it is cancelled."""
    starting, stopping = asyncio.create_task(awaited, name="start"), asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (starting, stopping):
        task.cancel()
    await asyncio.gather(starting, stopping, return_exceptions=True)
    return None if stop.is_set() else starting.result()


async def _monitor(health: Health, metrics: Metrics) -> None:
    """Measure the event loop's lag, and poll the health checks so that problems are logged. Until cancelled."""
    checked_at = 0.0
    while True:
        started_at = time.monotonic()
        await asyncio.sleep(_LAG_PROBE_SECONDS)
        now = time.monotonic()
        metrics.loop_lag.observe(max(0.0, now - started_at - _LAG_PROBE_SECONDS))
        if now - checked_at >= 1:
            checked_at = now
            health.poll()
