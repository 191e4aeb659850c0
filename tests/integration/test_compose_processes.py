"""The services of docker-compose.yml as plain processes: the same commands and environments, other addresses.

This needs no containers. A ministack replaces the service `aws`, and there are two workers, as with `--scale worker=2`.
"""

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gatecast.emulator.server import Gateway
from local.aws_environment import CREDENTIALS
from local.ministack import Ministack
from local.processes import LOOPBACK, Process, free_port
from local.resources import create_table
from tests.compose import CHECKOUT, Service, services


class Composed:
    """Starts services, and stops them at the end."""

    def __init__(self, aws_url: str, directory: Path, cleanup: ExitStack) -> None:
        self._services = services()
        self._directory = directory
        self._cleanup = cleanup
        gateway_port = str(free_port())
        self._addresses = {
            "http://aws:4566": aws_url,
            "local-secret": CREDENTIALS.secret_access_key,
            "gateway:8080": f"{LOOPBACK}:{gateway_port}",
            "127.0.0.1:8080": f"{LOOPBACK}:{gateway_port}",
            "8080": gateway_port,
            "0.0.0.0": LOOPBACK,  # noqa: S104 - containers listen there; these processes must not
            "python3": sys.executable,
        }

    def start(self, name: str, number: int = 1, **environment: str) -> Process:
        service = self._services[name]
        log = self._directory / f"{name}-{number}.log"
        return self._cleanup.enter_context(self._process(service, service.command, log, environment))

    def is_healthy(self, name: str, **environment: str) -> bool:
        service = self._services[name]
        assert service.healthcheck
        return self._process(service, service.healthcheck, self._directory / "health.log", environment).wait(30) == 0

    def _process(self, service: Service, command: list[str], log: Path, environment: dict[str, str]) -> Process:
        localised = {name: self._localised(str(value)) for name, value in service.environment.items()}
        return Process.start(
            [self._localised(argument) for argument in command],
            environment={**localised, "PATH": os.environ["PATH"], **environment},
            log=log,
            directory=CHECKOUT,
        )

    def _localised(self, text: str) -> str:
        pattern = "|".join(re.escape(address) for address in self._addresses)
        return re.sub(pattern, lambda match: self._addresses[match[0]], text)


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    with ExitStack() as cleanup:
        ministack = cleanup.enter_context(Ministack.start())
        yield Composed(ministack.url, tmp_path, cleanup)


def output_of(process: Process, seconds: float = 90) -> str:
    """Wait until the process ends, with exit code 0, and return its output."""
    assert process.wait(seconds) == 0, process.log_tail()
    return process.log.read_text()


def wait_until_healthy(composed: Composed, name: str, process: Process, **environment: str) -> None:
    while not composed.is_healthy(name, **environment):
        assert process.exit_code is None, process.log_tail()


@pytest.mark.timeout(240)
def test_the_services_start_deliver_and_stop(composed: Composed) -> None:
    created = output_of(composed.start("init"))
    assert output_of(composed.start("init", 2)) == created

    gateway = composed.start("gateway")
    wait_until_healthy(composed, "gateway", gateway)
    ports = [{"GATECAST_HTTP_PORT": str(free_port())} for _ in range(2)]
    workers = [composed.start("worker", number, **port) for number, port in enumerate(ports)]
    for worker, port in zip(workers, ports, strict=True):
        wait_until_healthy(composed, "worker", worker, **port)

    for number in range(2):  # the second run finds the resources of the first one
        shown = output_of(composed.start("load", number, CLIENTS="40", ROOMS="3", MESSAGES="20"))
        assert re.search(r"missing +│ +0 │", shown), shown
        assert re.search(r"gone connections reaped +│ +4 of 4 │", shown), shown

    for process in (*workers, gateway):
        process.terminate()
        output_of(process)
    assert not composed.is_healthy("gateway")
    assert not composed.is_healthy("worker", **ports[0])


def test_a_missing_variable_is_named_by_each_service(composed: Composed) -> None:
    for name in ("init", "load"):
        process = composed.start(name, GATECAST_TABLE="")
        assert process.wait(30) == 2
        assert "GATECAST_TABLE" in process.log_tail()


def test_creating_a_table_completes_an_interrupted_creation(dynamodb: Any, unique_name: str) -> None:
    dynamodb.create_table(
        TableName=unique_name,
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        BillingMode="PAY_PER_REQUEST",
    )
    for _ in range(2):
        create_table(dynamodb, unique_name)
        expiry = dynamodb.describe_time_to_live(TableName=unique_name)["TimeToLiveDescription"]
        assert (expiry["TimeToLiveStatus"], expiry["AttributeName"]) == ("ENABLED", "expires_at")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only one loopback address")
async def test_the_gateway_listens_on_loopback_by_default() -> None:
    for gateway, address in ((Gateway({}), LOOPBACK), (Gateway({}, host="127.0.0.2"), "127.0.0.2")):
        async with gateway:
            for each in (LOOPBACK, "127.0.0.2"):
                with socket.socket() as probe:
                    assert (probe.connect_ex((each, gateway.port)) == 0) is (each == address)
            assert gateway.endpoint == f"http://{address}:{gateway.port}/local"
