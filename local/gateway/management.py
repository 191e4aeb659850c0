"""The `@connections` side: POST, GET and DELETE of `/{stage}/@connections/{id}`, answered as API Gateway does.

A call is checked in this order: its path, its signature, the account's rate, its body, its connection. It has its
effect at once; the latency is before the answer.
"""

import asyncio
import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import unquote

from aiohttp import web

from local.gateway import replies
from local.gateway.client import CLOSED_BY_CALL, Client
from local.gateway.clients import Clients
from local.gateway.counters import Counters
from local.gateway.faults import Answer, Delay, Fault, Faults, LostDisconnect, Reset, Stall
from local.gateway.limits import MAX_POST_BYTES, Limits, TokenBucket
from local.gateway.replies import Reply
from local.gateway.sigv4 import Verifier

_CONNECTION_ID: Final = re.compile(r"[A-Za-z0-9_+/-]{1,128}={0,2}\Z")


class Post(NamedTuple):
    """A post that was delivered to a client's send buffer."""

    connection_id: str
    data: bytes


class Management:
    """Answers `@connections` calls for the clients of one API."""

    def __init__(
        self,
        stage: str,
        clients: Clients,
        verifier: Verifier,
        *,
        limits: Limits,
        bucket: TokenBucket | None,
        counters: Counters,
        faults: Faults,
        rng: random.Random,
        on_post: Callable[[Post], None] | None = None,
    ) -> None:
        self._prefix = f"/{stage}/@connections/"
        self._clients = clients
        self._verifier = verifier
        self._limits = limits
        self._bucket = bucket
        self._counters = counters
        self._faults = faults
        self._rng = rng
        self._on_post = on_post

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one call. The status that is counted is the one that the caller saw, or 0."""
        self._counters.call_started()
        status = 0
        try:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:  # more than aiohttp reads, too much to check a signature over
                status = replies.TOO_LARGE.status
                return replies.TOO_LARGE.to_response()
            refusal, connection_id = self._check(request, body)
            fault = None if refusal else self._faults.strike(request.method, connection_id)
            reply = refusal or await self._perform(request.method, connection_id, body, fault)
            if seconds := self._limits.latency(self._rng):
                await asyncio.sleep(seconds)
            if fault:
                self._counters.faults[type(fault).__name__] += 1
                if not await self._endures(fault, request, reply):
                    return web.Response()
            status = reply.status
            return reply.to_response()
        finally:
            self._counters.call_ended(request.method, status)

    def _check(self, request: web.BaseRequest, body: bytes) -> tuple[Reply | None, str]:
        """The refusal of a call that is not for a connection, or the connection's id."""
        path = unquote(request.raw_path.partition("?")[0])
        if not path.startswith(self._prefix):
            return replies.FORBIDDEN, ""
        connection_id = path[len(self._prefix) :]
        rejection = self._verifier.verify(request.method, request.raw_path, request.headers, body)
        if rejection:
            return Reply.error(403, rejection.error_type, rejection.message), connection_id
        if self._bucket and not self._bucket.take():
            self._counters.throttled["account"] += 1
            return replies.LIMIT_EXCEEDED, connection_id
        if not _CONNECTION_ID.match(connection_id):
            return Reply.error(400, "BadRequestException", f"Invalid connectionId: {connection_id}"), connection_id
        return None, connection_id

    async def _perform(self, method: str, connection_id: str, body: bytes, fault: Fault | None) -> Reply:
        """The call's effect, unless the fault prevents it, and its answer, unless the fault has another."""
        if isinstance(fault, Answer):
            if fault.delivers:
                await self._effect(method, connection_id, body)
            return Reply(fault.status, fault.error_type, fault.body.encode(), fault.content_type)
        if isinstance(fault, Reset | Stall) and not fault.delivers:
            return replies.OK
        return await self._effect(method, connection_id, body)

    async def _effect(self, method: str, connection_id: str, body: bytes) -> Reply:
        client = self._clients.open.get(connection_id)
        if method == "POST" and len(body) > MAX_POST_BYTES:
            return replies.TOO_LARGE
        if client is None or client.gone:
            return replies.GONE
        match method:
            case "POST":
                return await self._post(client, body)
            case "GET":
                return replies.description(client)
            case "DELETE":
                self._clients.remove(connection_id, CLOSED_BY_CALL)
                return replies.DELETED
        return replies.FORBIDDEN

    async def _post(self, client: Client, data: bytes) -> Reply:
        try:
            data.decode()
            sent = await client.send(data)
        except UnicodeDecodeError:
            return replies.NOT_TEXT
        except ConnectionError:
            return replies.GONE
        if not sent:
            self._counters.throttled["client"] += 1
            return replies.LIMIT_EXCEEDED
        if self._on_post:
            self._on_post(Post(client.id, data))
        return replies.OK

    async def _endures(self, fault: Fault, request: web.BaseRequest, reply: Reply) -> bool:
        """Lets the fault happen to the answer. False if nothing is left to be answered."""
        match fault:
            case Delay(seconds=seconds):
                await asyncio.sleep(seconds)
                return True
            case Stall(seconds=seconds):
                await asyncio.sleep(seconds)
            case Reset(cut="before"):
                pass
            case Reset(cut=cut):
                if request.transport:
                    request.transport.write(reply.beginning(within=cut))
                    request.transport.close()
                return False
            case Answer() | LostDisconnect():
                return True
        if request.transport:
            request.transport.abort()
        return False
