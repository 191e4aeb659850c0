"""A stand-in for `@connections` whose answers a test decides by connection id, and which remembers every request.

Unlike the emulator it knows no clients: a test writes members to the table and looks at what was posted to them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import unquote

from aiohttp import web

Answer = int | None
"""A status, or None for a connection that is cut without an answer."""


MADE_UP_BODY = "{}"


class ConnectionsEndpoint:
    """`answer(connection_id, nth_post)` decides; by default everything is delivered. Use `serving`.

    Posts to connections that the worker makes up are told by their body; they reach nobody and are answered `made_up`.
    Every connection can be closed; `methods` are those of all requests, whatever became of them.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Answer] = lambda _id, _nth: 200
        self.made_up = 410
        self.latency_seconds = 0.0
        self.posts: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.bodies: set[str] = set()
        self.closed: Counter[str] = Counter()
        self.methods: set[str] = set()
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def _serve(self, request: web.Request) -> web.Response:
        connection_id = unquote(request.raw_path.rpartition("/")[2])
        self.methods.add(request.method)
        match request.method:
            case "POST":
                return await self._post(request, connection_id)
            case "DELETE":
                self.closed[connection_id] += 1
                return web.Response(status=204)
            case _:
                return web.Response(status=405)

    async def _post(self, request: web.Request, connection_id: str) -> web.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            body = await request.text()
            if body == MADE_UP_BODY:
                return web.Response(status=self.made_up)
            self.posts[connection_id] += 1
            answer = self.answer(connection_id, self.posts[connection_id])
            if self.latency_seconds:
                await asyncio.sleep(self.latency_seconds)
        finally:
            self.in_flight -= 1
        if answer is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if answer == 200:
            self.delivered[connection_id] += 1
            self.bodies.add(body)
        return web.Response(status=answer)

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
