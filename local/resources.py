"""Creates the table, the queues and the bucket as in a deployment. Existing ones are unchanged.

`python -m local.resources http://127.0.0.1:4566` creates the table GATECAST_TABLE and the queue GATECAST_QUEUE_URL in
the emulator of SQS and DynamoDB at that address. With `--history-seconds` or `--presence` it also sets these for all
rooms that have no such setting of their own.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple

import boto3

from gatecast.table import SETTINGS_SK, key, settings_pk
from local.aws_environment import REGION
from local.options import add_room_options, room_settings

MAX_RECEIVE_COUNT: Final = 1_000
"""The queue's own redrive policy is a last resort: every release and every deployment counts as a receive."""
SHARDS_OF_ALL: Final = 16
_RETENTION_SECONDS: Final = str(14 * 24 * 3600)
_MESSAGE_BYTES: Final = str(1024 * 1024)


class Queues(NamedTuple):
    """The URLs of a broadcast queue, of its dead-letter queue, and of the queue for receipts."""

    url: str
    dead_letter_url: str
    receipts_url: str = ""


def create_table(dynamodb: Any, name: str) -> str:
    """Creates the table through a boto3 DynamoDB client, waits until it is active, and returns its name."""
    with suppress(dynamodb.exceptions.ResourceInUseException):
        dynamodb.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            BillingMode="PAY_PER_REQUEST",
        )
    dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})
    expiry = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]["TimeToLiveStatus"]
    if expiry not in {"ENABLED", "ENABLING"}:  # enabling it twice is an error
        dynamodb.update_time_to_live(
            TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires_at"}
        )
    return name


def write_settings(dynamodb: Any, table: str) -> None:
    """Spreads `@all` over as many shards as a deployment does, unless it has settings already."""
    shards = {"N": str(SHARDS_OF_ALL)}
    item = {**key(settings_pk("@all"), SETTINGS_SK), "shards": shards, "join_shards": shards}
    with suppress(dynamodb.exceptions.ConditionalCheckFailedException):
        dynamodb.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(pk)")


def write_room_settings(dynamodb: Any, table: str, settings: Mapping[str, int], *, name: str = "*") -> None:
    """Sets these attributes, such as `history_seconds`, in the settings of a room or a namespace, or of all rooms.

    `settings` is not empty. `name` is a room, or `prefix/*`, or `*`. Other attributes keep their values. Routes and
    workers notice a change within 30 s.
    """
    dynamodb.update_item(
        TableName=table,
        Key=key(settings_pk(name), SETTINGS_SK),
        UpdateExpression="SET " + ", ".join(f"#{attribute} = :{attribute}" for attribute in settings),
        ExpressionAttributeNames={f"#{attribute}": attribute for attribute in settings},
        ExpressionAttributeValues={f":{attribute}": {"N": str(value)} for attribute, value in settings.items()},
    )


def create_queues(sqs: Any, name: str, *, fifo: bool = False) -> Queues:
    """Creates `{name}` and `{name}-dead-letter` through a boto3 SQS client; with `fifo`, both end in `.fifo`.

    The queue for receipts, `{name}-receipts`, is a standard queue in any case.
    """
    suffix = ".fifo" if fifo else ""
    common = {
        "MessageRetentionPeriod": _RETENTION_SECONDS,
        "MaximumMessageSize": _MESSAGE_BYTES,
        **({"FifoQueue": "true"} if fifo else {}),
    }
    dead_letter_url = sqs.create_queue(QueueName=f"{name}-dead-letter{suffix}", Attributes=common)["QueueUrl"]
    dead_letter_arn = sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
    redrive = {
        "deadLetterTargetArn": dead_letter_arn["Attributes"]["QueueArn"],
        "maxReceiveCount": str(MAX_RECEIVE_COUNT),
    }
    attributes = {**common, "VisibilityTimeout": "30", "RedrivePolicy": json.dumps(redrive)}
    url = sqs.create_queue(QueueName=f"{name}{suffix}", Attributes=attributes)["QueueUrl"]
    receipts_url = sqs.create_queue(
        QueueName=f"{name}-receipts", Attributes={"MessageRetentionPeriod": _RETENTION_SECONDS}
    )["QueueUrl"]
    return Queues(url, dead_letter_url, receipts_url)


def create_bucket(s3: Any, name: str) -> str:
    """Creates the bucket of payloads through a boto3 S3 client, and returns its name.

    It lacks what only a deployment needs: encryption, rules of access and a life cycle.
    """
    s3.create_bucket(Bucket=name)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.resources", description=__doc__)
    parser.add_argument("endpoint", help="the URL of the emulator of SQS and DynamoDB; there is no default")
    add_room_options(parser)
    options = parser.parse_args()
    endpoint = options.endpoint
    table, queue_url = os.environ.get("GATECAST_TABLE"), os.environ.get("GATECAST_QUEUE_URL")
    if not table or not queue_url:
        parser.error("GATECAST_TABLE and GATECAST_QUEUE_URL must name the table and the queue to create")
    queue = queue_url.rpartition("/")[2]
    session = boto3.session.Session(region_name=os.environ.get("AWS_REGION", REGION))
    with (
        closing(session.client("dynamodb", endpoint_url=endpoint)) as dynamodb,
        closing(session.client("sqs", endpoint_url=endpoint)) as sqs,
    ):
        create_table(dynamodb, table)
        write_settings(dynamodb, table)
        if settings := room_settings(options):
            write_room_settings(dynamodb, table, settings)
        queues = create_queues(sqs, queue.removesuffix(".fifo"), fifo=queue.endswith(".fifo"))
    sys.stdout.write(f"table {table}\nqueue {queues.url}\ndead-letter queue {queues.dead_letter_url}\n")
    sys.stdout.write(f"receipts queue {queues.receipts_url}\n")


if __name__ == "__main__":
    main()
