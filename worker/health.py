"""Is the worker alive, and is it ready? `/metrics`, `/livez` and `/readyz` over HTTP.

Ready means that the queue and the table have answered and that nothing is wrong that stops deliveries. Whatever
becomes wrong is logged once when it starts and once when it ends, not at every try.
"""

import json
from collections.abc import Callable

import structlog
from aiohttp import web

from worker.metrics import CONTENT_TYPE, Metrics

log = structlog.get_logger()


class Health:
    """What stops deliveries, by part. A part that has never reported counts as trouble."""

    def __init__(self, *parts: str) -> None:
        self._troubles: dict[str, str | None] = dict.fromkeys(parts, "has not answered yet")
        self._watched: dict[str, Callable[[], str | None]] = {}

    def watch(self, part: str, trouble: Callable[[], str | None]) -> None:
        """Ask this part whenever somebody asks, beside what parts report."""
        self._watched[part] = trouble
        self._troubles[part] = None

    def ok(self, part: str) -> None:
        if self._troubles.get(part) is not None:
            self._troubles[part] = None
            log.info("dependency.ok", part=part)

    def failed(self, part: str, reason: str) -> None:
        """It fails; the caller waits and tries again."""
        before = self._troubles.get(part)
        self._troubles[part] = reason
        if before != reason:
            log.warning("dependency.failing", part=part, reason=reason)

    def check(self) -> None:
        """Let the watched parts report. Called about once a second, so that their changes are logged."""
        for part, trouble in self._watched.items():
            reason = trouble()
            if reason is None:
                self.ok(part)
            else:
                self.failed(part, reason)

    @property
    def troubles(self) -> dict[str, str]:
        self.check()
        return {part: trouble for part, trouble in self._troubles.items() if trouble is not None}


class HealthServer:
    """Serves the three paths on `host`:`port` while it is open."""

    def __init__(self, host: str, port: int, *, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics
        self._host = host
        self._port = port
        app = web.Application()
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/livez", self._serve_livez)
        app.router.add_get("/readyz", self._serve_readyz)
        self._runner = web.AppRunner(app, access_log=None)

    async def open(self) -> None:
        """Raises OSError if the address cannot be bound."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _serve_livez(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _serve_readyz(self, _: web.Request) -> web.Response:
        troubles = self._health.troubles
        if troubles:
            return web.Response(status=503, text=json.dumps(troubles) + "\n", content_type="application/json")
        return web.Response(text="ready\n")
