import json

import pytest

from gatecast.queue_check import find_circle, is_same_queue

BOTH = ("GATECAST_DEAD_LETTER_QUEUE_URL", "GATECAST_QUEUE_URL")
QUEUE, DEAD = "arn:aws:sqs:us-east-1:123456789012:main", "arn:aws:sqs:us-east-1:123456789012:dead"
RECEIPTS = "arn:aws:sqs:us-east-1:123456789012:receipts"


def attributes(arn: str, target: str | None = None) -> dict[str, str]:
    policy = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": target, "maxReceiveCount": 3})} if target else {}
    return {"QueueArn": arn, **policy}


@pytest.mark.parametrize(
    "other",
    [
        "https://sqs.us-east-1.amazonaws.com/123456789012/main",
        "https://sqs.us-east-1.amazonaws.com/123456789012/main/",
        "http://sqs.us-east-1.amazonaws.com/123456789012/main",
        "https://us-east-1.queue.amazonaws.com/123456789012/main",
        "https://queue.amazonaws.com/123456789012/main",
        "https://vpce-1.sqs.us-east-1.vpce.amazonaws.com/123456789012/main",
        "http://127.0.0.1:4566/queue/us-east-1/123456789012/main",
    ],
)
def test_one_queue_has_many_urls(other: str) -> None:
    assert is_same_queue("https://sqs.us-east-1.amazonaws.com/123456789012/main", other)


@pytest.mark.parametrize(
    "other",
    [
        "https://sqs.us-east-1.amazonaws.com/123456789012/main-dead-letter",
        "https://sqs.us-east-1.amazonaws.com/123456789012/Main",
        "https://sqs.us-east-1.amazonaws.com/210987654321/main",
        "https://sqs.us-east-1.amazonaws.com/123456789012/main.fifo",
    ],
)
def test_other_queues_are_told_apart(other: str) -> None:
    assert not is_same_queue("https://sqs.us-east-1.amazonaws.com/123456789012/main", other)


@pytest.mark.parametrize(
    ("queue", "dead_letters", "reason"),
    [
        (attributes(QUEUE), attributes(QUEUE), f"are the same queue ({QUEUE})"),
        (attributes(QUEUE, DEAD), attributes(DEAD, QUEUE), f"moves its messages back to {BOTH[1]} ({QUEUE}): remove"),
        (attributes(QUEUE, QUEUE), attributes(DEAD), f"names that queue itself ({QUEUE})"),
        (attributes(QUEUE, QUEUE), {}, f"names that queue itself ({QUEUE})"),
    ],
)
def test_a_circle_is_found_and_named(queue: dict[str, str], dead_letters: dict[str, str], reason: str) -> None:
    found = find_circle(queue, dead_letters)
    assert found is not None
    assert reason in found
    assert all(name in found for name in (BOTH if "names that" not in reason else BOTH[1:]))


@pytest.mark.parametrize(
    ("receipts", "reason"),
    [
        (attributes(QUEUE), f"GATECAST_QUEUE_URL are the same queue ({QUEUE})"),
        (attributes(DEAD), f"GATECAST_DEAD_LETTER_QUEUE_URL are the same queue ({DEAD})"),
        (attributes(RECEIPTS, QUEUE), f"moves its messages to GATECAST_QUEUE_URL ({QUEUE})"),
    ],
)
def test_receipts_have_a_queue_of_their_own(receipts: dict[str, str], reason: str) -> None:
    found = find_circle(attributes(QUEUE, DEAD), attributes(DEAD), receipts)
    assert found is not None
    assert "GATECAST_RECEIPTS_QUEUE_URL" in found
    assert reason in found
    for harmless in (attributes(RECEIPTS), attributes(RECEIPTS, DEAD), {}):
        assert find_circle(attributes(QUEUE, DEAD), attributes(DEAD), harmless) is None


@pytest.mark.parametrize(
    ("queue", "dead_letters"),
    [
        (attributes(QUEUE, DEAD), attributes(DEAD)),
        (attributes(QUEUE), attributes(DEAD, "arn:aws:sqs:us-east-1:123456789012:third")),
        ({}, {}),
        ({}, attributes(DEAD, QUEUE)),
        (attributes(QUEUE, DEAD), {}),
        ({**attributes(QUEUE), "RedrivePolicy": "{"}, {**attributes(DEAD), "RedrivePolicy": "[]"}),
    ],
)
def test_other_policies_are_no_circle(queue: dict[str, str], dead_letters: dict[str, str]) -> None:
    assert find_circle(queue, dead_letters) is None
