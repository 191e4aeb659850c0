"""The SDK's loggers, which write secrets and payloads at level debug, do not write them in the worker."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.session import AioSession

from worker.observe import log
from worker.observe.log import _SDK

SECRET, TOKEN, PAYLOAD = "the-secret-key", "the-session-token", "the-payload"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is global: other tests get it back as it was."""
    root, configuration = logging.getLogger(), structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in _SDK}
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.configure(**configuration)


class Body:
    async def read(self) -> bytes:
        return b'{"MessageId": "1"}'


async def respond(**_: Any) -> AioAWSResponse:
    """Instead of the network."""
    response = AioAWSResponse("https://sqs.eu-west-1.amazonaws.com/", 200, {}, Body())
    response._content = b'{"MessageId": "1"}'
    return response


async def send_message() -> None:
    session = AioSession()
    async with session.create_client(
        "sqs",
        region_name="eu-west-1",
        endpoint_url="https://sqs.eu-west-1.amazonaws.com",
        aws_access_key_id="key",
        aws_secret_access_key=SECRET,
        aws_session_token=TOKEN,
    ) as client:
        client.meta.events.register("before-send.sqs", respond)
        await client.send_message(QueueUrl="https://sqs.eu-west-1.amazonaws.com/1/q", MessageBody=PAYLOAD)


async def test_a_signed_call_writes_no_secret_and_no_payload(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("debug", "json")
    logging.getLogger().setLevel(logging.DEBUG)  # by a library, or by a later change
    await send_message()
    written = "".join(capfd.readouterr())
    assert not [each for each in (SECRET, TOKEN, PAYLOAD) if each in written]


async def test_the_sdk_would_write_them(capfd: pytest.CaptureFixture[str]) -> None:
    """Otherwise the test above could not fail."""
    log.configure("debug", "console")
    for name in _SDK:
        logging.getLogger(name).setLevel(logging.DEBUG)
    await send_message()
    written = "".join(capfd.readouterr())
    assert TOKEN in written
    assert PAYLOAD in written


@pytest.mark.parametrize("name", ["botocore.auth", "boto3.session", "aiobotocore.endpoint", "urllib3.connectionpool"])
@pytest.mark.parametrize("level", ["debug", "error"])
def test_no_logger_of_the_sdk_is_below_info(name: str, level: Any) -> None:
    log.configure(level, "json")
    logging.getLogger().setLevel(logging.DEBUG)
    assert logging.getLogger(name).getEffectiveLevel() >= logging.INFO
