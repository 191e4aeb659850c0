"""The functions behind an HTTP API: `backend`, which API Gateway authorizes with IAM, and `client`, with a token.

Each takes an event of payload format 2.0 and always returns a response: nothing in a request, and no failure of a
dependency, raises an exception. Logs name what failed, never what was sent.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from routes.http import backend as for_backends
from routes.http import client as for_clients
from routes.http.problems import problem
from routes.http.request import Request
from routes.http.routing import Operation, find
from routes.log import Handler, lambda_handler, log_failure
from routes.metrics import record_invocation
from routes.responses import Code, RequestRejected, Response

Event = Mapping[str, Any]
Perform = Callable[[], Response]

_UNKNOWN: Final = "http"
"""The route, in metrics and the log, of a request that names no operation."""


def _handler(operations: tuple[Operation, ...], caller: Callable[[Request], tuple[Any, ...]]) -> Handler:
    """Performs these operations. `caller` returns their arguments about who sent a request, or raises."""

    def prepared(event: Event) -> tuple[str, Perform]:
        request = Request.from_event(event)
        sent_by = caller(request)
        operation, parameters = find(operations, request.method, request.path)
        return f"http.{operation.name}", lambda: operation.perform(request, *sent_by, **parameters)

    def handle(event: dict[str, Any], _context: Any) -> Response:
        try:
            route, perform = prepared(event)
        except Exception as error:  # noqa: BLE001 - as below
            route, perform = _UNKNOWN, _raising(error)
        with record_invocation(route) as invocation:
            try:
                return perform()
            except RequestRejected as rejection:
                if rejection.code is Code.UNAVAILABLE:
                    invocation.failed()
                    log_failure("route.failed", rejection, action=route)
                else:
                    invocation.rejected()
                return problem(rejection)
            except Exception as error:  # noqa: BLE001 - the caller always gets a response
                invocation.failed()
                log_failure("route.failed", error, action=route)
                return problem(RequestRejected(Code.UNAVAILABLE, "temporarily unavailable: retry"))

    return lambda_handler(handle)


def _raising(error: Exception) -> Perform:
    def perform() -> Response:
        raise error

    return perform


def _authorized_by_iam(request: Request) -> tuple[()]:
    request.check_iam()
    return ()


backend: Final = _handler(for_backends.OPERATIONS, _authorized_by_iam)
client: Final = _handler(for_clients.OPERATIONS, lambda request: (request.client(),))
