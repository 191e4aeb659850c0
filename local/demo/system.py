"""The system under the demo: its own embedded stack, or one that is already running."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3

from gatecast import Publisher
from gatecast.table import connection_pk
from local.backend import Backend, backend, environment
from local.demo.settings import ConfigurationError
from local.gateway_process import GatewayControl, GatewayProcess
from local.processes import Process
from local.worker_process import WorkerProcess

_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class System:
    """A system that the demo does not own. Every method except `watch` blocks until its calls have returned."""

    gateway: GatewayControl
    table: str
    dynamodb: Any
    publisher: Publisher
    payload_bucket: str | None
    """The bucket that the publisher puts large payloads into, if there is one."""

    @property
    def processes(self) -> Mapping[str, Process]:
        """The processes that must keep running, by name."""
        return {}

    async def watch(self) -> None:
        """Runs until cancelled. Raises ProcessFailed, with the end of its log, when one of the processes ends."""
        while True:
            for name, process in self.processes.items():
                if process.exit_code is not None:
                    raise process.failed(f"{name} ended")
            await asyncio.sleep(_POLL_SECONDS)  # a thread that waits for a process could not be cancelled

    def drop(self, clients: Iterable[int]) -> list[str]:
        """Aborts these clients' connections without `$disconnect` and returns their connection ids."""
        numbers = {str(client) for client in clients}
        open_connections = self.gateway.connections().items()
        connection_ids = [connection_id for connection_id, made in open_connections if made["client"] in numbers]
        self.gateway.drop(connection_ids)
        return connection_ids

    def still_in_table(self, connection_ids: Iterable[str]) -> set[str]:
        """The connections that still have any item: a connection, a joined room or a membership."""
        keys = [(item["pk"]["S"], item["sk"]["S"]) for item in _scan(self.dynamodb, self.table)]
        known = {pk for pk, _ in keys} | {sk for _, sk in keys}
        return {
            connection_id for connection_id in connection_ids if {connection_id, connection_pk(connection_id)} & known
        }

    def posts(self) -> int:
        """How many posts the gateway has received so far."""
        return sum(self.gateway.counters()["posts"].values())


@dataclass(frozen=True, slots=True)
class EmbeddedSystem(System):
    """The demo's own embedded stack."""

    gateway: GatewayProcess
    backend: Backend
    worker: WorkerProcess
    directory: Path

    @property
    def processes(self) -> Mapping[str, Process]:
        return {
            "the worker": self.worker.process,
            "the gateway": self.gateway.process,
            "ministack": self.backend.ministack.process,
        }


@contextmanager
def attached(endpoint: str) -> Iterator[System]:
    """The system behind the gateway at `endpoint`. The environment names its table and queue, as for the routes.

    Raises ConfigurationError if it does not.
    """
    table, queue_url = os.environ.get("GATECAST_TABLE"), os.environ.get("GATECAST_QUEUE_URL")
    if not table or not queue_url:
        raise ConfigurationError("GATECAST_TABLE and GATECAST_QUEUE_URL must name the gateway's table and queue")
    session = boto3.session.Session(region_name=os.environ.get("AWS_REGION"))
    bucket = os.environ.get("GATECAST_PAYLOAD_BUCKET") or None
    with (
        closing(session.client("dynamodb")) as dynamodb,
        closing(session.client("sqs")) as sqs,
        closing(session.client("s3")) as s3,
    ):
        publisher = Publisher(sqs, queue_url, s3=s3 if bucket else None, bucket=bucket)
        yield System(GatewayControl(endpoint), table, dynamodb, publisher, bucket)


@contextmanager
def running() -> Iterator[EmbeddedSystem]:
    """Starts the embedded stack, and stops it at the end of the block. Call it on the main thread.

    The user's own AWS variables have no effect during the block. Logs are kept if a process ended unexpectedly. Raises
    ProcessFailed.
    """
    directory = Path(tempfile.mkdtemp(prefix="gatecast-demo-"))
    with (
        environment({}),
        backend(log=directory / "ministack.log") as base,
        base.client("dynamodb") as dynamodb,
        base.client("sqs") as sqs,
        base.client("s3") as s3,
        GatewayProcess.start(base.environment(), log=directory / "gateway.log") as gateway,
    ):
        worker = WorkerProcess.start(base, gateway.endpoint, log=directory / "worker.log")
        with worker.process:
            worker.wait_until_ready()
            bucket = base.payload_bucket
            publisher = Publisher(sqs, base.queues.url, s3=s3, bucket=bucket)
            system = EmbeddedSystem(gateway, base.table, dynamodb, publisher, bucket, base, worker, directory)
            try:
                yield system
            finally:
                if all(process.exit_code is None for process in system.processes.values()):
                    shutil.rmtree(directory)


def _scan(dynamodb: Any, table: str) -> Iterator[Any]:
    for page in dynamodb.get_paginator("scan").paginate(
        TableName=table, ConsistentRead=True, ProjectionExpression="pk, sk"
    ):
        yield from page["Items"]
