"""Observing SQS queues: how many messages they hold, and which dead letters."""

from typing import Any, Final, NamedTuple

_COUNTS: Final = [f"ApproximateNumberOfMessages{suffix}" for suffix in ("", "NotVisible", "Delayed")]


class DeadLetter(NamedTuple):
    """A message on the dead-letter queue; `body` is a broadcast, unless it is poison."""

    reason: str
    body: str


def queue_depth(sqs: Any, url: str) -> int:
    """Messages on the queue: visible, in flight and delayed."""
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=_COUNTS)["Attributes"]
    return sum(int(attributes[name]) for name in _COUNTS)


def dead_letters(sqs: Any, url: str) -> list[DeadLetter]:
    """All messages on this dead-letter queue. They stay there and are made visible again."""
    received: list[Any] = []
    while messages := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60, MessageAttributeNames=["All"]
    ).get("Messages"):
        received += messages
    for message in received:
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    return [DeadLetter(message["MessageAttributes"]["reason"]["StringValue"], message["Body"]) for message in received]
