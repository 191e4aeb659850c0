"""Fixtures for tests of worker processes: the `@connections` endpoint, and a launcher for workers."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.worker_process import WorkerProcess

Launch = Callable[..., WorkerProcess]


@pytest.fixture
async def endpoint() -> AsyncIterator[ConnectionsEndpoint]:
    async with ConnectionsEndpoint.serving() as serving:
        yield serving


@pytest.fixture
def launch(
    aws: dict[str, str], table: str, queues: Queues, endpoint: ConnectionsEndpoint, tmp_path: Path
) -> Iterator[Launch]:
    workers: list[WorkerProcess] = []

    def start(**overrides: str) -> WorkerProcess:
        environment = {
            **aws,
            "GATECAST_QUEUE_URL": queues.url,
            "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
            "GATECAST_TABLE": table,
            "GATECAST_CONNECTIONS_ENDPOINT": endpoint.url,
            "GATECAST_VISIBILITY_SECONDS": "5",
            **overrides,
        }
        workers.append(WorkerProcess.launch(environment, tmp_path / f"worker-{len(workers)}.log"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
