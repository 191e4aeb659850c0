"""aiohttp with botocore's signer: the SDK's cost without its client. On uvloop."""

import asyncio
import os
from urllib.parse import quote

import aiohttp
import uvloop
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from bench.clients.section import Arguments, connection_ids, measured, tls


async def main() -> None:
    arguments = Arguments.parse()
    credentials = Credentials(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_SESSION_TOKEN"]
    )
    signer = SigV4Auth(credentials, "execute-api", os.environ["AWS_REGION"])
    semaphore = asyncio.Semaphore(arguments.concurrency)
    connector = aiohttp.TCPConnector(limit=arguments.concurrency, ssl=tls())
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post(connection_id: str) -> None:
            async with semaphore:
                url = f"{arguments.url}/@connections/{quote(connection_id, safe='')}"
                request = AWSRequest("POST", url, data=arguments.body)
                signer.add_auth(request)
                async with session.post(
                    URL(url, encoded=True), data=arguments.body, headers=dict(request.headers)
                ) as response:
                    response.raise_for_status()

        await asyncio.gather(*map(post, connection_ids(arguments.warm_up)))
        members = connection_ids(arguments.posts)
        with measured(arguments.posts):
            await asyncio.gather(*map(post, members))


if __name__ == "__main__":
    uvloop.run(main())
