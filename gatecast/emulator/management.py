"""The `@connections` side: serves POST, GET and DELETE of `{path}/@connections/{id}` like API Gateway.

The path is that of the stage, or of a custom domain's mapping.

A call is checked in this order: its path, its signature, the account's rate, its body, its connection. Its effect is
immediate; latency delays only the response.
"""

import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import unquote

from aiohttp import web

from gatecast.emulator import responses
from gatecast.emulator.client import CLOSED_BY_CALL, Client
from gatecast.emulator.clients import Clients
from gatecast.emulator.clock import Clock
from gatecast.emulator.counters import Counters
from gatecast.emulator.faults import CannedResponse, Delay, Fault, Faults, LostDisconnect, Reset, Stall
from gatecast.emulator.limits import MAX_POST_BYTES, Limits, TokenBucket
from gatecast.emulator.responses import Response
from gatecast.emulator.sigv4 import Verifier

_CONNECTION_ID: Final = re.compile(r"[A-Za-z0-9_+/-]{1,128}={0,2}\Z")


class Post(NamedTuple):
    """A post that was written to a client's send buffer."""

    connection_id: str
    data: bytes


class Management:
    """Serves `@connections` calls for the clients of one API."""

    def __init__(
        self,
        path: str,
        clients: Clients,
        verifier: Verifier,
        *,
        limits: Limits,
        bucket: TokenBucket | None,
        counters: Counters,
        faults: Faults,
        clock: Clock,
        rng: random.Random,
        on_post: Callable[[Post], None] | None = None,
    ) -> None:
        self._prefix = f"{path}/@connections/"
        self._clients = clients
        self._verifier = verifier
        self._limits = limits
        self._bucket = bucket
        self._counters = counters
        self._faults = faults
        self._clock = clock
        self._rng = rng
        self._on_post = on_post

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serves one call. Counts the status that the caller received, or 0."""
        self._counters.call_started()
        status = 0
        try:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:  # aiohttp read only part of it, so the signature cannot be verified
                status = responses.TOO_LARGE.status
                return responses.TOO_LARGE.to_response()
            rejection, connection_id = self._check(request, body)
            fault = None if rejection else self._faults.next_fault(request.method, connection_id)
            response = rejection or await self._execute(request.method, connection_id, body, fault)
            if seconds := self._limits.latency(self._rng):
                await self._clock.sleep(seconds)
            if fault:
                self._counters.faults[type(fault).__name__] += 1
                if not await self._apply_fault(fault, request, response):
                    return web.Response()
            status = response.status
            return response.to_response()
        finally:
            self._counters.call_ended(request.method, status)

    def _check(self, request: web.BaseRequest, body: bytes) -> tuple[Response | None, str]:
        """The response to a rejected call, or None; and the connection id of the path."""
        path = unquote(request.raw_path.partition("?")[0])
        if not path.startswith(self._prefix):
            return responses.FORBIDDEN, ""
        connection_id = path[len(self._prefix) :]
        rejection = self._verifier.verify(request.method, request.raw_path, request.headers, body)
        if rejection:
            return Response.error(403, rejection.error_type, rejection.message), connection_id
        if self._bucket and not self._bucket.take():
            self._counters.throttled["account"] += 1
            return responses.LIMIT_EXCEEDED, connection_id
        if not _CONNECTION_ID.match(connection_id):
            return Response.error(400, "BadRequestException", f"Invalid connectionId: {connection_id}"), connection_id
        return None, connection_id

    async def _execute(self, method: str, connection_id: str, body: bytes, fault: Fault | None) -> Response:
        """Performs the call, unless the fault prevents it, and returns its response, or the fault's."""
        if isinstance(fault, CannedResponse):
            if fault.delivers:
                await self._perform(method, connection_id, body)
            return Response(fault.status, fault.error_type, fault.body.encode(), fault.content_type)
        if isinstance(fault, Reset | Stall) and not fault.delivers:
            return responses.OK
        return await self._perform(method, connection_id, body)

    async def _perform(self, method: str, connection_id: str, body: bytes) -> Response:
        client = self._clients.open.get(connection_id)
        if method == "POST" and len(body) > MAX_POST_BYTES:
            return responses.TOO_LARGE
        if client is None or client.gone:
            return responses.GONE
        match method:
            case "POST":
                return await self._post(client, body)
            case "GET":
                return responses.description(client)
            case "DELETE":
                self._clients.remove(connection_id, CLOSED_BY_CALL)
                return responses.DELETED
        return responses.FORBIDDEN

    async def _post(self, client: Client, data: bytes) -> Response:
        try:
            data.decode()
            sent = await client.send(data)
        except UnicodeDecodeError:
            return responses.NOT_TEXT
        except ConnectionError:
            return responses.GONE
        if not sent:
            self._counters.throttled["client"] += 1
            return responses.LIMIT_EXCEEDED
        if self._on_post:
            self._on_post(Post(client.id, data))
        return responses.OK

    async def _apply_fault(self, fault: Fault, request: web.BaseRequest, response: Response) -> bool:
        """Applies the fault to the response. Whether the response must still be sent."""
        match fault:
            case Delay(seconds=seconds):
                await self._clock.sleep(seconds)
                return True
            case Stall(seconds=seconds):
                await self._clock.sleep(seconds)
            case Reset(cut="before"):
                pass
            case Reset(cut=cut):
                if request.transport:
                    request.transport.write(response.truncated(within=cut))
                    request.transport.close()
                return False
            case CannedResponse() | LostDisconnect():
                return True
        if request.transport:
            request.transport.abort()
        return False
