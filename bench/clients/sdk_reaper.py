"""Removing connections with aioboto3's client: three calls per connection, eight connections at a time. On uvloop."""

import asyncio

import aioboto3
import uvloop
from aiobotocore.config import AioConfig

from bench.clients.section import Arguments, connection_ids, measured

_CONCURRENCY = 8


async def main() -> None:
    arguments = Arguments.parse()
    semaphore = asyncio.Semaphore(_CONCURRENCY)
    config = AioConfig(retries={"total_max_attempts": 1}, max_pool_connections=32)
    async with aioboto3.Session().client("dynamodb", endpoint_url=arguments.url, config=config) as client:

        async def reap(connection_id: str) -> None:
            pk = {"S": f"connection#{connection_id}"}
            async with semaphore:
                await client.delete_item(TableName="gatecast", Key={"pk": pk, "sk": {"S": "connection"}})
                joined = await client.query(
                    TableName="gatecast",
                    KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
                    ExpressionAttributeValues={":pk": pk, ":prefix": {"S": "room#"}},
                    ConsistentRead=True,
                )
                keys = [
                    key
                    for item in joined["Items"]
                    for key in (
                        {"pk": {"S": f"{item['sk']['S']}#{item['shard']['N']}"}, "sk": {"S": connection_id}},
                        {"pk": pk, "sk": item["sk"]},
                    )
                ]
                requests = [{"DeleteRequest": {"Key": key}} for key in keys]
                await client.batch_write_item(RequestItems={"gatecast": requests})

        await asyncio.gather(*map(reap, connection_ids(arguments.warm_up)))
        ids = connection_ids(arguments.posts)
        with measured(arguments.posts):
            await asyncio.gather(*map(reap, ids))


if __name__ == "__main__":
    uvloop.run(main())
