"""Calls to SQS and DynamoDB, over the same pool, parser and signatures as the posts.

Through the SDK's client a call costs one to three milliseconds of CPU, and parsing a page of 1 MB stops the loop for
180 ms. For rooms of five members that is more than the posts themselves. Both services speak a simple protocol: an
operation's name in a header, JSON in both directions. Endpoints, Region and credentials are still the SDK's.
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
from worker.transport.responses import PLAIN_200, Answer
from worker.transport.signing import Address, Credentials, Signer

_SWEEP_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.002
_OK: Final = 200
CONDITION_FAILED: Final = "ConditionalCheckFailedException"
"""An answer that callers ask for, and no failure."""


class _Call:
    __slots__ = ("answer", "body", "operation")

    def __init__(self, operation: str, body: bytes, answer: "asyncio.Future[bytes]") -> None:
        self.operation = operation
        self.body = body
        self.answer = answer


class JsonService:
    """Calls one service while `run` runs. `prefix` comes before the operations' names: `AmazonSQS`, for one."""

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
        address = Address.of(url)
        self._signer = Signer(address, region, service)
        self._pool: Pool[_Call] = Pool(
            address, size=connections, owner=self, tls=tls if address.scheme == "https" else None
        )
        self._service = service
        self._calls = calls
        self._prefix = prefix
        self._content_type = f"application/x-amz-json-{json_version}"
        self._waiting: deque[_Call] = deque()
        self._swept_at = 0.0
        self._failure: asyncio.Future[None] | None = None

    def use(self, credentials: Credentials) -> None:
        self._signer.use(credentials)
        self._start()

    async def call(self, operation: str, body: bytes) -> bytes:
        """The response's body. Raises ServiceError or NoResponse."""
        return await self.begin(operation, body)

    def begin(self, operation: str, body: bytes) -> "asyncio.Future[bytes]":
        """Call now and await the response later."""
        call = _Call(operation, body, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._start()
        return call.answer

    async def run(self) -> None:
        """Until cancelled. Whatever a poll raises is raised here."""
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        resolving = asyncio.create_task(refresh_addresses(self._pool))
        descriptor = self._pool.fileno()
        if descriptor is not None:
            loop.add_reader(descriptor, self._poll)
        try:
            while not self._failure.done():
                self._poll()
                # With a descriptor the loop polls when there is something; this is for time-outs and back-off.
                await asyncio.wait(
                    {self._failure, resolving},
                    timeout=0.05 if descriptor is not None else _POLL_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if resolving.done():
                    resolving.result()
            self._failure.result()
        finally:
            if descriptor is not None:
                loop.remove_reader(descriptor)
            resolving.cancel()
            self._pool.close()

    def _poll(self) -> None:
        assert self._failure is not None  # noqa: S101 - `run` has made it
        try:
            now = time.monotonic()
            self._pool.poll(now)
            if now - self._swept_at >= _SWEEP_SECONDS:
                self._swept_at = now
                self._pool.sweep(now)
            self._start()
        except Exception as error:  # noqa: BLE001 - a callback's error would go to the loop; it must end the service
            if not self._failure.done():
                self._failure.set_exception(error)

    def _start(self) -> None:
        """Send what waits, as far as connections are there."""
        if not self._waiting or not self._signer.ready:
            return
        now = time.monotonic()
        while self._waiting and self._pool.idle:
            call = self._waiting.popleft()
            if call.answer.done():
                continue  # whoever asked has been cancelled
            self._pool.send(call, self._request(call), now)
        if not self._waiting:
            return
        self._pool.want(len(self._waiting), now)
        if self._pool.problem is not None and not self._pool.open_connections:
            # No connection can be had: say so to whoever waits, and let them decide how long to wait.
            while self._waiting:
                self.failed(self._waiting.popleft(), self._pool.problem, 0.0, now)

    def _request(self, call: _Call) -> bytes:
        headers = {"content-type": self._content_type, "x-amz-target": f"{self._prefix}.{call.operation}"}
        return self._signer.prepare("/", headers, call.body, int(time.time())).request()

    # The pool's owner

    def on_plain_responses(self, exchanges: Sequence[_Call], seconds: list[float], now: float) -> None:
        for call, each in zip(exchanges, seconds, strict=True):
            self.answered(call, PLAIN_200, each, now)

    def answered(self, exchange: _Call, answer: Answer, seconds: float, now: float) -> None:
        del now
        error = None if answer.status == _OK else ServiceError(_code(answer), answer.body)
        self._calls.answered(
            self._service,
            exchange.operation,
            seconds,
            error=error is not None and error.code != CONDITION_FAILED,
        )
        if exchange.answer.done():
            return
        if error is None:
            exchange.answer.set_result(answer.body)
        else:
            exchange.answer.set_exception(error)

    def failed(self, exchange: _Call, reason: str, seconds: float, now: float) -> None:
        del seconds, now
        self._calls.failed(self._service, exchange.operation)
        if not exchange.answer.done():
            exchange.answer.set_exception(NoResponse(reason))

    def retry_request(self, exchange: _Call, now: float) -> bytes | None:
        """The same call once more, for its connection had died.

        The service may have executed it all the same. That is no other than what callers do after NoResponse, so every
        call has to bear it: a receive leaves messages that become visible again, deletions repeat harmlessly, and
        writes are conditional on whose claim it is. A new kind of call must be as safe to repeat.
        """
        del now
        return None if exchange.answer.done() else self._request(exchange)


class _Error(msgspec.Struct):
    type: str = msgspec.field(name="__type", default="")


def _code(answer: Answer) -> str:
    """`com.amazonaws.dynamodb.v20120810#ThrottlingException` is ThrottlingException; without one, the status."""
    try:
        name = msgspec.json.decode(answer.body, type=_Error).type
    except (msgspec.MsgspecError, UnicodeDecodeError):
        name = ""
    return name.rpartition("#")[2] or f"status {answer.status}"
