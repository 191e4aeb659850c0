"""Unusable credentials are a failing dependency: the worker waits for usable ones, reports it, and continues."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from gatecast.cli.__main__ import invoke
from tests.credentials_service import ABOUT_TO_EXPIRE, EXPIRED, GOOD, CredentialsService, credentials
from tests.worker_process import eventually
from worker.aws.errors import sdk_errors
from worker.aws.session import CredentialsKeeper, find_session
from worker.observe.health import Health
from worker.ports import DependencyError
from worker.settings import ConfigurationError
from worker.transport.signing import Credentials

UNUSABLE: dict[str, Callable[[], Any]] = {
    "expired": lambda: credentials(expire_in=EXPIRED),
    "nothing": dict,
    "no expiry": lambda: {**credentials(expire_in=GOOD), "Expiration": None},
    "an invalid expiry": lambda: credentials(expire_in=GOOD, Expiration="soon"),
    "a list": list,
    "a key of null": lambda: credentials(expire_in=GOOD, AccessKeyId=None),
    "not JSON": lambda: None,
}


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CredentialsService]:
    async with CredentialsService.serving() as serving:
        for name, value in {
            **serving.environment,
            "AWS_REGION": "eu-west-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        }.items():
            monkeypatch.setenv(name, value)
        yield serving


def serve_unusable(service: CredentialsService, what: str) -> None:
    body = UNUSABLE[what]()
    service.body = "<html>" if body is None else json.dumps(body)


def new_session() -> AioSession:
    return find_session({"AWS_REGION": "eu-west-1"})


@pytest.mark.parametrize("what", UNUSABLE)
async def test_the_worker_waits_for_usable_credentials_and_reports_the_problem(
    service: CredentialsService, what: str
) -> None:
    serve_unusable(service, what)
    health = Health()
    keeper = CredentialsKeeper(new_session(), health)
    finding = asyncio.create_task(keeper.find())
    await eventually(lambda: "credentials" in health.problems or finding.done())
    assert not finding.done()
    if what == "expired":
        assert health.problems == {"credentials": "credentials had already expired when they were fetched"}
    service.hand_out(GOOD)
    assert await asyncio.wait_for(finding, 20) == Credentials("issued", "secret", "token")
    assert not health.problems
    assert keeper.expires_at is not None
    assert keeper.expires_at > time.time() + 3600


@asynccontextmanager
async def sdk_clients(session: AioSession) -> AsyncIterator[tuple[Any, Any]]:
    config = AioConfig(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1})
    async with (
        session.create_client("sqs", config=config) as sqs,
        session.create_client("dynamodb", config=config) as dynamodb,
    ):
        yield sqs, dynamodb


@pytest.mark.parametrize("what", UNUSABLE)
async def test_sdk_calls_with_unusable_credentials_raise_dependency_errors(
    service: CredentialsService, what: str
) -> None:
    session = new_session()
    service.hand_out(ABOUT_TO_EXPIRE)
    async with sdk_clients(session) as (sqs, dynamodb):
        serve_unusable(service, what)
        requests = service.requests
        for call in (
            sqs.get_queue_attributes(QueueUrl="http://127.0.0.1:1/q"),
            dynamodb.delete_item(TableName="t", Key={"pk": {"S": "a"}}),
        ):
            with pytest.raises(DependencyError) as raised, sdk_errors():
                await call
            assert "credential" in raised.value.code.lower()
        assert service.requests > requests


@pytest.mark.parametrize("from_environment", [True, False])
async def test_other_errors_are_unchanged_by_credentials(
    service: CredentialsService, from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.hand_out(GOOD)
    if from_environment:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    async with sdk_clients(new_session()) as (sqs, dynamodb):
        for call in (
            sqs.get_queue_attributes(QueueUrl="http://127.0.0.1:1/q"),
            dynamodb.delete_item(TableName="t", Key={"pk": {"S": "a"}}),
        ):
            with pytest.raises(DependencyError) as raised, sdk_errors():
                await call
            assert raised.value.code == "EndpointConnectionError"
    assert service.requests == (0 if from_environment else 1)


@pytest.mark.parametrize("what", UNUSABLE)
async def test_a_command_with_unusable_credentials_ends_with_one_line(
    service: CredentialsService, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_unusable(service, what)
    monkeypatch.setenv("GATECAST_QUEUE_URL", "http://127.0.0.1:1/q")
    monkeypatch.setenv("GATECAST_DEAD_LETTER_QUEUE_URL", "http://127.0.0.1:1/d")
    assert await asyncio.to_thread(invoke, ["dead-letters", "redrive"]) == 1
    written = capsys.readouterr()
    assert not written.out
    (line,) = written.err.splitlines()
    assert line.startswith("gatecast: ")
    assert "AWS credentials" in line
    assert "AWS_" in line.partition(": ")[2], "it names a remedy"


def test_an_invalid_sdk_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="soon"):
        new_session()
