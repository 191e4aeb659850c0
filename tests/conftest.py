"""Fixtures for tests that need real services: ministack once per run, a table and queues once per test.

With `--dynamodb` or `--sqs`, another emulator serves what these fixtures use of that service.

This is the only conftest: type checkers see the tests as top-level modules, and two with one name would collide.
"""

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, settings
from pytest_socket import disable_socket, enable_socket

from local.ministack import Ministack
from local.resources import Queues, create_bucket, create_queues, create_table
from tests.other_emulators import LOCALSTACK_DIFFERENCES, dynamodb_local, localstack_sqs

pytest_plugins = ("tests.aws_services", "tests.chaos.fixtures", "tests.pool_driver", "tests.worker_fixtures")

# How fast a machine is, and what else it does, fails no test.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_NO_RETRIES = Config(retries={"mode": "standard", "total_max_attempts": 1})


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "the emulator of {} that the fixtures use (default: ministack); make target {}"
    parser.addoption(
        "--dynamodb", choices=["ministack", "local"], help=help_text.format("DynamoDB", "test-dynamodb-local")
    )
    parser.addoption("--sqs", choices=["ministack", "localstack"], help=help_text.format("SQS", "test-localstack-sqs"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items if config.getoption("sqs") == "localstack" else ():
        if reason := LOCALSTACK_DIFFERENCES.get(item.name):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test module that defines EVENT_LOOPS runs on each of these event loops, all others on asyncio's."""
    module = item.getparent(pytest.Module)
    loops = getattr(module.obj, "EVENT_LOOPS", None) if module else None
    return loops or {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _no_sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unit and property tests open no connections. asyncio itself needs a pair of Unix sockets."""
    if not {"unit", "property"} & set(request.path.parts):
        yield
        return
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture(scope="session")
def ministack() -> Iterator[Ministack]:
    with Ministack.start() as running:
        yield running


@pytest.fixture(scope="session")
def other_emulators(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The SDK's variables that point at other emulators than ministack, if the options choose any."""
    variables: dict[str, str] = {}
    with ExitStack() as running:
        if request.config.getoption("dynamodb") == "local":
            variables["AWS_ENDPOINT_URL_DYNAMODB"] = running.enter_context(dynamodb_local())
        if request.config.getoption("sqs") == "localstack":
            variables["AWS_ENDPOINT_URL_SQS"] = running.enter_context(localstack_sqs())
        yield variables


@pytest.fixture
def aws(ministack: Ministack, other_emulators: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that point an AWS SDK at the emulators; they are set in the test process too."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = {**ministack.environment(), **other_emulators}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def sqs(aws: dict[str, str]) -> Iterator[Any]:
    yield from _client("sqs", aws)


@pytest.fixture
def dynamodb(aws: dict[str, str]) -> Iterator[Any]:
    yield from _client("dynamodb", aws)


@pytest.fixture
def s3(aws: dict[str, str]) -> Iterator[Any]:
    yield from _client("s3", aws)


@pytest.fixture
def payload_bucket(s3: Any, unique_name: str) -> str:
    return create_bucket(s3, unique_name)


def _client(service: str, aws: dict[str, str]) -> Iterator[Any]:
    client = boto3.session.Session(region_name=aws["AWS_REGION"]).client(service, config=_NO_RETRIES)
    yield client
    client.close()


@pytest.fixture
def unique_name() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def table(dynamodb: Any, unique_name: str) -> str:
    return create_table(dynamodb, unique_name)


@pytest.fixture
def queues(sqs: Any, unique_name: str) -> Queues:
    return create_queues(sqs, unique_name)


@pytest.fixture
def fifo_queues(sqs: Any, unique_name: str) -> Queues:
    return create_queues(sqs, unique_name, fifo=True)
