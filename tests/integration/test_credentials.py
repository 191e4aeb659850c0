"""Credentials that cannot be used are a dependency that fails: whoever needs them waits, says so and goes on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig

from tests.credentials_service import ABOUT_TO_EXPIRE, EXPIRED, GOOD, CredentialsService, credentials
from tests.worker_process import eventually
from worker.aws.errors import sdk_errors
from worker.aws.session import CredentialsKeeper, find_session
from worker.observe.health import Health
from worker.ports import DependencyError
from worker.redrive import redrive
from worker.settings import InvalidSettings
from worker.transport.signing import Credentials

UNUSABLE: dict[str, Callable[[], Any]] = {
    "expired": lambda: credentials(expire_in=EXPIRED),
    "nothing": dict,
    "no expiry": lambda: {**credentials(expire_in=GOOD), "Expiration": None},
    "an expiry that is none": lambda: credentials(expire_in=GOOD, Expiration="soon"),
    "a list": list,
    "a key that is none": lambda: credentials(expire_in=GOOD, AccessKeyId=None),
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


def hand_out(service: CredentialsService, what: str) -> None:
    body = UNUSABLE[what]()
    service.body = "<html>" if body is None else json.dumps(body)


def session_of() -> aioboto3.Session:
    return find_session({"AWS_REGION": "eu-west-1"})


@pytest.mark.parametrize("what", UNUSABLE)
async def test_the_worker_waits_for_credentials_that_it_can_use_and_says_so(
    service: CredentialsService, what: str
) -> None:
    hand_out(service, what)
    health = Health()
    keeper = CredentialsKeeper(session_of(), health)
    finding = asyncio.create_task(keeper.find())
    await eventually(lambda: "credentials" in health.problems or finding.done())
    assert not finding.done()
    if what == "expired":
        assert health.problems == {"credentials": "credentials had expired when they were handed out"}
    service.hand_out(GOOD)
    assert await asyncio.wait_for(finding, 20) == Credentials("handed-out", "secret", "token")
    assert not health.problems
    assert keeper.expires_at is not None
    assert keeper.expires_at > time.time() + 3600


@asynccontextmanager
async def sdk_clients(session: aioboto3.Session) -> AsyncIterator[tuple[Any, Any]]:
    config = AioConfig(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1})
    async with session.client("sqs", config=config) as sqs, session.client("dynamodb", config=config) as dynamodb:
        yield sqs, dynamodb


@pytest.mark.parametrize("what", UNUSABLE)
async def test_calls_through_the_sdk_fail_as_a_dependency_does(service: CredentialsService, what: str) -> None:
    session = session_of()
    service.hand_out(ABOUT_TO_EXPIRE)
    async with sdk_clients(session) as (sqs, dynamodb):
        hand_out(service, what)
        asked = service.asked
        for call in (
            sqs.get_queue_attributes(QueueUrl="http://127.0.0.1:1/q"),
            dynamodb.delete_item(TableName="t", Key={"pk": {"S": "a"}}),
        ):
            with pytest.raises(DependencyError) as raised, sdk_errors():
                await call
            assert "credential" in raised.value.code.lower()
        assert service.asked > asked


@pytest.mark.parametrize("from_environment", [True, False])
async def test_what_is_not_about_credentials_is_as_it_was(
    service: CredentialsService, from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.hand_out(GOOD)
    if from_environment:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    async with sdk_clients(session_of()) as (sqs, dynamodb):
        for call in (
            sqs.get_queue_attributes(QueueUrl="http://127.0.0.1:1/q"),
            dynamodb.delete_item(TableName="t", Key={"pk": {"S": "a"}}),
        ):
            with pytest.raises(DependencyError) as raised, sdk_errors():
                await call
            assert raised.value.code == "EndpointConnectionError"
    assert service.asked == (0 if from_environment else 1)


@pytest.mark.parametrize("what", ["expired", "nothing", "not JSON"])
async def test_a_redrive_ends_with_one_line(
    service: CredentialsService, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand_out(service, what)
    queues = {
        "GATECAST_QUEUE_URL": "http://127.0.0.1:1/q",
        "GATECAST_DEAD_LETTER_QUEUE_URL": "http://127.0.0.1:1/d",
        "AWS_REGION": "eu-west-1",
    }
    assert await redrive(queues, dry_run=False) == 1
    written = capsys.readouterr()
    assert written.out.splitlines() == ["0 sent again", "0 left alone"]
    (line,) = written.err.splitlines()
    assert line.startswith("stopped by ")
    assert "credentials" in line
    assert line.endswith("It is safe to run it again.")


def test_a_variable_of_the_sdk_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "soon")
    with pytest.raises(InvalidSettings, match="soon"):
        session_of()
