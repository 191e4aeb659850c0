"""A test double for `@connections`: the test decides each response by connection id, and every request is recorded.

Unlike the emulator it has no clients: a test writes members to the table and checks what was posted to them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import unquote

from aiohttp import web

Status = int | None
"""A status, or None for a connection that is closed without a response."""


FORBIDDEN = 403
GONE = 410
NO_CONTENT = 204
REFERENCE_BODY = "{}"
"""The body of reference posts."""


class ConnectionsEndpoint:
    """`respond(connection_id, nth_post)` gives the status of a post; by default every post is delivered. Use `serving`.

    Reference posts are recognised by their body; their response is `reference_status`. `close_status` gives the status
    of a request that closes a connection.
    `methods` holds the methods of all requests. `error` is the headers and the body of every 403.
    """

    def __init__(self) -> None:
        self.respond: Callable[[str, int], Status] = lambda _id, _nth: 200
        self.reference_status = 410
        self.close_status: Callable[[str], int] = lambda _id: 204
        self.error: tuple[Mapping[str, str], str] = ({}, "")
        self.latency_seconds = 0.0
        self.posts: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.bodies: set[str] = set()
        self.closed: Counter[str] = Counter()
        self.methods: set[str] = set()
        self.in_flight = 0
        self.max_in_flight = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def _serve(self, request: web.Request) -> web.Response:
        connection_id = unquote(request.raw_path.rpartition("/")[2])
        self.methods.add(request.method)
        match request.method:
            case "POST":
                return await self._post(request, connection_id)
            case "DELETE":
                status = self.close_status(connection_id)
                if status in (GONE, NO_CONTENT):
                    self.closed[connection_id] += 1
                return web.Response(status=status)
            case _:
                return web.Response(status=405)

    async def _post(self, request: web.Request, connection_id: str) -> web.Response:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            body = await request.text()
            if body == REFERENCE_BODY:
                return self._response(self.reference_status)
            self.posts[connection_id] += 1
            status = self.respond(connection_id, self.posts[connection_id])
            if self.latency_seconds:
                await asyncio.sleep(self.latency_seconds)
        finally:
            self.in_flight -= 1
        if status is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if status == 200:
            self.delivered[connection_id] += 1
            self.bodies.add(body)
        return self._response(status)

    def _response(self, status: int) -> web.Response:
        headers, body = self.error if status == FORBIDDEN else ({}, "")
        return web.Response(status=status, headers=headers, body=body.encode())

    @classmethod
    @asynccontextmanager
    async def serving(cls) -> AsyncIterator[Self]:
        endpoint = cls()
        app = web.Application(client_max_size=256 * 1024)
        app.router.add_route("*", "/live/@connections/{connection_id}", endpoint._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        endpoint.url = f"http://{host}:{port}/live"
        try:
            yield endpoint
        finally:
            await runner.cleanup()
