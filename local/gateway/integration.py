"""Calling Lambda handlers in process: bounded threads, a context object like Lambda's, answers checked.

A handler runs on one of a fixed number of threads. What it raises, returns or takes too long for ends in a `Failure`,
never in an exception: the caller decides what the client gets to see. A handler that runs on after its timeout keeps
its thread until it ends, as it would keep a Lambda environment.
"""

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from local.gateway.events import Event

Handler = Callable[[Event, Any], Any]

_log = logging.getLogger(__name__)
_MEMORY_MB: Final = 128


class Route(NamedTuple):
    """A route's handler, and whether the route has a route response: only then does its answer reach the client."""

    handler: Handler
    response: bool = False


class Success(NamedTuple):
    """A well-formed answer of a handler."""

    status: int
    headers: dict[str, str]
    body: str


class Failure(NamedTuple):
    """What API Gateway makes of a handler that failed, and what the handler raised, if it did."""

    status: HTTPStatus
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LambdaContext:
    """What the Python runtime of Lambda passes as the second argument, attribute by attribute."""

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
    """Runs handlers. `close` waits for those under way."""

    def __init__(self, *, threads: int, timeout_seconds: float, region: str, account_id: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="handler")
        self._timeout_seconds = timeout_seconds
        self._arn_prefix = f"arn:aws:lambda:{region}:{account_id}:function"

    async def call(self, handler: Handler, event: Event) -> Success | Failure:
        """Calls a route's handler and checks its answer."""
        answer = await self.call_raw(handler, event)
        return answer if isinstance(answer, Failure) else checked(answer)

    async def call_raw(self, handler: Handler, event: Event) -> Any:
        """What the handler returned, whatever it is, or a Failure."""
        context = self._context(handler, event)
        running = asyncio.get_running_loop().run_in_executor(self._pool, partial(handler, event, context))
        done, _ = await asyncio.wait((running,), timeout=self._timeout_seconds)
        if not done:
            running.add_done_callback(_retrieve)
            _log.warning("handler.timeout function=%s seconds=%s", context.function_name, self._timeout_seconds)
            return Failure(HTTPStatus.GATEWAY_TIMEOUT)
        if error := running.exception():
            _log.error("handler.failed function=%s", context.function_name, exc_info=error)
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, error)
        return running.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

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


def checked(answer: Any) -> Success | Failure:
    """A handler's answer in the proxy format; anything else is the handler's fault, as it is for API Gateway."""
    malformed = Failure(HTTPStatus.INTERNAL_SERVER_ERROR)
    if not isinstance(answer, Mapping):
        return malformed
    status, body, headers = answer.get("statusCode"), answer.get("body") or "", answer.get("headers") or {}
    if not isinstance(status, int) or not isinstance(body, str) or not isinstance(headers, Mapping):
        return malformed
    if answer.get("isBase64Encoded"):
        try:
            body = base64.b64decode(body, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return malformed
    return Success(status, {str(name).lower(): str(value) for name, value in headers.items()}, body)


def _retrieve(abandoned: "asyncio.Future[Any]") -> None:
    """Looks at the result of a handler that nobody waits for any more, so that asyncio does not complain."""
    if not abandoned.cancelled():
        abandoned.exception()
