"""The worker's reaper alone, with its table adapter, transport and pacing."""

import asyncio
import os
import time

import uvloop

from bench.clients.section import Arguments, connection_ids, measured
from worker.aws.json_service import JsonService
from worker.aws.queue import Queue
from worker.aws.table import Table
from worker.decisions.endpoint_health import EndpointHealth
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.departures import Departures
from worker.pipeline.reaper import Reaper
from worker.pipeline.removal import MembershipRemoval
from worker.pipeline.sender import Sender
from worker.transport.signing import Credentials


async def main() -> None:
    arguments = Arguments.parse()
    metrics = Metrics(Health())
    service = JsonService(
        arguments.url,
        region=os.environ["AWS_REGION"],
        service="dynamodb",
        prefix="DynamoDB_20120810",
        json_version="1.0",
        connections=64,
        tls=None,
        calls=metrics.service_calls,
    )
    service.use(
        Credentials(
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_SESSION_TOKEN"]
        )
    )
    endpoint = EndpointHealth(last_success_at=time.monotonic())
    departures = Departures(Sender(Queue(service, "unused"), Health()))  # none of the connections is in a presence list
    removal = MembershipRemoval(Table(service, "gatecast"), departures=departures, health=Health())
    reaper = Reaper(removal, endpoint=endpoint, metrics=metrics)

    async def reap(ids: list[str]) -> None:
        """Reap the connections, each of which is in CONCURRENCY rooms of the mock server."""
        before = metrics.memberships_reaped
        for each in ids:
            reaper.offer(each, ("r0", 0), 0)
        while metrics.memberships_reaped < before + len(ids) * arguments.concurrency:  # noqa: ASYNC110 - the reaper has no event to wait for
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(service.run()), group.create_task(reaper.run())]
        await reap(connection_ids(arguments.warm_up))
        ids = connection_ids(arguments.posts)
        with measured(arguments.posts):
            await reap(ids)
        for task in running:
            task.cancel()


if __name__ == "__main__":
    uvloop.run(main())
