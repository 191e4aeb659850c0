"""The integrations of routes: Lambda handlers, invoked in process, remote functions and HTTP endpoints, and mocks.

Handlers run on bounded threads, with a context like Lambda's, and responses are validated.

A handler runs on one of a fixed number of threads. An exception, a malformed response or a timeout results in a
`Failure`, never in an exception: the caller decides what the client receives. A handler that runs on after its timeout
occupies its thread until it returns, as it would occupy a Lambda environment.
"""

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from gatecast.emulator.clock import Clock
from gatecast.emulator.events import Event
from gatecast.emulator.remote import HttpProxy, LambdaFunction, Remote, RemoteError

Handler = Callable[[Event, Any], Any]

_log = logging.getLogger(__name__)
_MEMORY_MB: Final = 128


class Mock(NamedTuple):
    """A MOCK integration: API Gateway itself responds, and no function is invoked.

    It stands for an integration response whose template has the fields of `response`, and then those top-level fields
    named in `repeats` that the client's message has. A field that is null or an empty string is left out, for a
    template cannot tell it from one that is absent. Nothing else about the message is looked at.
    """

    response: Mapping[str, Any]
    repeats: tuple[str, ...] = ()

    def respond(self, message: str) -> str:
        """The response to a client's message."""
        try:
            fields = json.loads(message)
        except (ValueError, RecursionError):
            fields = None
        given = fields if isinstance(fields, Mapping) else {}
        repeated = {name: given[name] for name in self.repeats if given.get(name) not in (None, "")}
        return json.dumps({**self.response, **repeated}, separators=(",", ":"))


class Unavailable(NamedTuple):
    """An integration that cannot run here: every invocation fails. `reason` is logged."""

    reason: str


Function = Handler | LambdaFunction | Unavailable
Integration = Function | HttpProxy | Mock


class Route(NamedTuple):
    """A route's integration. Only with a route response (`response`) is what it returns sent to the client."""

    integration: Integration
    response: bool = False


class Success(NamedTuple):
    """A well-formed response of a handler. Header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: str


class Failure(NamedTuple):
    """The status to which API Gateway maps a handler's failure, and the exception that it raised, if any."""

    status: HTTPStatus
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LambdaContext:
    """The context object of Lambda's Python runtime, with all its attributes."""

    function_name: str
    aws_request_id: str
    invoked_function_arn: str
    log_stream_name: str
    deadline: float
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = _MEMORY_MB
    identity: None = None
    client_context: None = None

    @property
    def log_group_name(self) -> str:
        return f"/aws/lambda/{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self.deadline - time.monotonic()) * 1000))


class Invoker:
    """Runs handlers and calls other integrations. `close` waits for handlers that are running."""

    def __init__(
        self, *, threads: int, timeout_seconds: float, region: str, account_id: str, clock: Clock, remote: Remote
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="handler")
        self._remote = remote
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._arn_prefix = f"arn:aws:lambda:{region}:{account_id}:function"

    async def invoke(self, integration: Function | HttpProxy, event: Event) -> Success | Failure:
        """Invokes a route's integration and validates its response."""
        if isinstance(integration, HttpProxy):
            response = await self._wait(
                integration.url, asyncio.ensure_future(self._remote.request(integration, event))
            )
            return response if isinstance(response, Failure) else Success(*response)
        response = await self.invoke_raw(integration, event)
        return response if isinstance(response, Failure) else parse_response(response)

    async def invoke_raw(self, function: Function, event: Event) -> Any:
        """The function's return value, unvalidated, or a Failure."""
        if isinstance(function, Unavailable):
            _log.error("handler.unavailable: %s", function.reason)
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR)
        if isinstance(function, LambdaFunction):
            return await self._wait(function.name, asyncio.ensure_future(self._remote.invoke(function, event)))
        context = self._context(function, event)
        running = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, event, context))
        return await self._wait(context.function_name, running)

    async def close(self) -> None:
        await self._remote.close()
        self._pool.shutdown(cancel_futures=True)

    async def _wait(self, name: str, running: "asyncio.Future[Any]") -> Any:
        """The result, or a Failure if there is none in time."""
        if not await self._clock.wait(running, self._timeout_seconds):
            running.add_done_callback(_consume_exception)
            if isinstance(running, asyncio.Task):
                running.cancel()
            _log.warning("handler.timeout function=%s seconds=%s", name, self._timeout_seconds)
            return Failure(HTTPStatus.GATEWAY_TIMEOUT)
        match running.exception():
            case None:
                return running.result()
            case RemoteError() as error:
                _log.error("handler.failed function=%s: %s", name, error)
            case error:
                _log.error("handler.failed function=%s", name, exc_info=error)
        return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, error)

    def _context(self, handler: Handler, event: Event) -> LambdaContext:
        name = getattr(handler, "__name__", type(handler).__name__)
        request_id = event["requestContext"]["requestId"]
        return LambdaContext(
            function_name=name,
            aws_request_id=request_id,
            invoked_function_arn=f"{self._arn_prefix}:{name}",
            log_stream_name=f"local/[$LATEST]{request_id}",
            deadline=time.monotonic() + self._timeout_seconds,
        )


def parse_response(response: Any) -> Success | Failure:
    """A handler's response in the proxy format. As in API Gateway, any other value is a failure of the handler."""
    malformed = Failure(HTTPStatus.INTERNAL_SERVER_ERROR)
    if not isinstance(response, Mapping):
        return malformed
    status, body, headers = response.get("statusCode"), response.get("body") or "", response.get("headers") or {}
    if not isinstance(status, int) or not isinstance(body, str) or not isinstance(headers, Mapping):
        return malformed
    if response.get("isBase64Encoded"):
        try:
            body = base64.b64decode(body, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return malformed
    return Success(status, {str(name).lower(): str(value) for name, value in headers.items()}, body)


def _consume_exception(abandoned: "asyncio.Future[Any]") -> None:
    """Retrieves the exception of a handler that timed out, so that asyncio does not log it as never retrieved."""
    if not abandoned.cancelled():
        abandoned.exception()
