"""The backend of routes and workers: ministack with table, queues and bucket, and the environment that names them."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from local.aws_environment import CREDENTIALS, REGION, without_aws
from local.ministack import SERVICES, Ministack
from local.resources import Queues, create_bucket, create_queues, create_table, write_settings
from routes.environment import OPEN_ACCESS

TABLE = "gatecast"
QUEUE = "gatecast-broadcasts"
PAYLOAD_BUCKET = "gatecast-payloads"


class Backend(NamedTuple):
    """A running ministack with Gatecast's table and queues and, unless it is None, the bucket of payloads."""

    ministack: Ministack
    table: str
    queues: Queues
    payload_bucket: str | None = None

    def environment(self) -> dict[str, str]:
        """The variables of the routes, and of the worker except for its connections endpoint.

        Anyone may connect, without rate limits: this is for load tests and manual use on this machine only. CloudWatch
        metrics are disabled.
        """
        return {
            **self.ministack.environment(),
            "GATECAST_TABLE": self.table,
            "GATECAST_QUEUE_URL": self.queues.url,
            "GATECAST_DEAD_LETTER_QUEUE_URL": self.queues.dead_letter_url,
            **({"GATECAST_RECEIPTS_QUEUE_URL": self.queues.receipts_url} if self.queues.receipts_url else {}),
            **({"GATECAST_PAYLOAD_BUCKET": self.payload_bucket} if self.payload_bucket else {}),
            "GATECAST_AUTHORIZER": OPEN_ACCESS,
            "GATECAST_JOINS_PER_SECOND": "0",
            "GATECAST_PUBLISHES_PER_SECOND": "0",
            "POWERTOOLS_METRICS_DISABLED": "true",
        }

    @contextmanager
    def client(self, service: str) -> Iterator[Any]:
        """A boto3 client of ministack's `service`."""
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
def backend(
    *,
    fifo: bool = False,
    name: str = TABLE,
    queue: str = QUEUE,
    log: Path | None = None,
    services: Collection[str] = SERVICES,
) -> Iterator[Backend]:
    """Starts ministack, prepares it as a backend, and stops it at the end. Call it on the main thread."""
    with Ministack.start(services=services, log=log) as ministack:
        yield prepare_backend(ministack, fifo=fifo, table=name, queue=queue)


def prepare_backend(ministack: Ministack, *, table: str, queue: str, fifo: bool = False) -> Backend:
    """Creates the table, the queues and the bucket in a running ministack."""
    empty = Backend(ministack, table, Queues("", ""))
    with empty.client("dynamodb") as dynamodb, empty.client("sqs") as sqs, empty.client("s3") as s3:
        create_table(dynamodb, table)
        write_settings(dynamodb, table)
        return empty._replace(
            queues=create_queues(sqs, queue, fifo=fifo), payload_bucket=create_bucket(s3, PAYLOAD_BUCKET)
        )


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replaces this process's AWS variables with these variables until the end of the block."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({**without_aws(before), **variables})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
