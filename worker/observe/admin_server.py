"""The HTTP server for operators: `/metrics`, `/livez`, `/readyz` and `/broadcasts`.

Rooms are named only if the server can be reached from the same machine alone: their names may be those of users.
Clients that are slow, silent or very many cannot keep `/livez` from responding: `connection_guard`.
"""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, cast

import msgspec
from aiohttp import web

from gatecast.addresses import is_loopback
from worker.observe.connection_guard import LIFETIME_SECONDS, MAX_CONNECTIONS, ConnectionGuard
from worker.observe.health import Health
from worker.observe.metrics import CONTENT_TYPE, Metrics
from worker.settings import ConfigurationError

_NOT_A_LOCAL_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EINVAL)


class PortInUse(OSError):
    """Another process listens on the port; the message names the variable."""


class AdminServer:
    """Serves its paths on `host`:`port` while it is open."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        health: Health,
        metrics: Metrics,
        lifetime_seconds: float = LIFETIME_SECONDS,
    ) -> None:
        self.in_progress: Callable[[], Mapping[str, object]] = lambda: {"total": 0, "broadcasts": []}
        """Returns the broadcasts in progress; the worker replaces this default when it starts."""
        self.dearest_rooms: Callable[[], Sequence[Mapping[str, object]]] = list
        """Returns the rooms that cost most; the worker replaces this default as well."""
        self._health = health
        self._metrics = metrics
        self._host = host
        self._port = port
        self._lifetime_seconds = lifetime_seconds
        self._guard: ConnectionGuard | None = None
        self._server: asyncio.Server | None = None
        app = web.Application(middlewares=[_close_after_response])
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/livez", self._serve_livez)
        app.router.add_get("/readyz", self._serve_readyz)
        app.router.add_get("/broadcasts", self._serve_broadcasts)
        self._runner = web.AppRunner(app, access_log=None)

    async def open(self) -> None:
        """Raises ConfigurationError if the host is not this machine's, PortInUse, or another OSError."""
        await self._runner.setup()
        self._guard = ConnectionGuard(
            cast(Callable[[], asyncio.Protocol], self._runner.server), lifetime_seconds=self._lifetime_seconds
        )
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._guard, self._host, self._port, backlog=MAX_CONNECTIONS)
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno in _NOT_A_LOCAL_ADDRESS:
                raise ConfigurationError(
                    f"GATECAST_HTTP_HOST is {self._host!r}: expected an address of this machine ({error.strerror})"
                ) from None
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(f"GATECAST_HTTP_PORT is {self._port}, which is in use on {self._host}") from None
            raise

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._guard is not None:
            self._guard.close()
        await self._runner.cleanup()

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _serve_livez(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _serve_readyz(self, _: web.Request) -> web.Response:
        if problems := self._health.problems:
            return _json(problems, status=503)
        return web.Response(text="ready\n")

    async def _serve_broadcasts(self, _: web.Request) -> web.Response:
        shown = dict(self.in_progress())
        if is_loopback(self._host) and (dearest := self.dearest_rooms()):
            shown["dearest_rooms"] = dearest
        return _json(shown)


@web.middleware
async def _close_after_response(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:  # an unknown path or method
        error.force_close()
        raise
    response.force_close()
    return response


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value) + b"\n", content_type="application/json")
