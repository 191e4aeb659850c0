"""The whole system on one machine: ministack, the gateway and the HTTP API with their routes in this process, workers.

    async with Stack.running(workers=2) as stack:
        stack.gateway.url  # for WebSocket clients
        stack.http.url  # for requests to the HTTP API

While it runs, this process's environment is the routes' environment. Workers are separate processes, which tests stop,
kill and replace. Leaving the block stops the workers, then the gateway, then ministack.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.faults import Faults
from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from local.backend import Backend, backend, environment
from local.http_api import HttpApi
from local.page import pages
from local.resources import write_room_settings
from local.route_table import ROUTES
from local.worker_process import WorkerProcess
from routes import dependencies


class Stack:
    """A running stack. `workers` are all workers that were started, in order; logs are in `directory`."""

    def __init__(self, backend: Backend, gateway: Gateway, http: HttpApi, directory: Path) -> None:
        self.backend = backend
        self.gateway = gateway
        self.http = http
        self.directory = directory
        self.workers: list[WorkerProcess] = []

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        *,
        workers: int = 1,
        worker_settings: Mapping[str, str] | None = None,
        route_settings: Mapping[str, str] | None = None,
        authorizer: Authorizer | None = None,
        fifo: bool = False,
        port: int = 0,
        limits: Limits | None = None,
        faults: Faults | None = None,
        seed: int | None = None,
        on: Backend | None = None,
        allowed_origins: Collection[str] = (),
        room_settings: Mapping[str, int] | None = None,
    ) -> AsyncIterator[Self]:
        """Runs the stack for the length of the block; its workers are ready when the block begins.

        `route_settings` are added to the routes' usual variables, which accept every client that `authorizer` admits.
        If there are `allowed_origins`, only their web pages may connect. `room_settings`, such as `history_seconds`,
        are set for all rooms before anything reads them.
        `on` is a running backend, which keeps running afterwards; by default a new one is started.
        """
        with ExitStack() as cleanup:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gatecast-")))
            cleanup.enter_context(environment({}))  # excludes the user's own AWS configuration
            base = on or cleanup.enter_context(backend(fifo=fifo, log=directory / "ministack.log"))
            cleanup.enter_context(environment({**base.environment(), **(route_settings or {})}))
            if room_settings:
                with base.client("dynamodb") as dynamodb:
                    write_room_settings(dynamodb, base.table, room_settings)
            cleanup.callback(dependencies.clear_caches)
            dependencies.clear_caches()
            http = HttpApi(authorizer.handler if authorizer and callable(authorizer.handler) else None)
            async with (
                http,
                Gateway(
                    ROUTES,
                    port=port,
                    limits=limits,
                    faults=faults,
                    authorizer=authorizer,
                    seed=seed,
                    allowed_origins=allowed_origins,
                    pages=pages(),
                ) as gateway,
            ):
                os.environ["GATECAST_CONNECTIONS_ENDPOINT"] = gateway.endpoint  # until the end of `environment`
                stack = cls(base, gateway, http, directory)
                try:
                    for _ in range(workers):
                        stack.start_worker(worker_settings)
                    await stack.ready()
                    yield stack
                finally:
                    await stack.stop_workers()

    def start_worker(self, settings: Mapping[str, str] | None = None) -> WorkerProcess:
        """Starts another worker, with these variables added to its usual ones, and returns immediately."""
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = WorkerProcess.start(self.backend, self.gateway.endpoint, log=log, settings=settings)
        self.workers.append(worker)
        return worker

    async def ready(self) -> None:
        """Returns when every running worker is ready. Raises ProcessFailed if one ends first."""
        running = [worker for worker in self.workers if worker.process.exit_code is None]
        await asyncio.gather(*(asyncio.to_thread(worker.wait_until_ready) for worker in running))

    async def stop_workers(self, grace_seconds: float = 30.0) -> list[int]:
        """Sends SIGTERM to all workers, and SIGKILL after the grace period. Returns the exit codes of `workers`."""
        for worker in self.workers:
            worker.process.resume()
            worker.process.terminate()
        stops = (asyncio.to_thread(worker.process.stop, grace_seconds) for worker in self.workers)
        return await asyncio.gather(*stops)
