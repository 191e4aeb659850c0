"""The worker in difficult environments: low limits, wrong variables, clients that hang, posts that are rejected."""

import contextlib
import json
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatecast import Broadcast, Publisher
from local.processes import free_port
from local.resources import Queues
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.worker_fixtures import Launch
from tests.worker_process import CHECKOUT, WorkerProcess, eventually

TOKEN = "IQoJb3JpZ2luX2Vj" * 40
ENVIRONMENT = {
    "GATECAST_QUEUE_URL": "http://127.0.0.1:1/q",
    "GATECAST_TABLE": "table",
    "GATECAST_CONNECTIONS_ENDPOINT": "http://127.0.0.1:1/live",
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
}
"""What a worker needs to start, with addresses where nothing listens."""


@pytest.fixture
def processes() -> Iterator[contextlib.ExitStack]:
    """Stops the processes in the end."""
    with contextlib.ExitStack() as stack:
        yield stack


def start(processes: contextlib.ExitStack, log: Path, ulimit: str, **overrides: str) -> WorkerProcess:
    """A worker whose limit on open files is set with `ulimit`."""
    port = free_port()
    worker = WorkerProcess.start(
        ["/bin/sh", "-c", f'ulimit {ulimit} && exec "$0" -m worker', sys.executable],
        environment={**ENVIRONMENT, "GATECAST_HTTP_PORT": str(port), **overrides},
        log=log,
        directory=CHECKOUT,
    )
    worker.port = port
    processes.callback(worker.kill)
    return worker


async def alive(worker: WorkerProcess) -> None:
    async def is_alive() -> bool:
        assert worker.exit_code is None, worker.log_tail()
        with contextlib.suppress(OSError):
            return (await worker.get("/livez"))[0] == 200
        return False

    await eventually(is_alive)


async def test_too_low_a_limit_on_open_files_ends_the_worker(processes: contextlib.ExitStack, tmp_path: Path) -> None:
    worker = start(processes, tmp_path / "log", "-n 1000", GATECAST_MAX_IN_FLIGHT="900")
    assert await worker.ended(seconds=20) == 2
    [line] = worker.log.read_text().splitlines()
    assert line.startswith("GATECAST_MAX_IN_FLIGHT is 900, which needs 1220 open files, but the limit is 1000: ")


async def test_the_soft_limit_on_open_files_is_raised(processes: contextlib.ExitStack, tmp_path: Path) -> None:
    worker = start(processes, tmp_path / "log", "-S -n 300", GATECAST_MAX_IN_FLIGHT="900")
    await alive(worker)
    assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)[0] == 1220


async def test_a_thousand_hanging_clients_leave_descriptors_for_livez(
    processes: contextlib.ExitStack, tmp_path: Path
) -> None:
    worker = start(processes, tmp_path / "log", "-n 500", GATECAST_MAX_IN_FLIGHT="1")
    await alive(worker)
    for _ in range(1_000):
        processes.enter_context(socket.create_connection(("127.0.0.1", worker.port)))
    for _ in range(3):
        assert await worker.get("/livez") == (200, "alive\n")


async def test_probable_mistakes_are_logged(processes: contextlib.ExitStack, tmp_path: Path) -> None:
    worker = start(
        processes,
        tmp_path / "log",
        "-n 2000",
        GATECAST_MAX_BRODCASTS="secret",
        GATECAST_AUTHORIZER="required",
        AWS_ENDPOINT_URL_S3="http://s3.example.com",
        GATECAST_LOG_LEVEL="WARNING",
    )
    await eventually(lambda: worker.events("setting.insecure"))
    [unknown], [insecure] = worker.events("setting.unknown"), worker.events("setting.insecure")
    assert (unknown["variable"], unknown["nearest"]) == ("GATECAST_MAX_BRODCASTS", "GATECAST_MAX_BROADCASTS")
    assert insecure["variable"] == "AWS_ENDPOINT_URL_S3"
    assert "secret" not in worker.log.read_text()


@pytest.mark.parametrize(
    ("headers", "message", "reason"),
    [
        (
            {"x-amzn-ErrorType": "InvalidSignatureException"},
            f"The request signature does not match. Check it.\n\nThe Canonical String is\n'a\nb:{TOKEN}'",
            "status 403 (InvalidSignatureException): The request signature does not match.",
        ),
        ({}, "Forbidden", "status 403: Forbidden"),
    ],
)
async def test_the_cause_of_a_403_for_all_is_reported_without_the_request(
    sqs: Any,
    dynamodb: Any,
    table: str,
    queues: Queues,
    endpoint: ConnectionsEndpoint,
    launch: Launch,
    headers: dict[str, str],
    message: str,
    reason: str,
) -> None:
    endpoint.respond = lambda _id, _nth: 403
    endpoint.reference_status = 403
    endpoint.error = (headers, json.dumps({"message": message}))
    write_members(dynamodb, table, "lobby", connection_ids(40))
    worker = launch()
    await worker.ready()
    Publisher(sqs, queues.url).publish(Broadcast(id="one", room="lobby", data="hello"))
    await eventually(lambda: worker.is_not_ready(json.dumps(f"every post fails: {reason}")[1:-1]))
    await eventually(lambda: worker.events("dependency.failing"))
    [event] = worker.events("dependency.failing")
    assert (event["component"], event["reason"]) == ("connections", f"every post fails: {reason}")
    assert TOKEN[:30] not in worker.log.read_text()
