"""The worker as a process, where whoever hands out its credentials hands out some that have expired."""

from typing import Any

from gatecast import Broadcast, Publisher
from local.resources import Queues
from local.sdk import CREDENTIALS
from tests.connections_endpoint import ConnectionsEndpoint
from tests.credentials_service import ABOUT_TO_EXPIRE, EXPIRED, GOOD, CredentialsService
from tests.worker_fixtures import Launch
from tests.worker_process import WorkerProcess, eventually

EXPIRED_CREDENTIALS = "credentials had expired when they were handed out"


async def said(worker: WorkerProcess, reason: str) -> None:
    """Returns when the worker is not ready, alive, and names the credentials."""

    async def says() -> bool:
        assert worker.exit_code is None, worker.log_tail()
        try:
            status, body = await worker.get("/readyz")
        except OSError:
            return False  # it does not listen yet
        return status == 503 and reason in body

    await eventually(says)


async def test_expired_credentials_are_waited_out(
    launch: Launch, sqs: Any, queues: Queues, endpoint: ConnectionsEndpoint
) -> None:
    endpoint.latency_seconds = 1.0
    publisher = Publisher(sqs, queues.url)
    async with CredentialsService.serving() as service:
        service.hand_out(EXPIRED)
        worker = launch(**service.environment)
        await said(worker, EXPIRED_CREDENTIALS)
        service.body = "{}"
        await said(worker, "credentials cannot be read")

        service.hand_out(ABOUT_TO_EXPIRE, SecretAccessKey=CREDENTIALS.secret_access_key)
        await worker.ready()
        publisher.publish(Broadcast(id="one", connections=("a=",), data="x"))
        await eventually(lambda: endpoint.delivered["a="] == 1)

        endpoint.latency_seconds = 4.0
        publisher.publish(Broadcast(id="two", connections=("b=",), data="x"))
        await eventually(lambda: endpoint.posts["b="] > 0)
        service.hand_out(EXPIRED)
        await said(worker, EXPIRED_CREDENTIALS)

        service.hand_out(GOOD, SecretAccessKey=CREDENTIALS.secret_access_key)
        publisher.publish(Broadcast(id="three", connections=("c=",), data="x"))
        await worker.ready()
        await eventually(lambda: endpoint.delivered.keys() == {"a=", "b=", "c="})
        worker.terminate()
        assert await worker.ended(seconds=30) == 0
