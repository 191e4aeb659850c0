"""What clients see when their tokens expire: real clients, the gateway, the authorizer, the routes, and a worker."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets

from gatecast import Broadcast, Publisher
from local.backend import Backend, prepare_backend
from local.ministack import Ministack
from local.route_table import AUTHORIZER
from local.stack import Stack
from routes import authorizer
from routes.tokens import LEEWAY_SECONDS
from tests.tokens import AUDIENCE, ISSUER, SECRET, hs256
from worker.pipeline.closer import CLOCK_DIFFERENCE_SECONDS

LIFETIME_SECONDS = 6


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=("sqs", "dynamodb", "secretsmanager")) as running:
        yield running


@asynccontextmanager
async def guarded(ministack: Ministack, name: str) -> AsyncIterator[Stack]:
    """A stack whose rooms have presence, and whose clients need a token."""
    backend = prepare_backend(ministack, table=name, queue=name)
    with backend.client("secretsmanager") as manager:
        arn = manager.create_secret(Name=name, SecretString=SECRET)["ARN"]
    settings = {
        "GATECAST_AUTHORIZER": "required",
        "GATECAST_TOKEN_ISSUER": ISSUER,
        "GATECAST_TOKEN_AUDIENCE": AUDIENCE,
        "GATECAST_TOKEN_SECRET_ARN": arn,
    }
    authorizer.clear_caches()
    async with Stack.running(
        on=backend, authorizer=AUTHORIZER, route_settings=settings, room_settings={"presence": 100}
    ) as stack:
        yield stack
    authorizer.clear_caches()


async def joined(stack: Stack, dialect: str, user: str, *, seconds: int) -> websockets.ClientConnection:
    """A client of this user in the lobby, whose token is accepted for this number of seconds."""
    token = hs256(sub=user, exp=int(time.time()) + seconds - LEEWAY_SECONDS)
    protocols: list[Any] = [dialect, token]
    client = await websockets.connect(stack.gateway.url, subprotocols=protocols)
    await client.send(json.dumps({"action": "join", "room": "lobby", "ref": 1}))
    while (response := json.loads(await client.recv())).get("ref") != 1:  # what has been announced may come first
        assert response["type"] == "presence"
    assert response["type"] == "ok"
    return client


async def everything(client: websockets.ClientConnection) -> list[str]:
    """What the client receives until its connection is closed."""
    return [str(text) async for text in client]


def publish(backend: Backend, name: str) -> None:
    with backend.client("sqs") as sqs:
        Publisher(sqs, backend.queues.url).publish(Broadcast(id=name, room="lobby", data=name))


async def test_clients_are_disconnected_when_their_token_has_expired_and_others_learn_of_it(
    ministack: Ministack, unique_name: str
) -> None:
    async with guarded(ministack, unique_name) as stack:
        observer = await joined(stack, "gatecast.v2", "olga", seconds=3_600)
        old = await joined(stack, "gatecast.v1", "ann", seconds=LIFETIME_SECONDS)
        new = await joined(stack, "gatecast.v2", "bob", seconds=LIFETIME_SECONDS)
        await asyncio.sleep(LIFETIME_SECONDS + CLOCK_DIFFERENCE_SECONDS + 1)

        publish(stack.backend, "late")

        received_by_old, received_by_new = await asyncio.gather(everything(old), everything(new))
        assert "late" not in received_by_old
        assert json.loads(received_by_new[-1]) == {"type": "closed", "code": "token_expired", "retry": True}
        assert not any('"late"' in text for text in received_by_new)

        again = await joined(stack, "gatecast.v2", "bob", seconds=3_600)
        departed: set[str] = set()
        joined_users: set[str] = set()
        messages: list[str] = []
        while "ann" not in departed:
            frame = json.loads(await asyncio.wait_for(observer.recv(), 60))
            departed |= set(frame.get("departed", ()))
            joined_users |= set(frame.get("joined", ()))
            messages += [each["data"] for each in frame.get("messages", ())]
        assert departed == {"ann"}, "bob has come back before the worker looked"
        assert {"ann", "bob"} <= joined_users
        assert messages == ["late"]
        for client in (observer, again):
            await client.close()
