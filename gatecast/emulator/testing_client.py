"""A connected client of `WebSocketApi`, for tests that are not asynchronous."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import aiohttp

from gatecast.emulator.server import Gateway

TIMEOUT_SECONDS: Final = 5.0
_NO_STATUS: Final = 1005
_T = TypeVar("_T")


class ConnectionRejected(Exception):
    """The upgrade was rejected, with this HTTP `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upgrade was rejected with status {status}")
        self.status = status


class Disconnected(Exception):
    """The connection has ended, with this `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the connection has ended with code {code}")
        self.code = code


class Client:
    """One connection. `id` is its connection id, `subprotocol` the one that `$connect` chose.

    `run` runs a coroutine on the emulator's event loop.
    """

    def __init__(
        self,
        gateway: Gateway,
        websocket: aiohttp.ClientWebSocketResponse,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
    ) -> None:
        self._gateway = gateway
        self._websocket = websocket
        self._run = run
        self._received: list[str] = []
        self._read = 0
        self._code: int | None = None
        self._changed = asyncio.Condition()
        self._pongs = 0
        self.reader = asyncio.ensure_future(self._keep_reading())
        address = websocket.get_extra_info("sockname")
        self.id = next(
            (each.id for each in gateway.connections.values() if each.transport.get_extra_info("peername") == address),
            "",
        )
        self.subprotocol = websocket.protocol

    @property
    def received(self) -> list[str]:
        """All messages that have arrived, in their order, those included that `receive` has returned."""
        return list(self._received)

    @property
    def close_code(self) -> int | None:
        """The code with which the connection has ended (1006: without a closing handshake); None while it is open."""
        return self._code

    def send(self, message: str | bytes | dict[str, Any]) -> None:
        """Sends a message: text, a dict as JSON, or bytes as a binary frame. Raises Disconnected.

        It does not wait until the message has been handled: `WebSocketApi.settle` does.
        """
        self._run(self._send(message))

    def receive(self, *, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
        """The next message that was not returned before. Raises Disconnected or TimeoutError."""
        message: str = self._run(self._receive(timeout_seconds))
        return message

    def receive_json(self, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """The next message, decoded."""
        return json.loads(self.receive(timeout_seconds=timeout_seconds))

    def wait_closed(self, *, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Waits until the connection has ended, and returns its code. Raises TimeoutError."""
        code: int = self._run(self._wait(lambda: self._code, timeout_seconds, "the connection is still open"))
        return code

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection, and returns once that is confirmed."""
        self._run(self._close(code, reason))

    def drop(self) -> None:
        """Loses the connection, as a phone loses its network: `$disconnect` is not invoked, and posts get a 410."""
        self._run(self._drop())
        self.wait_closed()

    def stop_reading(self) -> None:
        """Reads no more: posts fill the connection's buffer, and then get a 429."""
        self._gateway.connections[self.id].hold()

    def read_again(self) -> None:
        """Reads what has been waiting, and everything after it."""
        self._run(self._gateway.connections[self.id].release())

    async def reach(self) -> None:
        """Returns when the emulator has read everything sent before, and everything that it sent before has arrived."""
        before = self._pongs
        try:
            await self._websocket.ping()
        except ConnectionError:
            return
        await self._wait(
            lambda: self._pongs > before or self._code is not None, TIMEOUT_SECONDS, "no response to a ping"
        )

    async def _send(self, message: str | bytes | dict[str, Any]) -> None:
        try:
            if isinstance(message, bytes):
                await self._websocket.send_bytes(message)
            else:
                await self._websocket.send_str(message if isinstance(message, str) else json.dumps(message))
        except ConnectionError:
            code = await self._wait(lambda: self._code, TIMEOUT_SECONDS, "the connection is still open")
            raise Disconnected(code) from None

    async def _receive(self, timeout_seconds: float) -> str:
        waiting = f"no message within {timeout_seconds} s, {self._read} have been received before"
        await self._wait(lambda: self._read < len(self._received) or self._code is not None, timeout_seconds, waiting)
        if self._read == len(self._received):
            raise Disconnected(self._code or _NO_STATUS)
        self._read += 1
        return self._received[self._read - 1]

    async def _close(self, code: int, reason: str) -> None:
        await self._websocket.close(code=code, message=reason.encode())
        await self._end()

    async def _end(self) -> None:
        self._code = int(self._websocket.close_code or _NO_STATUS)
        async with self._changed:
            self._changed.notify_all()

    async def _drop(self) -> None:
        self._gateway.drop(self.id)

    async def _wait(self, condition: Callable[[], _T | None], timeout_seconds: float, problem: str) -> _T:
        """The condition's value as soon as it is true."""
        try:
            async with asyncio.timeout(timeout_seconds), self._changed:
                while not (value := condition()):
                    await self._changed.wait()
                return value
        except TimeoutError:
            raise TimeoutError(problem) from None

    async def _keep_reading(self) -> None:
        while self._code is None:
            message = await self._websocket.receive()
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    self._received.append(message.data)
                case aiohttp.WSMsgType.PING:
                    await self._websocket.pong(message.data)
                case aiohttp.WSMsgType.PONG:
                    self._pongs += 1
                case aiohttp.WSMsgType.BINARY:
                    pass  # API Gateway sends none
                case aiohttp.WSMsgType.CLOSING:
                    return  # `close` is waiting for the code
                case _:
                    await self._end()
            async with self._changed:
                self._changed.notify_all()
