"""boto3's `post_to_connection` from as many threads as there are connections."""

import os
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

from bench.clients.section import Arguments, connection_id, measured


def main() -> None:
    arguments = Arguments.parse()
    client = boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=arguments.url,
        region_name=os.environ["AWS_REGION"],
        config=Config(max_pool_connections=arguments.concurrency),
    )

    def post(number: int) -> None:
        client.post_to_connection(ConnectionId=connection_id(number), Data=arguments.body)

    with ThreadPoolExecutor(arguments.concurrency) as pool:
        list(pool.map(post, range(arguments.warm_up)))
        with measured(arguments.posts):
            list(pool.map(post, range(arguments.posts)))


if __name__ == "__main__":
    main()
