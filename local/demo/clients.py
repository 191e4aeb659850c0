"""The demo's WebSocket clients: all of them on one event loop, each reading for itself."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp

TRIES: Final = 8
ANSWER_SECONDS: Final = 60.0
_LONGEST_DELAY_SECONDS: Final = 2.0
_AGAIN: Final = HTTPStatus.TOO_MANY_REQUESTS
"""This status and those above it may be others the next time."""

OnBroadcast = Callable[[int, int], None]
"""Called with the client's number and the broadcast's, for every receipt."""


class DemoFailed(RuntimeError):  # noqa: N818 - it says what happened
    """The demo cannot go on; the message says why."""


class Client:
    """One client. What it receives is either a broadcast, `{"broadcast": n, …}`, or the answer to its one request."""

    def __init__(self, number: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.number = number
        self._socket = socket
        self._one_at_a_time = asyncio.Lock()
        self._answer: asyncio.Future[dict[str, Any]] | None = None

    async def read(self, on_broadcast: OnBroadcast) -> None:
        """Returns when the connection has ended."""
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            received = json.loads(message.data)
            if "broadcast" in received:
                on_broadcast(self.number, received["broadcast"])
            elif self._answer and not self._answer.done():
                self._answer.set_result(received)
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("the connection ended"))

    async def request(self, request: Mapping[str, Any]) -> None:
        """Returns when it is answered with ok; repeats what is unavailable. Raises DemoFailed."""
        async with self._one_at_a_time:
            answer: dict[str, Any] = {}
            for attempt in range(TRIES):
                answer = await self._ask(request)
                if answer.get("type") == "ok":
                    return
                if answer.get("code") != "unavailable":
                    break
                await asyncio.sleep(_delay(attempt))
        raise DemoFailed(f"{request['action']} of client {self.number} was answered with {answer}")

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._answer = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_str(json.dumps(request))
            return await asyncio.wait_for(self._answer, ANSWER_SECONDS)
        except (TimeoutError, ConnectionError) as error:
            raise DemoFailed(f"{request['action']} of client {self.number} got no answer") from error


class Clients:
    """All clients that have connected, by number. `on_end` is called with the number of one whose connection ended."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        readers: asyncio.TaskGroup,
        *,
        on_broadcast: OnBroadcast,
        on_end: Callable[[int], None],
    ) -> None:
        self.connected: dict[int, Client] = {}
        self._url = url
        self._session = session
        self._readers = readers
        self._on_broadcast = on_broadcast
        self._on_end = on_end
        self._reading: list[asyncio.Task[None]] = []

    async def connect(self, number: int) -> None:
        """Raises DemoFailed if the gateway refuses it again and again."""
        for attempt in range(TRIES):
            try:
                socket = await self._session.ws_connect(self._url, params={"client": number}, max_msg_size=0)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                status = error.status if isinstance(error, aiohttp.WSServerHandshakeError) else _AGAIN
                if attempt == TRIES - 1 or status < _AGAIN:
                    raise DemoFailed(f"client {number} could not connect: {error}") from error
                await asyncio.sleep(_delay(attempt))
            else:
                client = self.connected[number] = Client(number, socket)
                self._reading.append(self._readers.create_task(self._read(client)))
                return

    async def request(self, number: int, request: Mapping[str, Any]) -> None:
        """Raises DemoFailed if the client is not connected any more, or is refused."""
        if number not in self.connected:
            raise DemoFailed(f"client {number} has lost its connection")
        await self.connected[number].request(request)

    def cut_off(self) -> None:
        for reader in self._reading:
            reader.cancel()

    async def _read(self, client: Client) -> None:
        await client.read(self._on_broadcast)
        del self.connected[client.number]
        self._on_end(client.number)


@asynccontextmanager
async def clients_of(url: str, *, on_broadcast: OnBroadcast, on_end: Callable[[int], None]) -> AsyncIterator[Clients]:
    """Clients that stay connected for the length of the block, and are cut off at its end."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as readers:
        clients = Clients(url, session, readers, on_broadcast=on_broadcast, on_end=on_end)
        try:
            yield clients
        finally:
            clients.cut_off()


def _delay(attempt: int) -> float:
    return random.uniform(0, min(_LONGEST_DELAY_SECONDS, 0.1 * 2.0**attempt))
