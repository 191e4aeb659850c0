"""Calls to SQS and DynamoDB over the same connection pool, parser and signer as the posts.

With the SDK's client a call costs one to three milliseconds of CPU, and parsing a page of 1 MB stops the event loop for
180 ms. For rooms of five members that is more than the posts themselves. Both services use a simple protocol: the
operation's name in a header, and JSON in both directions. Endpoints, Region and credentials still come from the SDK.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from worker.aws.errors import ServiceError
from worker.observe.metrics import ServiceCalls
from worker.ports import NoResponse
from worker.transport.pool import Pool
from worker.transport.resolver import refresh_addresses
from worker.transport.responses import PLAIN_200, Response
from worker.transport.signing import Address, Credentials, Signer

_SWEEP_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.002
_OK: Final = 200


class _Call:
    __slots__ = ("body", "future", "operation")

    def __init__(self, operation: str, body: bytes, future: "asyncio.Future[bytes]") -> None:
        self.operation = operation
        self.body = body
        self.future = future


class JsonService:
    """Calls one service while `run` runs. `prefix` precedes operation names in the target header, as in `AmazonSQS`."""

    def __init__(
        self,
        url: str,
        *,
        region: str,
        service: str,
        prefix: str,
        json_version: str,
        connections: int,
        tls: ssl.SSLContext | None,
        calls: ServiceCalls,
    ) -> None:
        address = Address.from_url(url)
        self._signer = Signer(address, region, service)
        self._pool: Pool[_Call] = Pool(
            address, size=connections, handler=self, tls=tls if address.scheme == "https" else None
        )
        self._service = service
        self._calls = calls
        self._prefix = prefix
        self._content_type = f"application/x-amz-json-{json_version}"
        self._waiting: deque[_Call] = deque()
        self._swept_at = 0.0
        self._poll_error: asyncio.Future[None] | None = None

    def use(self, credentials: Credentials) -> None:
        self._signer.use(credentials)
        self._start()

    async def call(self, operation: str, body: bytes) -> bytes:
        """The response's body. Raises ServiceError or NoResponse."""
        return await self.begin(operation, body)

    def begin(self, operation: str, body: bytes) -> "asyncio.Future[bytes]":
        """Start a call. The response's body may be awaited later, or never."""
        call = _Call(operation, body, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._start()
        return call.future

    async def run(self) -> None:
        """Run until cancelled. Errors raised while polling are raised here."""
        loop = asyncio.get_running_loop()
        self._poll_error = loop.create_future()
        resolving = asyncio.create_task(refresh_addresses(self._pool), name=f"addresses of {self._service}")
        descriptor = self._pool.fileno()
        if descriptor is not None:
            loop.add_reader(descriptor, self._poll)
        try:
            while not self._poll_error.done():
                self._poll()
                # With a descriptor the event loop polls when there is data; the timeout serves timeouts and backoff.
                await asyncio.wait(
                    {self._poll_error, resolving},
                    timeout=0.05 if descriptor is not None else _POLL_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if resolving.done():
                    resolving.result()
            self._poll_error.result()
        finally:
            if descriptor is not None:
                loop.remove_reader(descriptor)
            resolving.cancel()
            self._pool.close()

    def _poll(self) -> None:
        assert self._poll_error is not None  # noqa: S101 - set by `run`
        try:
            now = time.monotonic()
            self._pool.poll(now)
            if now - self._swept_at >= _SWEEP_SECONDS:
                self._swept_at = now
                self._pool.sweep(now)
            self._start()
        except Exception as error:  # noqa: BLE001 - the loop would swallow a callback's error; it must end the service
            if not self._poll_error.done():
                self._poll_error.set_exception(error)

    def _start(self) -> None:
        """Send waiting calls on idle connections."""
        if not self._waiting or not self._signer.ready:
            return
        now = time.monotonic()
        while self._waiting and self._pool.idle:
            call = self._waiting.popleft()
            if call.future.done():
                continue  # the caller has been cancelled
            self._pool.send(call, self._request(call), now)
        if not self._waiting:
            return
        self._pool.request_connections(len(self._waiting), now)
        if self._pool.problem is not None and not self._pool.open_connections:
            # No connection can be opened: fail the waiting calls, so that their callers decide how long to wait.
            while self._waiting:
                self.on_failure(self._waiting.popleft(), self._pool.problem, 0.0, now)

    def _request(self, call: _Call) -> bytes:
        headers = {"content-type": self._content_type, "x-amz-target": f"{self._prefix}.{call.operation}"}
        return self._signer.prepare("/", headers, call.body, int(time.time())).request()

    # ExchangeHandler

    def on_plain_responses(self, exchanges: Sequence[_Call], seconds: list[float], now: float) -> None:
        for call, each in zip(exchanges, seconds, strict=True):
            self.on_response(call, PLAIN_200, each, now)

    def on_response(self, exchange: _Call, response: Response, seconds: float, now: float) -> None:
        del now
        error = None if response.status == _OK else ServiceError(_code(response), response.body)
        self._calls.record_response(
            self._service,
            exchange.operation,
            seconds,
            error=error is not None and not error.is_provoked,
        )
        if exchange.future.done():
            return
        if error is None:
            exchange.future.set_result(response.body)
        else:
            exchange.future.set_exception(error)

    def on_failure(self, exchange: _Call, reason: str, seconds: float, now: float) -> None:
        del seconds, now
        self._calls.record_failure(self._service, exchange.operation)
        if not exchange.future.done():
            exchange.future.set_exception(NoResponse(reason))

    def retry_request(self, exchange: _Call, now: float) -> bytes | None:
        """The same call, to be retried because its connection had been closed.

        The service may have executed it nevertheless. Callers retry after NoResponse in the same way, so every call
        must be safe to repeat: messages of a lost receive become visible again, deletions are idempotent, and writes
        are conditional on the claim. A new kind of call must be as safe to repeat.
        """
        del now
        return None if exchange.future.done() else self._request(exchange)


class _Error(msgspec.Struct):
    type: str = msgspec.field(name="__type", default="")


def _code(response: Response) -> str:
    """The error's name, such as ThrottlingException in `com.amazonaws.dynamodb.v20120810#ThrottlingException`.

    If the body names no error, the HTTP status.
    """
    try:
        name = msgspec.json.decode(response.body, type=_Error).type
    except (msgspec.MsgspecError, UnicodeDecodeError):
        name = ""
    return name.rpartition("#")[2] or f"status {response.status}"
