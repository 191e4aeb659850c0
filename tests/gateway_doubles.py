"""Shared by the gateway's tests: routes that record their events, and SDK clients of the management API."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import boto3
import websockets
from botocore.config import Config

from gatecast.emulator.integration import Route
from gatecast.emulator.server import Gateway
from local.aws_environment import CREDENTIALS, REGION

Event = dict[str, Any]


class Recorder:
    """Routes that record their events and return `responses`, by route key, or else the message's body."""

    def __init__(self, **responses: Mapping[str, Any]) -> None:
        self.events: list[Event] = []
        self.contexts: list[Any] = []
        self.responses: dict[str, Mapping[str, Any]] = dict(responses)
        self._changed = threading.Condition()

    def routes(self, *keys: str, response: bool = True) -> dict[str, Route]:
        """Routes with these keys, and `$connect` and `$disconnect`. `response` gives them a route response."""
        always = {"$connect": Route(self), "$disconnect": Route(self)}
        return {**always, **{key: Route(self, response) for key in keys}}

    def __call__(self, event: Event, context: Any) -> Mapping[str, Any]:
        with self._changed:
            self.events.append(event)
            self.contexts.append(context)
            self._changed.notify_all()
        key = event["requestContext"]["routeKey"]
        return self.responses.get(key, {"statusCode": 200, "body": event.get("body")})

    def events_for(self, key: str) -> list[Event]:
        return [event for event in self.events if event["requestContext"]["routeKey"] == key]

    async def wait_for(self, key: str, count: int = 1) -> list[Event]:
        """Waits for `count` events of a route and returns them all."""

        def wait() -> list[Event]:
            with self._changed:
                self._changed.wait_for(lambda: len(self.events_for(key)) >= count)
                return self.events_for(key)

        return await asyncio.to_thread(wait)


@contextmanager
def management_client(gateway: Gateway, *, secret: str = CREDENTIALS.secret_access_key, **kwargs: Any) -> Iterator[Any]:
    """A boto3 client of the gateway's `@connections`, without retries."""
    client = boto3.session.Session().client(
        "apigatewaymanagementapi",
        endpoint_url=gateway.endpoint,
        region_name=kwargs.pop("region", REGION),
        aws_access_key_id=kwargs.pop("key_id", CREDENTIALS.access_key_id),
        aws_secret_access_key=secret,
        config=Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=5, max_pool_connections=32),
        **kwargs,
    )
    try:
        yield client
    finally:
        client.close()


async def call(method: Callable[..., Any], **kwargs: Any) -> Any:
    """An SDK call on a thread, so that the gateway in this event loop can respond."""
    return await asyncio.to_thread(method, **kwargs)


@asynccontextmanager
async def connected(gateway: Gateway, **kwargs: Any) -> AsyncIterator[tuple[websockets.ClientConnection, str]]:
    """A client and its connection id."""
    before = set(gateway.connections)
    async with websockets.connect(gateway.url, **kwargs) as client:
        (connection_id,) = set(gateway.connections) - before
        yield client, connection_id


async def send_request(client: websockets.ClientConnection, **fields: Any) -> Any:
    """Sends a JSON message and returns the JSON response."""
    await client.send(json.dumps(fields))
    return json.loads(await client.recv())


async def close_code(client: websockets.ClientConnection) -> int | None:
    """Waits until the server closes the connection and returns its close code."""
    await client.wait_closed()
    return client.close_code


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds; bounded by the test's timeout."""
    while not condition():  # noqa: ASYNC110 - tests wait for state that has no event
        await asyncio.sleep(0.005)
