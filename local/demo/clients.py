"""The demo's WebSocket clients: all on one event loop, with one reading task each."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from yarl import URL

MAX_ATTEMPTS: Final = 8
RESPONSE_TIMEOUT_SECONDS: Final = 60.0
_MAX_DELAY_SECONDS: Final = 2.0
_MIN_RETRYABLE_STATUS: Final = HTTPStatus.TOO_MANY_REQUESTS
"""A connect that gets this status or a higher one is retried."""

OnBroadcast = Callable[[int, int], None]
"""Called with the client's and the broadcast's number for every receipt."""
OnReference = Callable[[int, str], None]
"""Called with the client's number and the URL of the payload for every message that refers to one."""


class DemoFailed(RuntimeError):
    """The demo cannot continue; the message says why."""


class Client:
    """One client. It receives broadcasts, `{"broadcast": n, …}`, and the response to its only outstanding request."""

    def __init__(self, number: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.number = number
        self._socket = socket
        self._request_lock = asyncio.Lock()
        self._response: asyncio.Future[dict[str, Any]] | None = None

    async def read(self, on_broadcast: OnBroadcast, on_reference: OnReference) -> None:
        """Returns when the connection has ended."""
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            received = json.loads(message.data)
            if "broadcast" in received:
                on_broadcast(self.number, received["broadcast"])
            elif received.get("type") == "reference":
                on_reference(self.number, received["url"])
            elif self._response and not self._response.done():
                self._response.set_result(received)
        if self._response and not self._response.done():
            self._response.set_exception(ConnectionError("the connection ended"))

    async def request(self, request: Mapping[str, Any]) -> None:
        """Returns when the response is ok; retries if it is unavailable. Raises DemoFailed."""
        async with self._request_lock:
            response: dict[str, Any] = {}
            for attempt in range(MAX_ATTEMPTS):
                response = await self._send(request)
                if response.get("type") == "ok":
                    return
                if response.get("code") != "unavailable":
                    break
                await asyncio.sleep(_delay(attempt))
        raise DemoFailed(f"{request['action']} of client {self.number} got the response {response}")

    async def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._response = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_str(json.dumps(request))
            return await asyncio.wait_for(self._response, RESPONSE_TIMEOUT_SECONDS)
        except (TimeoutError, ConnectionError) as error:
            raise DemoFailed(f"{request['action']} of client {self.number} got no response") from error


class Clients:
    """All connected clients, by number. `on_end` is called with a client's number when its connection has ended."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        readers: asyncio.TaskGroup,
        *,
        on_broadcast: OnBroadcast,
        on_reference: OnReference,
        on_end: Callable[[int], None],
    ) -> None:
        self.connected: dict[int, Client] = {}
        self._url = url
        self._session = session
        self._readers = readers
        self._on_broadcast = on_broadcast
        self._on_reference = on_reference
        self._on_end = on_end
        self._reading: list[asyncio.Task[None]] = []

    async def connect(self, number: int) -> None:
        """Connects a client, with retries. Raises DemoFailed if the gateway rejects every attempt."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                socket = await self._session.ws_connect(self._url, params={"client": number}, max_msg_size=0)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                status = error.status if isinstance(error, aiohttp.WSServerHandshakeError) else _MIN_RETRYABLE_STATUS
                if attempt == MAX_ATTEMPTS - 1 or status < _MIN_RETRYABLE_STATUS:
                    raise DemoFailed(f"client {number} could not connect: {error}") from error
                await asyncio.sleep(_delay(attempt))
            else:
                client = self.connected[number] = Client(number, socket)
                self._reading.append(self._readers.create_task(self._read(client)))
                return

    async def request(self, number: int, request: Mapping[str, Any]) -> None:
        """Raises DemoFailed if the client is no longer connected, or its request is rejected."""
        if number not in self.connected:
            raise DemoFailed(f"client {number} has lost its connection")
        await self.connected[number].request(request)

    async def fetch(self, url: str) -> str:
        """The text at this URL. Raises DemoFailed."""
        async with self._session.get(URL(url, encoded=True)) as response:
            if response.status != HTTPStatus.OK:
                raise DemoFailed(f"the URL of a large payload got the status {response.status}")
            return await response.text()

    def cancel_readers(self) -> None:
        for reader in self._reading:
            reader.cancel()

    async def _read(self, client: Client) -> None:
        await client.read(self._on_broadcast, self._on_reference)
        del self.connected[client.number]
        self._on_end(client.number)


@asynccontextmanager
async def open_clients(
    url: str, *, on_broadcast: OnBroadcast, on_reference: OnReference, on_end: Callable[[int], None]
) -> AsyncIterator[Clients]:
    """Clients that stay connected for the length of the block."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as readers:
        clients = Clients(url, session, readers, on_broadcast=on_broadcast, on_reference=on_reference, on_end=on_end)
        try:
            yield clients
        finally:
            clients.cancel_readers()


def _delay(attempt: int) -> float:
    return random.uniform(0, min(_MAX_DELAY_SECONDS, 0.1 * 2.0**attempt))
