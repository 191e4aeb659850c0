"""The worker as a process whose credentials endpoint returns expired or unreadable credentials."""

from typing import Any

from gatecast import Broadcast, Publisher
from local.aws_environment import CREDENTIALS
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.credentials_service import ABOUT_TO_EXPIRE, EXPIRED, GOOD, CredentialsService
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

EXPIRED_CREDENTIALS = "credentials had already expired when they were fetched"


async def test_the_worker_waits_while_its_credentials_are_expired(
    launch: Launch, sqs: Any, queues: Queues, endpoint: ConnectionsEndpoint
) -> None:
    endpoint.latency_seconds = 1.0
    publisher = Publisher(sqs, queues.url)
    async with CredentialsService.serving() as service:
        service.hand_out(EXPIRED)
        worker = launch(**service.environment)
        await eventually(lambda: worker.is_not_ready(EXPIRED_CREDENTIALS))
        service.body = "{}"
        await eventually(lambda: worker.is_not_ready("credentials cannot be read"))

        service.hand_out(ABOUT_TO_EXPIRE, SecretAccessKey=CREDENTIALS.secret_access_key)
        await worker.ready()
        publisher.publish(Broadcast(id="one", connections=("a=",), data="x"))
        await eventually(lambda: endpoint.delivered["a="] == 1)

        endpoint.latency_seconds = 4.0
        publisher.publish(Broadcast(id="two", connections=("b=",), data="x"))
        await eventually(lambda: endpoint.posts["b="] > 0)
        service.hand_out(EXPIRED)
        await eventually(lambda: worker.is_not_ready(EXPIRED_CREDENTIALS))

        service.hand_out(GOOD, SecretAccessKey=CREDENTIALS.secret_access_key)
        publisher.publish(Broadcast(id="three", connections=("c=",), data="x"))
        await worker.ready()
        await eventually(lambda: endpoint.delivered.keys() == {"a=", "b=", "c="})
        worker.terminate()
        assert await worker.ended(seconds=30) == 0
