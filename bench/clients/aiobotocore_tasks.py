"""aiobotocore's `post_to_connection` as commonly used: a task per post, bounded by a semaphore. On uvloop."""

import asyncio
import os

import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from bench.clients.section import Arguments, connection_ids, measured


async def main() -> None:
    arguments = Arguments.parse()
    semaphore = asyncio.Semaphore(arguments.concurrency)
    async with get_session().create_client(
        "apigatewaymanagementapi",
        endpoint_url=arguments.url,
        region_name=os.environ["AWS_REGION"],
        config=AioConfig(max_pool_connections=arguments.concurrency),
    ) as client:

        async def post(connection_id: str) -> None:
            async with semaphore:
                await client.post_to_connection(ConnectionId=connection_id, Data=arguments.body)

        await asyncio.gather(*map(post, connection_ids(arguments.warm_up)))
        members = connection_ids(arguments.posts)
        with measured(arguments.posts):
            await asyncio.gather(*map(post, members))


if __name__ == "__main__":
    uvloop.run(main())
