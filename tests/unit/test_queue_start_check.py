"""What the worker reads of its queues at the start, and what the adapter makes of incomplete responses."""

import json
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from worker.aws.errors import ServiceError
from worker.aws.json_service import JsonService
from worker.aws.queue import Queue
from worker.service import _check_queues
from worker.settings import ConfigurationError, Settings

URL, DEAD_LETTER_URL = "https://queue/1/main", "https://queue/1/dead"
ARN, DEAD_LETTER_ARN = "arn:aws:sqs:eu-west-1:1:main", "arn:aws:sqs:eu-west-1:1:dead"
BACK = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": ARN, "maxReceiveCount": 3})}
DENIED = ServiceError("AccessDeniedException", b'{"message": "No permission."}')


class Service:
    """Returns the response of each queue, or raises it."""

    def __init__(self, **responses: Any) -> None:
        self._responses = responses

    async def call(self, operation: str, body: bytes) -> bytes:
        del operation
        response = self._responses[json.loads(body)["QueueUrl"].rpartition("/")[2]]
        if isinstance(response, Exception):
            raise response
        return json.dumps(response).encode()


def attributes(arn: str, **others: str) -> dict[str, dict[str, str]]:
    return {"Attributes": {"QueueArn": arn, **others}}


async def check(*, dead_letter_queue: bool = True, **responses: Any) -> list[Any]:
    """The log entries of the check."""
    settings = Settings(
        queue_url=URL,
        dead_letter_queue_url=DEAD_LETTER_URL if dead_letter_queue else None,
        table="table",
        connections_endpoint="https://ws.example.com",
    )
    with capture_logs() as logged:
        await _check_queues(settings, cast(JsonService, Service(**responses)))
    return logged


async def test_queues_without_a_circle_pass_in_silence() -> None:
    assert await check(main=attributes(ARN), dead=attributes(DEAD_LETTER_ARN)) == []
    assert await check(main=attributes(ARN), dead_letter_queue=False) == []


async def test_without_a_dead_letter_queue_the_queues_own_policy_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="the redrive policy of GATECAST_QUEUE_URL names that queue itself"):
        await check(main=attributes(ARN, **BACK), dead_letter_queue=False)


async def test_a_queue_that_cannot_be_read_is_logged_and_the_other_one_is_checked() -> None:
    [event] = await check(main=attributes(ARN), dead=DENIED)
    assert (event["event"], event["log_level"], event["queue"]) == ("queue.unchecked", "warning", DEAD_LETTER_URL)
    assert event["reason"] == "AccessDeniedException: No permission."
    [event] = await check(main=DENIED, dead=attributes(DEAD_LETTER_ARN, **BACK))
    assert event["queue"] == URL
    with pytest.raises(ConfigurationError, match="GATECAST_QUEUE_URL names that queue itself"):
        await check(main=attributes(ARN, **BACK), dead=DENIED)


async def test_a_message_without_a_time_counts_as_sent_now() -> None:
    received = [
        {"MessageId": "a", "ReceiptHandle": "r"},
        {"MessageId": "b", "ReceiptHandle": "r", "Attributes": {"SentTimestamp": "1799999999000"}},
    ]
    service = cast(JsonService, Service(main={"Messages": received}))
    first, second = await Queue(service, URL, wall_clock=lambda: 1_800_000_000.5).receive(10, visibility_seconds=30)
    assert (first.sent_at_ms, second.sent_at_ms) == (1_800_000_000_500, 1_799_999_999_000)
