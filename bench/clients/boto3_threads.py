"""boto3's `post_to_connection`, with one thread per connection."""

import os
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

from bench.clients.section import Arguments, connection_ids, measured


def main() -> None:
    arguments = Arguments.parse()
    client = boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=arguments.url,
        region_name=os.environ["AWS_REGION"],
        config=Config(max_pool_connections=arguments.concurrency),
    )

    def post(connection_id: str) -> None:
        client.post_to_connection(ConnectionId=connection_id, Data=arguments.body)

    with ThreadPoolExecutor(arguments.concurrency) as pool:
        list(pool.map(post, connection_ids(arguments.warm_up)))
        members = connection_ids(arguments.posts)
        with measured(arguments.posts):
            list(pool.map(post, members))


if __name__ == "__main__":
    main()
