"""The embedded stack with the authorizer: clients need a token of `tests.tokens`."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import websockets

from gatecast.kicks import LEEWAY_SECONDS
from local.backend import prepare_backend
from local.ministack import Ministack
from local.route_table import AUTHORIZER
from local.stack import Stack
from routes import authorizer
from tests.tokens import AUDIENCE, ISSUER, SECRET, hs256


@asynccontextmanager
async def guarded(ministack: Ministack, name: str, *, fifo: bool = False) -> AsyncIterator[Stack]:
    """A stack whose rooms have presence, and whose clients need a token. `ministack` has Secrets Manager."""
    backend = prepare_backend(ministack, table=name, queue=name, fifo=fifo)
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
