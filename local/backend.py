"""What routes and workers stand on: ministack with the table and the queues, and the environment to find them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from local.ministack import Ministack
from local.resources import Queues, create_queues, create_table
from local.sdk import CREDENTIALS, REGION, without_aws
from routes.environment import OPEN_ACCESS

TABLE = "gatecast"
QUEUE = "gatecast-broadcasts"


class Backend(NamedTuple):
    """A running ministack with Gatecast's table and queues in it."""

    ministack: Ministack
    table: str
    queues: Queues

    def environment(self) -> dict[str, str]:
        """The variables of the routes and, but for its connections endpoint, of the worker.

        Anyone may connect and is not limited: this is for loads and for trying things by hand, on this machine alone.
        Nobody reads CloudWatch here.
        """
        return {
            **self.ministack.environment(),
            "GATECAST_TABLE": self.table,
            "GATECAST_QUEUE_URL": self.queues.url,
            "GATECAST_DEAD_LETTER_QUEUE_URL": self.queues.dead_letter_url,
            "GATECAST_AUTHORIZER": OPEN_ACCESS,
            "GATECAST_JOINS_PER_SECOND": "0",
            "GATECAST_PUBLISHES_PER_SECOND": "0",
            "POWERTOOLS_METRICS_DISABLED": "true",
        }

    @contextmanager
    def client(self, service: str) -> Iterator[Any]:
        """A boto3 client of a stand-in."""
        client = boto3.session.Session().client(
            service,
            endpoint_url=self.ministack.url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS.access_key_id,
            aws_secret_access_key=CREDENTIALS.secret_access_key,
        )
        try:
            yield client
        finally:
            client.close()


@contextmanager
def backend(*, fifo: bool = False, name: str = TABLE, queue: str = QUEUE, log: Path | None = None) -> Iterator[Backend]:
    """Starts ministack, creates the table and the queues, and stops it at the end. Call it on the main thread."""
    with Ministack.start(log=log) as ministack:
        yield prepared(ministack, fifo=fifo, table=name, queue=queue)


def prepared(ministack: Ministack, *, table: str, queue: str, fifo: bool = False) -> Backend:
    """Creates the table and the queues in a ministack that runs already."""
    empty = Backend(ministack, table, Queues("", ""))
    with empty.client("dynamodb") as dynamodb, empty.client("sqs") as sqs:
        create_table(dynamodb, table)
        return empty._replace(queues=create_queues(sqs, queue, fifo=fifo))


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with these variables and no other AWS ones, until the end of the block."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({**without_aws(before), **variables})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
