"""The WebSocket side: accepting clients, calling their routes, letting them go.

A connection exists for `@connections` from the moment its upgrade was accepted, after `$connect` has returned, until it
begins to close. Its messages are handled concurrently, a few at a time, and in no promised order, as on AWS; whatever
ends it, `$disconnect` is called once, unless it vanished or a fault says that the call is lost.
"""

import asyncio
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Final, NamedTuple, cast

from aiohttp import WSMsgType, web
from aiohttp.http_websocket import WebSocketError

from local.gateway.client import Client
from local.gateway.counters import Counters
from local.gateway.events import Origin
from local.gateway.faults import Faults
from local.gateway.frames import Offence
from local.gateway.limits import Limits
from local.gateway.routing import Refused, Router
from local.gateway.wire import ClientSocket

_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
_NORMAL: Final = 1000


class _End(NamedTuple):
    """How a connection ended; `handshake` is what is still to be sent to the client, if anything is."""

    code: int
    reason: str
    handshake: Offence | None = None


class Clients:
    """All clients of one API. `open` are those that can be posted to."""

    def __init__(
        self,
        router: Router,
        *,
        limits: Limits,
        counters: Counters,
        faults: Faults,
        now_ms: Callable[[], int],
        allowed_origins: Collection[str] = (),
    ) -> None:
        self.open: dict[str, Client] = {}
        self._router = router
        self._limits = limits
        self._counters = counters
        self._faults = faults
        self._now_ms = now_ms
        self._allowed_origins = allowed_origins

    def vanish(self, connection_id: str) -> None:
        """Cuts a client off without `$disconnect`. Raises KeyError if it is not connected."""
        self.open.pop(connection_id).vanish()

    def remove(self, connection_id: str, reason: Offence) -> None:
        """Closes a connection, which is gone for `@connections` from now on. Raises KeyError."""
        self.open.pop(connection_id).ask_to_leave(reason)

    async def accept(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serves one client from its upgrade request to its end."""
        offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        if not web.WebSocketResponse(protocols=offered).can_prepare(request):
            return web.json_response({"message": "Bad Request"}, status=HTTPStatus.BAD_REQUEST)
        if self._allowed_origins and not set(request.headers.getall("Origin", [])) <= set(self._allowed_origins):
            self._counters.connects[HTTPStatus.FORBIDDEN] += 1
            return web.json_response({"message": "Forbidden"}, status=HTTPStatus.FORBIDDEN)
        answer = await self._router.admit(self._origin(request))
        if isinstance(answer, Refused):
            self._counters.connects[answer.status] += 1
            return web.json_response(answer.body, status=answer.status)
        socket = ClientSocket(protocol=answer.protocol, close_seconds=self._limits.close_seconds)
        try:
            await socket.prepare(request)
        except ConnectionError:  # it did not wait for $connect
            await self._disconnect(answer.origin, _End(_ABNORMAL, ""))
            return socket
        transport = cast("asyncio.Transport", request.transport)
        await self._serve(Client(answer.origin, socket, transport, limits=self._limits, now_ms=self._now_ms))
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
            if not client.vanished:
                await self._disconnect(client.origin, end)

    async def _read(self, client: Client, messages: asyncio.TaskGroup) -> _End:
        """Handles what the client sends until it ends the conversation or the reason comes why we do."""
        slots = asyncio.Semaphore(self._limits.messages_at_once)
        while True:
            message = await client.socket.receive()
            client.touch()
            match message.type:
                case WSMsgType.TEXT:
                    await slots.acquire()
                    messages.create_task(self._handle(client, message.data)).add_done_callback(
                        lambda _: slots.release()
                    )
                case WSMsgType.PING:
                    await client.pong(message.data)
                case WSMsgType.PONG:
                    pass
                case WSMsgType.CLOSE:
                    answer = Offence(message.data or _NORMAL, "")
                    return _End(message.data or _NO_STATUS, message.extra or "", handshake=answer)
                case WSMsgType.ERROR if isinstance(message.data, Offence):
                    return _End(message.data.code, message.data.reason, handshake=message.data)
                case WSMsgType.ERROR if isinstance(message.data, WebSocketError):
                    return _End(message.data.code, str(message.data))
                case _:
                    return _End(_ABNORMAL, "")

    async def _handle(self, client: Client, body: str) -> None:
        text = await self._router.message(client.origin, body)
        if text is None:
            return
        try:
            sent = not client.gone and await client.send(text.encode())
        except ConnectionError:
            sent = False
        self._counters.responses_dropped += not sent

    async def _disconnect(self, origin: Origin, end: _End) -> None:
        if self._faults.loses_disconnect(origin.connection_id):
            self._counters.disconnects_lost += 1
        else:
            await self._router.disconnect(origin, code=end.code, reason=end.reason)

    def _origin(self, request: web.BaseRequest) -> Origin:
        return Origin(
            connection_id=self._router.new_id(),
            domain_name=request.host,
            connected_at_ms=self._now_ms(),
            source_ip=request.remote or "",
            user_agent=request.headers.get("User-Agent"),
            headers=tuple(request.headers.items()),
            query=tuple(request.query.items()),
        )
