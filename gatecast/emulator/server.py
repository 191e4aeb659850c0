"""An emulator of one API Gateway WebSocket API: a test double for programs that use one.

    async with Gateway({"$connect": Route(connect), "join": Route(join, response=True)}) as gateway:
        gateway.url       # ws://127.0.0.1:…/local, for clients
        gateway.endpoint  # http://127.0.0.1:…/local, for the SDK's apigatewaymanagementapi client

It emulates AWS's documented or observed behaviour, as described in the module docstrings of `aiohttp_adapters`,
`clients`, `routing`, `selection`, `management`, `sigv4` and `limits`. Not emulated: TLS, compression (AWS is not known
to negotiate it), API keys, models, mapping templates (a `Mock` has a fixed one); clients' connects and messages are not
throttled.
It listens on 127.0.0.1 unless `host` is another address: any program that can connect to it may use its control
interface.
"""

import logging
import random
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Final, Self, cast

from aiohttp import web

from gatecast.emulator.aiohttp_adapters import FrameGuardServer
from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.browser_requests import host_rejection
from gatecast.emulator.client import Client
from gatecast.emulator.clients import Clients
from gatecast.emulator.clock import Clock
from gatecast.emulator.control import PREFIX, Control
from gatecast.emulator.counters import Counters
from gatecast.emulator.defaults import ACCOUNT_ID, CREDENTIALS, LOOPBACK, REGION
from gatecast.emulator.events import Api
from gatecast.emulator.faults import Faults
from gatecast.emulator.frames import FrameScanner
from gatecast.emulator.integration import Invoker, Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.management import Management, Post
from gatecast.emulator.pages import Page, serve
from gatecast.emulator.remote import Remote
from gatecast.emulator.routing import Router
from gatecast.emulator.selection import ACTION, Selection
from gatecast.emulator.sigv4 import Credentials, Verifier

_log = logging.getLogger(__name__)
_API_ID: Final = "local"
_UNKNOWN: Final = Credentials("local", "local")
"""Signs invocations where no credentials are configured."""
_BACKLOG: Final = 4_096
_SHUTDOWN_SECONDS: Final = 2.0


class Gateway:
    """One WebSocket API with one stage.

    `routes` maps route keys to routes, which `selection` selects by a message; handlers are called as
    `handler(event, context)` on at most `threads` threads.
    `credentials` may sign `@connections` calls; with None, any well-formed signature is accepted. `on_post` is called
    on the event loop for every delivered post. `seed` makes connection ids, and therefore seeded faults, equal in every
    run.
    If there are `allowed_origins`, WebSocket clients with any other Origin are rejected; clients without an Origin are
    not web pages, and are accepted. One that ends in `:*` may have any port. `allowed_hosts` are names that requests
    may have as their `Host`, without a port, besides `localhost`, those of the loopback address, and `host`: handlers
    get it as the `domainName` of the API. All others are rejected (403).
    With a `base_path` the API is behind a custom domain: clients connect to `/{base_path}`, and `@connections` is below
    it, without the stage; an empty one is a domain without base path. `pages` are served at the gateway's own address,
    by path. `clock` can be advanced.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        selection: Selection = ACTION,
        stage: str = "local",
        base_path: str | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        region: str = REGION,
        credentials: Iterable[Credentials] | None = (CREDENTIALS,),
        limits: Limits | None = None,
        faults: Faults | None = None,
        authorizer: Authorizer | None = None,
        threads: int = 32,
        seed: int | None = None,
        on_post: Callable[[Post], None] | None = None,
        allowed_origins: Collection[str] = (),
        allowed_hosts: Collection[str] = (),
        pages: Mapping[str, Page] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.counters: Final = Counters()
        self.faults: Final = faults or Faults()
        self.clock: Final = clock or Clock()
        self.credentials: Final = {each.access_key_id: each for each in credentials or ()}
        self._path = "/".join(["", *filter(None, [stage if base_path is None else base_path])])
        self._host = host
        self._port = port
        self._pages = pages or {}
        self._allowed_hosts = frozenset(each.lower() for each in (host, *allowed_hosts))
        self._limits = limits = limits or Limits()
        self._listener: socket.socket | None = None
        self._runner: web.ServerRunner | None = None
        rng = random.Random(seed)
        self._invoker = Invoker(
            threads=threads,
            timeout_seconds=limits.integration_timeout_seconds,
            region=region,
            account_id=ACCOUNT_ID,
            clock=self.clock,
            remote=Remote(region=region, credentials=next(iter(self.credentials.values()), _UNKNOWN)),
        )
        router = Router(
            Api(stage=stage, api_id=_API_ID, region=region, account_id=ACCOUNT_ID),
            routes,
            selection=selection,
            invoker=self._invoker,
            counters=self.counters,
            rng=rng,
            clock=self.clock,
            authorizer=authorizer,
        )
        self._clients = Clients(
            router,
            limits=limits,
            counters=self.counters,
            faults=self.faults,
            clock=self.clock,
            allowed_origins=allowed_origins,
        )
        self._management = Management(
            self._path,
            self._clients,
            Verifier(None if credentials is None else self.credentials, region=region),
            limits=limits,
            bucket=limits.token_bucket(self.clock.monotonic),
            counters=self.counters,
            faults=self.faults,
            clock=self.clock,
            rng=rng,
            on_post=on_post,
        )
        self._control = Control(self._clients, self.counters, self.faults)

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

    @property
    def busy(self) -> bool:
        """Whether a client's message is being handled, or a connection is ending."""
        return self._clients.busy

    def drop(self, connection_id: str) -> None:
        """Aborts a client's connection without `$disconnect`. Raises KeyError if it is not connected."""
        self._clients.drop(connection_id)

    def bind(self) -> None:
        """Takes the port, so that the addresses are known; clients wait until `start`. Raises OSError."""
        self._listener = socket.create_server((self._host, self._port), backlog=_BACKLOG)
        self._port = self._listener.getsockname()[1]

    async def start(self) -> None:
        """Returns when clients can connect. Raises OSError if the port is taken."""
        if self._listener is None:
            self.bind()
        limits = self._limits
        server = FrameGuardServer(
            self._handle,
            new_scanner=lambda: FrameScanner(frame_bytes=limits.frame_bytes, message_bytes=limits.message_bytes),
            access_log=None,
            keepalive_timeout=3_600.0,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, cast("socket.socket", self._listener), backlog=_BACKLOG).start()

    async def stop(self) -> None:
        """Aborts all connections without invoking routes, and returns once no handler is running."""
        for connection_id in list(self._clients.open):
            self._clients.drop(connection_id)
        if self._runner:
            await self._runner.cleanup()
        elif self._listener:
            self._listener.close()
        await self._invoker.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        hosts = request.headers.getall("Host", [])
        if reason := host_rejection(hosts, allowed_hosts=self._allowed_hosts):
            _log.warning("request.rejected host=%r: it is not among the allowed hosts", hosts)
            return web.json_response({"message": f"{reason}, or one of allowed_hosts"}, status=HTTPStatus.FORBIDDEN)
        if "Upgrade" not in request.headers and (page := serve(request, self._pages)):
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
