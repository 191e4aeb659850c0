"""The WebSocket side: accepts clients, invokes their routes, and closes connections.

A connection exists for `@connections` from its accepted upgrade, after `$connect` has returned, until it begins to
close. Its messages are handled concurrently, up to a limit, and in no guaranteed order, as on AWS. However it ends,
`$disconnect` is invoked once, unless the connection was dropped or a fault loses the call.
"""

import asyncio
import logging
from collections.abc import Collection
from http import HTTPStatus
from typing import Final, NamedTuple, cast

from aiohttp import WSMsgType, web
from aiohttp.http_websocket import WebSocketError

from gatecast.emulator.aiohttp_adapters import ClientSocket
from gatecast.emulator.browser_requests import is_allowed_origin
from gatecast.emulator.client import Client
from gatecast.emulator.clock import Clock
from gatecast.emulator.counters import Counters
from gatecast.emulator.events import ConnectionInfo
from gatecast.emulator.faults import Faults
from gatecast.emulator.frames import CloseFrame
from gatecast.emulator.limits import Limits
from gatecast.emulator.routing import Router, UpgradeRejected

_log = logging.getLogger(__name__)
_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
_NORMAL: Final = 1000


class _End(NamedTuple):
    """How a connection ended; `handshake` is the close frame that still has to be sent to the client, if any."""

    code: int
    reason: str
    handshake: CloseFrame | None = None


class Clients:
    """All clients of one API. `open` are those that can be posted to."""

    def __init__(
        self,
        router: Router,
        *,
        limits: Limits,
        counters: Counters,
        faults: Faults,
        clock: Clock,
        allowed_origins: Collection[str] = (),
    ) -> None:
        self.open: dict[str, Client] = {}
        self._serving: set[Client] = set()
        self._messages = 0
        self._router = router
        self._limits = limits
        self._counters = counters
        self._faults = faults
        self._clock = clock
        self._allowed_origins = allowed_origins

    @property
    def busy(self) -> bool:
        """Whether a client's message is being handled, or a connection is ending."""
        return bool(self._messages) or any(
            client.closing or client.dropped or client.id not in self.open for client in self._serving
        )

    def drop(self, connection_id: str) -> None:
        """Aborts a client's connection without `$disconnect`. Raises KeyError if it is not connected."""
        self.open.pop(connection_id).drop()

    def remove(self, connection_id: str, reason: CloseFrame) -> None:
        """Closes a connection; for `@connections` it is gone immediately. Raises KeyError if it is not connected."""
        self.open.pop(connection_id).close(reason)

    async def accept(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serves one client from its upgrade request to its end."""
        if len(f"wss://{request.host}{request.raw_path}") > self._limits.url_bytes:
            # AWS documents the limit, but not the response
            self._counters.connects[HTTPStatus.REQUEST_URI_TOO_LONG] += 1
            return web.json_response({"message": "Request-URI Too Long"}, status=HTTPStatus.REQUEST_URI_TOO_LONG)
        offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        if request.method != "GET" or not web.WebSocketResponse(protocols=offered).can_prepare(request):
            return web.json_response({"message": "Bad Request"}, status=HTTPStatus.BAD_REQUEST)
        if origin := self._foreign_origin(request):
            _log.warning("upgrade.rejected origin=%r: it is not among the allowed origins", origin)
            self._counters.connects[HTTPStatus.FORBIDDEN] += 1
            return web.json_response({"message": "Forbidden"}, status=HTTPStatus.FORBIDDEN)
        upgrade = await self._router.admit(self._connection_info(request))
        if isinstance(upgrade, UpgradeRejected):
            self._counters.connects[upgrade.status] += 1
            return web.json_response(upgrade.body, status=upgrade.status)
        socket = ClientSocket(protocol=upgrade.protocol, close_seconds=self._limits.close_seconds)
        try:
            await socket.prepare(request)
        except ConnectionError:  # the client disconnected during $connect
            await self._disconnect(upgrade.info, _End(_ABNORMAL, ""))
            return socket
        transport = cast("asyncio.Transport", request.transport)
        client = Client(upgrade.info, socket, transport, limits=self._limits, clock=self._clock)
        self._serving.add(client)
        try:
            await self._serve(client)
        finally:
            self._serving.remove(client)
        return socket

    async def _serve(self, client: Client) -> None:
        self.open[client.id] = client
        self._counters.connects[HTTPStatus.SWITCHING_PROTOCOLS.value] += 1
        self._counters.connections_open += 1
        async with asyncio.TaskGroup() as messages:
            try:
                end = await self._read(client, messages)
            finally:
                client.stop_timer()
                self.open.pop(client.id, None)
                self._counters.connections_open -= 1
            if end.handshake:
                await client.socket.close_within(*end.handshake, client.transport)
            self._counters.closes[end.code] += 1
            if not client.dropped:
                await self._disconnect(client.info, end)

    async def _read(self, client: Client, messages: asyncio.TaskGroup) -> _End:
        """Handles the client's messages until it closes the connection or `ClientSocket.interrupt` is called."""
        slots = asyncio.Semaphore(self._limits.max_concurrent_messages)

        def finished(_: object) -> None:
            slots.release()
            self._messages -= 1

        while True:
            message = await client.socket.receive()
            if message.type is WSMsgType.TEXT or self._limits.control_frames_are_activity:
                client.touch()
            match message.type:
                case WSMsgType.TEXT:
                    await slots.acquire()
                    messages.create_task(self._handle(client, message.data)).add_done_callback(finished)
                    self._messages += 1
                case WSMsgType.PING:
                    await client.pong(message.data)
                case WSMsgType.PONG:
                    pass
                case WSMsgType.CLOSE:
                    echo = CloseFrame(message.data or _NORMAL, "")
                    return _End(message.data or _NO_STATUS, message.extra or "", handshake=echo)
                case WSMsgType.ERROR if isinstance(message.data, CloseFrame):
                    return _End(message.data.code, message.data.reason, handshake=message.data)
                case WSMsgType.ERROR if isinstance(message.data, WebSocketError):
                    return _End(message.data.code, str(message.data))
                case _:
                    return _End(_ABNORMAL, "")

    async def _handle(self, client: Client, body: str) -> None:
        text = await self._router.message(client.info, body)
        if text is None:
            return
        try:
            sent = not client.gone and await client.send(text.encode())
        except ConnectionError:
            sent = False
        self._counters.responses_dropped += not sent

    async def _disconnect(self, info: ConnectionInfo, end: _End) -> None:
        if self._faults.loses_disconnect(info.connection_id):
            self._counters.disconnects_lost += 1
        else:
            await self._router.disconnect(info, code=end.code, reason=end.reason)

    def _foreign_origin(self, request: web.BaseRequest) -> str | None:
        """The Origin of a web page that may not connect."""
        origins = request.headers.getall("Origin", []) if self._allowed_origins else []
        return next((each for each in origins if not is_allowed_origin(each, self._allowed_origins)), None)

    def _connection_info(self, request: web.BaseRequest) -> ConnectionInfo:
        return ConnectionInfo(
            connection_id=self._router.new_id(),
            domain_name=request.host,
            connected_at_ms=self._clock.now_ms(),
            source_ip=request.remote or "",
            user_agent=request.headers.get("User-Agent"),
            headers=tuple(request.headers.items()),
            query=tuple(request.query.items()),
        )
