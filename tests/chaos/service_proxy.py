"""A proxy between a worker and ministack that injects faults into SQS and DynamoDB: per call, or all at once.

It runs in the test's event loop; the worker's AWS_ENDPOINT_URL_… variables point to it. `fault` is called with the
operation's name for every call.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Self

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from local.aws_environment import sdk_environment
from local.processes import LOOPBACK, free_port

_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class ServiceResponse:
    """A forged response: an error, garbage, or a false success."""

    status: int
    body: str

    @classmethod
    def error(cls, status: int, code: str) -> Self:
        return cls(status, msgspec.json.encode({"__type": f"com.amazonaws#{code}", "message": ""}).decode())


@dataclass(frozen=True)
class Cut:
    """The TCP connection is closed without a response: before the call is forwarded, or after it has taken effect."""

    when: Literal["before", "after"]


@dataclass(frozen=True)
class Hang:
    """No response for this many seconds, then the TCP connection is closed. The call has no effect."""

    seconds: float


ServiceFault = ServiceResponse | Cut | Hang


class ServiceProxy:
    """Use `serving`. `calls` counts the calls received, by operation."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self.fault: Callable[[str], ServiceFault | None] = lambda _operation: None
        self.calls: Counter[str] = Counter()
        self.faults = 0
        self._target = target
        self._session = session
        self._port = free_port()
        self._runner: web.AppRunner | None = None

    @classmethod
    @asynccontextmanager
    async def serving(cls, target: str) -> AsyncIterator[Self]:
        """Forward calls to `target`, the address of a ministack, for the duration of the block."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            proxy = cls(target, session)
            await proxy.start()
            try:
                yield proxy
            finally:
                await proxy.stop()

    def environment(self) -> Mapping[str, str]:
        """The environment variables that point an AWS SDK at this proxy."""
        return sdk_environment(f"http://{LOOPBACK}:{self._port}")

    async def start(self) -> None:
        """Listen, always on the same port."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port, reuse_address=True).start()

    async def stop(self) -> None:
        """Refuse new connections and abort those that are open."""
        runner, self._runner = self._runner, None
        if runner is not None:
            for connection in list(runner.server.connections if runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.calls[operation] += 1
        fault = self.fault(operation)
        self.faults += fault is not None
        body = await request.read()
        match fault:
            case ServiceResponse(status, text):
                return web.Response(status=status, text=text, content_type="application/x-amz-json-1.0")
            case Hang(seconds):
                await asyncio.sleep(seconds)
                return _cut(request)
            case Cut("before"):
                return _cut(request)
            case _:
                response = await self._forward(request, body)
                return _cut(request) if fault is not None else response

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        with contextlib.suppress(aiohttp.ClientError):
            async with self._session.request(
                request.method, URL(f"{self._target}{request.raw_path}", encoded=True), data=body, headers=headers
            ) as response:
                kept = {name: value for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP}
                return web.Response(status=response.status, headers=kept, body=await response.read())
        return _cut(request)


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
