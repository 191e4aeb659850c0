"""An emulated API for tests that are not asynchronous: `WebSocketApi`, and the clients that it connects.

    with WebSocketApi({"send": app.send}) as api:
        client = api.connect()
        client.send({"action": "send", "text": "hello"})
        assert client.receive() == "hello"

The emulator and its clients run on an event loop in a thread of their own, handlers on others. Every call that waits
has a timeout. A test that is asynchronous itself uses `Gateway`, or these calls on a thread.
"""

import asyncio
import dataclasses
import math
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

import aiohttp

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.command import gateway_of, load
from gatecast.emulator.config import Config, ConfigurationError, read_config
from gatecast.emulator.counters import Counters
from gatecast.emulator.environment import redirect_sdk
from gatecast.emulator.faults import THROTTLED, Fault, LostDisconnect, Rule
from gatecast.emulator.integration import Integration, Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.selection import Selection
from gatecast.emulator.sigv4 import Credentials
from gatecast.emulator.template import read_template
from gatecast.emulator.testing_client import TIMEOUT_SECONDS, Client, ConnectionRejected, Disconnected

__all__ = ["Client", "ConnectionRejected", "Disconnected", "WebSocketApi"]

_CALL_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.001
_MINUTE: Final = 60.0
_HOUR: Final = 3_600.0
_T = TypeVar("_T")


class WebSocketApi:
    """One API: of `routes`, of a `config` file, of a `template`, or of several of them.

    `routes` maps route keys to handlers, or to `Route(handler, response=True)` where what a handler returns is sent to
    the client. The port is taken at once; handlers of files are imported by `start`. Unless there are `credentials`,
    any signature of `@connections` calls is accepted. Raises ConfigurationError.
    """

    def __init__(
        self,
        routes: Mapping[str, Integration | Route] | None = None,
        *,
        config: str | Path | None = None,
        template: str | Path | None = None,
        invoke_endpoint: str | None = None,
        authorizer: Authorizer | None = None,
        limits: Limits | None = None,
        selection_expression: str | None = None,
        stage: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        read = Config(routes={})
        if template:
            read = read_template(Path(template), invoke_endpoint=invoke_endpoint)
        if config:
            read = read_config(Path(config), read, invoke_endpoint=invoke_endpoint)
        given = {key: each if isinstance(each, Route) else Route(each) for key, each in (routes or {}).items()}
        replaced: dict[str, Any] = {
            "authorizer": authorizer,
            "limits": limits,
            "selection": Selection.parse(selection_expression) if selection_expression else None,
            "stage": stage,
            "credentials": credentials,
        }
        self.config = dataclasses.replace(
            read,
            routes={**read.routes, **given},
            port=0,
            allowed_origins=(),
            **{name: value for name, value in replaced.items() if value is not None},
        )
        if not self.config.routes:
            raise ConfigurationError("there are no routes: give handlers by route key, a config file or a template")
        self._gateway = gateway_of(self.config)
        self._gateway.bind()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gatecast-emulator", daemon=True)
        self._clients: list[Client] = []
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """The URL for WebSocket clients."""
        return self._gateway.url

    @property
    def endpoint(self) -> str:
        """The endpoint of `@connections`, for the SDK's apigatewaymanagementapi client."""
        return self._gateway.endpoint

    @property
    def counters(self) -> Counters:
        """What has happened: invocations by route, posts by status, closes by code, and more."""
        return self._gateway.counters

    @property
    def connections(self) -> list[str]:
        """The ids of the open connections."""
        return list(self._gateway.connections)

    def start(self) -> Self:
        """Imports the handlers of files, and returns when clients can connect. Raises ConfigurationError."""
        redirect_sdk(self.endpoint)
        load(self.config)
        self._thread.start()
        self._run(self._start())
        return self

    def stop(self) -> None:
        """Ends all connections without invoking routes, and returns once no handler is running."""
        if self._thread.is_alive():
            self._run(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        else:
            self._loop.run_until_complete(self._gateway.stop())
        self._loop.close()

    def connect(
        self,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
    ) -> Client:
        """A new client. Raises ConnectionRejected if the authorizer or `$connect` rejects it."""
        url = f"{self.url}?{urlencode(query)}" if query else self.url
        client: Client = self._run(self._connect(url, headers or {}, subprotocols))
        self._clients.append(client)
        return client

    def settle(self) -> None:
        """Returns when all messages and disconnects have been handled, and everything sent to clients has arrived."""
        self._run(self._settle())

    def advance(self, *, hours: float = 0.0, minutes: float = 0.0, seconds: float = 0.0, active: bool = False) -> None:
        """Lets time pass at once, for limits, throttles, latency and faults, and then settles.

        Ten minutes without a message end a connection, and two hours end every one; with `active` clients count as
        sending messages all the time. Handlers' own clocks do not change.
        """
        self._run(self._advance(hours * _HOUR + minutes * _MINUTE + seconds, active=active))
        self.settle()

    def inject(
        self,
        fault: Fault,
        *,
        client: Client | None = None,
        times: int | None = None,
        share: float = 1.0,
        methods: Sequence[str] = ("POST",),
    ) -> None:
        """Adds a fault of `@connections` calls: of all, of those to one client, or of a share; for ever, or some times.

        The first fault that applies to a call decides.
        """
        only = None if client is None else frozenset({client.id})
        self._gateway.faults.add(Rule(fault=fault, share=share, only=only, methods=frozenset(methods), max_count=times))

    def throttle(self, client: Client | None = None, *, times: int | None = None) -> None:
        """429 for every post, as by the account's rate, or for posts to one client, as by its full buffer."""
        self.inject(THROTTLED, client=client, times=times)

    def lose_disconnects(self, client: Client | None = None) -> None:
        """`$disconnect` is not invoked, for one client or for all, however their connections end."""
        self.inject(LostDisconnect(), client=client)

    def clear_faults(self) -> None:
        self._gateway.faults.replace(())

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_SECONDS)

    async def _start(self) -> None:
        await self._gateway.start()
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def _stop(self) -> None:
        await self._gateway.stop()
        if self._session:
            await self._session.close()
        for client in self._clients:
            await client.reader

    async def _connect(self, url: str, headers: Mapping[str, str], subprotocols: Sequence[str]) -> Client:
        assert self._session, "start it first"  # noqa: S101 - a mistake of the caller's
        try:
            websocket = await self._session.ws_connect(
                url, headers=headers, protocols=subprotocols, autoping=False, max_msg_size=0, timeout=_timeout()
            )
        except aiohttp.WSServerHandshakeError as error:
            raise ConnectionRejected(error.status) from None
        return Client(self._gateway, websocket, self._run)

    async def _settle(self) -> None:
        async with asyncio.timeout(_CALL_SECONDS / 2):
            for client in self._clients:
                await client.reach()
            while self._gateway.busy:  # noqa: ASYNC110 - the emulator has no event for it
                await asyncio.sleep(_POLL_SECONDS)
            for client in self._clients:
                await client.reach()

    async def _advance(self, seconds: float, *, active: bool) -> None:
        steps = math.ceil(2 * seconds / self.config.limits.idle_seconds) if active else 1
        for _ in range(steps):
            self._gateway.clock.advance(seconds / steps)
            for client in self._gateway.connections.values() if active else ():
                client.touch()


def _timeout() -> aiohttp.ClientWSTimeout:
    return aiohttp.ClientWSTimeout(ws_close=TIMEOUT_SECONDS)
