"""An emulator of one API Gateway WebSocket API: a test double for programs that use one.

    async with Gateway({"$connect": Route(connect), "join": Route(join, response=True)}) as gateway:
        gateway.url       # ws://127.0.0.1:…/local, for clients
        gateway.endpoint  # http://127.0.0.1:…/local, for the SDK's apigatewaymanagementapi client

It emulates AWS's documented or observed behaviour, as described in the module docstrings of `aiohttp_adapters`,
`clients`, `routing`, `management`, `sigv4` and `limits`. Not emulated: TLS, compression (AWS is not known to negotiate
it), API keys, models, mapping templates (a `Mock` has a fixed one); clients' connects and messages are not throttled.
It listens on 127.0.0.1 unless `host` is another address: any program that can connect to it may use its control
interface.
"""

import random
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Self

from aiohttp import web

from local.gateway.aiohttp_adapters import FrameGuardServer
from local.gateway.authorizer import Authorizer
from local.gateway.client import Client
from local.gateway.clients import Clients
from local.gateway.control import PREFIX, Control
from local.gateway.counters import Counters
from local.gateway.defaults import CREDENTIALS, LOOPBACK, REGION
from local.gateway.events import Api
from local.gateway.faults import Faults
from local.gateway.frames import FrameScanner
from local.gateway.integration import Invoker, Route
from local.gateway.limits import Limits
from local.gateway.management import Management, Post
from local.gateway.pages import Page, serve
from local.gateway.routing import Router
from local.gateway.sigv4 import Credentials, Verifier

_ACCOUNT_ID: Final = "000000000000"
_API_ID: Final = "local"
_BACKLOG: Final = 4_096
_SHUTDOWN_SECONDS: Final = 2.0


class Gateway:
    """One WebSocket API with one stage.

    `routes` maps route keys to routes; handlers are called as `handler(event, context)` on at most `threads` threads.
    `credentials` may sign `@connections` calls. `on_post` is called on the event loop for every delivered post. `seed`
    makes connection ids, and therefore seeded faults, equal in every run.
    If there are `allowed_origins`, WebSocket clients with any other Origin are rejected; clients without an Origin are
    not web pages, and are accepted. `control_hosts` are allowed `Host` names of the control interface besides those of
    the loopback address. With a `base_path` the API is behind a custom domain: clients connect to `/{base_path}`, and
    `@connections` is below it, without the stage; an empty one is a domain without base path. `pages` are served at the
    gateway's own address, by path.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        stage: str = "local",
        base_path: str | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        region: str = REGION,
        credentials: Iterable[Credentials] = (CREDENTIALS,),
        limits: Limits | None = None,
        faults: Faults | None = None,
        authorizer: Authorizer | None = None,
        threads: int = 32,
        seed: int | None = None,
        on_post: Callable[[Post], None] | None = None,
        allowed_origins: Collection[str] = (),
        control_hosts: Collection[str] = (),
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        self.counters: Final = Counters()
        self.faults: Final = faults or Faults()
        self.credentials: Final = {each.access_key_id: each for each in credentials}
        self._path = "/".join(["", *filter(None, [stage if base_path is None else base_path])])
        self._host = host
        self._port = port
        self._pages = pages or {}
        self._hosts = control_hosts
        self._limits = limits = limits or Limits()
        self._runner: web.ServerRunner | None = None
        rng = random.Random(seed)
        self._invoker = Invoker(
            threads=threads,
            timeout_seconds=limits.integration_timeout_seconds,
            region=region,
            account_id=_ACCOUNT_ID,
        )
        router = Router(
            Api(stage=stage, api_id=_API_ID, region=region, account_id=_ACCOUNT_ID),
            routes,
            invoker=self._invoker,
            counters=self.counters,
            rng=rng,
            now_ms=_now_ms,
            authorizer=authorizer,
        )
        self._clients = Clients(
            router,
            limits=limits,
            counters=self.counters,
            faults=self.faults,
            now_ms=_now_ms,
            allowed_origins=allowed_origins,
        )
        self._management = Management(
            self._path,
            self._clients,
            Verifier(self.credentials, region=region),
            limits=limits,
            bucket=limits.token_bucket(time.monotonic),
            counters=self.counters,
            faults=self.faults,
            rng=rng,
            on_post=on_post,
        )
        self._control = Control(self._clients, self.counters, self.faults, hosts=control_hosts)

    @property
    def port(self) -> int:
        """The port on which it listens, once started."""
        return self._port

    @property
    def url(self) -> str:
        """The URL for WebSocket clients."""
        return f"ws://{self._host}:{self._port}{self._path}"

    @property
    def endpoint(self) -> str:
        """The endpoint of the management API, without `/@connections`."""
        return f"http://{self._host}:{self._port}{self._path}"

    @property
    def connections(self) -> Mapping[str, Client]:
        """The open connections' clients, by connection id."""
        return self._clients.open

    def drop(self, connection_id: str) -> None:
        """Aborts a client's connection without `$disconnect`. Raises KeyError if it is not connected."""
        self._clients.drop(connection_id)

    async def start(self) -> None:
        """Returns when clients can connect. Raises OSError if the port is taken."""
        listener = socket.create_server((self._host, self._port), backlog=_BACKLOG)
        self._port = listener.getsockname()[1]
        limits = self._limits
        server = FrameGuardServer(
            self._handle,
            new_scanner=lambda: FrameScanner(frame_bytes=limits.frame_bytes, message_bytes=limits.message_bytes),
            access_log=None,
            keepalive_timeout=3_600.0,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=_BACKLOG).start()

    async def stop(self) -> None:
        """Aborts all connections without invoking routes, and returns once no handler is running."""
        for connection_id in list(self._clients.open):
            self._clients.drop(connection_id)
        if self._runner:
            await self._runner.cleanup()
        self._invoker.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if "Upgrade" not in request.headers and (page := serve(request, self._pages, hosts=self._hosts)):
            return page
        if path.rstrip("/") == self._path:
            return await self._clients.accept(request)
        if path.startswith(PREFIX):
            return await self._control.handle(request)
        return await self._management.handle(request)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
