"""The table and the queues, as a deployment has them. Creating what is there already changes nothing."""

import json
from typing import Any, Final, NamedTuple

MAX_RECEIVE_COUNT: Final = 1_000
"""The queue's own redrive is a last resort: every release and every deployment is a receive."""
_RETENTION_SECONDS: Final = str(14 * 24 * 3600)


class Queues(NamedTuple):
    """The URLs of a broadcast queue and of its dead-letter queue."""

    url: str
    dead_letter_url: str


def create_table(dynamodb: Any, name: str) -> str:
    """Creates the table through a boto3 DynamoDB client, waits until it can be used and returns its name."""
    try:
        dynamodb.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            BillingMode="PAY_PER_REQUEST",
        )
    except dynamodb.exceptions.ResourceInUseException:
        return name
    dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})
    dynamodb.update_time_to_live(
        TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires_at"}
    )
    return name


def create_queues(sqs: Any, name: str, *, fifo: bool = False) -> Queues:
    """Creates `{name}` and `{name}-dead-letter`, both with `.fifo` where asked, through a boto3 SQS client."""
    suffix = ".fifo" if fifo else ""
    common = {"MessageRetentionPeriod": _RETENTION_SECONDS, **({"FifoQueue": "true"} if fifo else {})}
    dead_letter_url = sqs.create_queue(QueueName=f"{name}-dead-letter{suffix}", Attributes=common)["QueueUrl"]
    dead_letter_arn = sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
    redrive = {
        "deadLetterTargetArn": dead_letter_arn["Attributes"]["QueueArn"],
        "maxReceiveCount": str(MAX_RECEIVE_COUNT),
    }
    attributes = {**common, "VisibilityTimeout": "30", "RedrivePolicy": json.dumps(redrive)}
    url = sqs.create_queue(QueueName=f"{name}{suffix}", Attributes=attributes)["QueueUrl"]
    return Queues(url, dead_letter_url)
