"""A plain worker with aioboto3, for comparison: receive, query pages, post to each member, delete.

A semaphore bounds the posts, `gather` waits for a page of them. It has no claims, checkpoints, lease extensions,
retries or metrics; it does the same job as long as nothing fails. It runs on uvloop and is configured by the worker's
variables. With `--claim` it claims each broadcast and reads its room's settings first.
"""

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

import aioboto3
import uvloop
from aiobotocore.config import AioConfig

IN_FLIGHT = int(os.environ.get("GATECAST_MAX_IN_FLIGHT", "256"))
QUEUE_URL = os.environ["GATECAST_QUEUE_URL"]
TABLE = os.environ["GATECAST_TABLE"]
CLAIMS = "--claim" in sys.argv


async def main() -> None:
    session = aioboto3.Session(region_name=os.environ["AWS_REGION"])
    config = AioConfig(max_pool_connections=IN_FLIGHT)
    async with (
        session.client("sqs") as sqs,
        session.client("dynamodb") as dynamodb,
        session.client(
            "apigatewaymanagementapi", endpoint_url=os.environ["GATECAST_CONNECTIONS_ENDPOINT"], config=config
        ) as connections,
    ):
        semaphore = asyncio.Semaphore(IN_FLIGHT)

        async def post(connection_id: str, data: bytes) -> None:
            async with semaphore:
                with contextlib.suppress(connections.exceptions.GoneException):
                    await connections.post_to_connection(ConnectionId=connection_id, Data=data)

        async def claim(broadcast: dict[str, Any]) -> None:
            await dynamodb.put_item(
                TableName=TABLE,
                Item={"pk": {"S": f"broadcast#{broadcast['room']} {broadcast['id']}"}, "sk": {"S": "part#"}},
                ConditionExpression="attribute_not_exists(pk)",
            )
            settings = {"pk": {"S": f"settings#{broadcast['room']}"}, "sk": {"S": "room"}}
            await dynamodb.get_item(TableName=TABLE, Key=settings)

        async def deliver(message: dict[str, Any]) -> None:
            broadcast = json.loads(message["Body"])
            data = broadcast["data"].encode()
            if CLAIMS:
                await claim(broadcast)
            pages = dynamodb.get_paginator("query").paginate(
                TableName=TABLE,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": f"room#{broadcast['room']}#0"}},
            )
            async for page in pages:
                await asyncio.gather(*(post(item["sk"]["S"], data) for item in page["Items"]))
            await sqs.delete_message(QueueUrl=QUEUE_URL, ReceiptHandle=message["ReceiptHandle"])

        while True:
            received = await sqs.receive_message(QueueUrl=QUEUE_URL, MaxNumberOfMessages=10, WaitTimeSeconds=5)
            await asyncio.gather(*map(deliver, received.get("Messages", [])))


if __name__ == "__main__":
    uvloop.run(main())
