"""What the demo runs on: ministack, a gateway and a worker, each a process, and what is seen of them from outside."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gatecast import Publisher
from gatecast.table import connection_pk
from local.backend import Backend, backend, environment
from local.gateway_process import GatewayProcess
from local.processes import Process
from local.worker_process import WorkerProcess

_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class System:
    """Every method but `watch` blocks for the length of its calls."""

    backend: Backend
    gateway: GatewayProcess
    worker: WorkerProcess
    directory: Path
    dynamodb: Any
    publisher: Publisher

    @property
    def processes(self) -> Mapping[str, Process]:
        return {
            "the worker": self.worker.process,
            "the gateway": self.gateway.process,
            "ministack": self.backend.ministack.process,
        }

    async def watch(self) -> None:
        """Runs until cancelled. Raises ProcessFailed, with the end of its log, when one of the processes has ended."""
        while True:
            for name, process in self.processes.items():
                if process.exit_code is not None:
                    raise process.failed(f"{name} ended")
            await asyncio.sleep(_LOOK_SECONDS)  # a thread that waits for a process could not be cancelled

    def vanish(self, clients: Iterable[int]) -> list[str]:
        """Cuts these clients off without `$disconnect` and returns their connection ids."""
        numbers = {str(client) for client in clients}
        found = self.gateway.connections().items()
        connection_ids = [connection_id for connection_id, made in found if made["query"].get("client") in numbers]
        self.gateway.vanish(connection_ids)
        return connection_ids

    def still_in_table(self, connection_ids: Iterable[str]) -> set[str]:
        """Those of the connections of which any item is left: a connection, a joined room or a membership."""
        keys = [(item["pk"]["S"], item["sk"]["S"]) for item in _scan(self.dynamodb, self.backend.table)]
        known = {pk for pk, _ in keys} | {sk for _, sk in keys}
        return {
            connection_id for connection_id in connection_ids if {connection_id, connection_pk(connection_id)} & known
        }

    def posts(self) -> float:
        """How many posts the worker has made so far."""
        return self.worker.metric("gatecast_posts_total")


@contextmanager
def running() -> Iterator[System]:
    """Starts everything, and stops it at the end of the block. Call it on the main thread. Raises ProcessFailed.

    The user's own AWS variables are out of effect meanwhile. Logs are kept if a process has ended by itself.
    """
    directory = Path(tempfile.mkdtemp(prefix="gatecast-demo-"))
    with (
        environment({}),
        backend(log=directory / "ministack.log") as base,
        base.client("dynamodb") as dynamodb,
        base.client("sqs") as sqs,
        GatewayProcess.start(base.environment(), log=directory / "gateway.log") as gateway,
    ):
        worker = WorkerProcess.start(base, gateway.endpoint, log=directory / "worker.log")
        with worker.process:
            worker.wait_until_ready()
            system = System(base, gateway, worker, directory, dynamodb, Publisher(sqs, base.queues.url))
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
