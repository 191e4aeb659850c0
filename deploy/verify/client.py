"""A WebSocket client of the probe, which knows its own connection id."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from deploy.verify.observation import InvalidProbe
from deploy.verify.target import Stage, Target

OPEN_SECONDS: Final = 30.0
RESPONSE_SECONDS: Final = 30.0
"""API Gateway waits for a function for at most 29 s."""
_SMALL_BUFFER_BYTES: Final = 4_096


class Client:
    """One open connection. Messages that no call waits for are dropped."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.id = ""

    async def send(self, action: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"action": action, **fields}))

    async def receive(self, within_seconds: float) -> str | None:
        """The next message; None if none arrives in time. Raises ConnectionClosed."""
        try:
            async with asyncio.timeout(within_seconds):
                message = await self.connection.recv()
        except TimeoutError:
            return None
        return message if isinstance(message, str) else message.decode("latin-1")

    async def receive_all(self, within_seconds: float, *, at_most: int) -> list[str]:
        """Messages until none arrives for that time, the connection is closed, or there are `at_most`."""
        messages: list[str] = []
        with contextlib.suppress(websockets.ConnectionClosed):
            while len(messages) < at_most and (message := await self.receive(within_seconds)) is not None:
                messages.append(message)
        return messages

    async def echo(self, n: int = 0) -> dict[str, Any]:
        """What the function has seen of one message. Raises InvalidProbe if it returns anything else."""
        await self.send("echo", n=n)
        message = await self.receive(RESPONSE_SECONDS)
        seen = parse_echo(message or "")
        if seen is None:
            raise InvalidProbe(f"The route echo must return a connection id, and returned {message!r}")
        return seen

    async def closed(self, within_seconds: float) -> int | None:
        """The close code that the server sent; None if the connection is still open after that time."""
        try:
            async with asyncio.timeout(within_seconds):
                await self.connection.wait_closed()
        except TimeoutError:
            return None
        return self.connection.close_code


@asynccontextmanager
async def connected(
    target: Target, stage: Stage | None = None, *, query: str = "", subprotocols: Sequence[str] = (), reads: bool = True
) -> AsyncIterator[Client]:
    """A client, closed at the end. If it does not read, its buffers are small. Raises websockets' exceptions."""
    url = (stage or target.main).url
    options: dict[str, Any] = {} if reads else {"sock": await _small_socket(url), "max_queue": 1}
    if not reads and url.startswith("wss:"):
        options |= {"ssl": ssl.create_default_context(), "server_hostname": urlsplit(url).hostname}
    async with connect(
        f"{url}{query}",
        subprotocols=[Subprotocol(each) for each in subprotocols] or None,
        compression=None,
        ping_interval=None,
        open_timeout=OPEN_SECONDS,
        close_timeout=1,
        max_size=None,
        proxy=None,
        **options,
    ) as connection:
        yield Client(connection)


@asynccontextmanager
async def identified(target: Target, stage: Stage | None = None, *, reads: bool = True) -> AsyncIterator[Client]:
    """A client whose `id` is known, because the route echo has returned it."""
    async with connected(target, stage, reads=reads) as client:
        client.id = (await client.echo())["connection"]
        target.masker.add(client.id)
        yield client


def parse_echo(message: str) -> dict[str, Any] | None:
    """What the route echo returned; None if the message is anything else."""
    try:
        seen = json.loads(message)
    except ValueError:
        return None
    return seen if isinstance(seen, dict) and "n" in seen and isinstance(seen.get("connection"), str) else None


async def _small_socket(url: str) -> socket.socket:
    """A connected socket that receives little before the server has to wait."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    loop = asyncio.get_running_loop()
    family, kind, _, _, address = (await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM))[0]
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
