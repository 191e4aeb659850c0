"""What AWS documents about WebSocket APIs, as far as a probe can ask it. A test compares it with docs/emulator.md."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from deploy.verify.observation import Observation
from deploy.verify.probes import documented as probes
from deploy.verify.target import Target

_GUIDE: Final = "https://docs.aws.amazon.com/apigateway/latest/developerguide/"
CONNECT: Final = f"{_GUIDE}apigateway-websocket-api-route-keys-connect-disconnect.html"
SUBPROTOCOL: Final = f"{_GUIDE}websocket-connect-route-subprotocol.html"
SELECTION: Final = f"{_GUIDE}apigateway-websocket-api-selection-expressions.html"
ROUTES: Final = f"{_GUIDE}apigateway-websocket-api-overview.html"
ROUTE_RESPONSE: Final = f"{_GUIDE}apigateway-websocket-api-route-response.html"
QUOTAS: Final = f"{_GUIDE}apigateway-execution-service-websocket-limits-table.html"
BINARY: Final = f"{_GUIDE}websocket-api-develop-binary-media-types.html"
CONNECTIONS: Final = f"{_GUIDE}apigateway-how-to-call-websocket-api-connections.html"
VARIABLES: Final = f"{_GUIDE}apigateway-websocket-api-mapping-template-reference.html"
AUTHORIZER: Final = f"{_GUIDE}apigateway-websocket-api-lambda-auth.html"
WEBSOCKET: Final = "https://www.rfc-editor.org/rfc/rfc6455#section-5.5.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """One behaviour, the document that describes it, and the probe that asks for it."""

    name: str
    behaviour: str
    source: str
    probe: Callable[[Target], Awaitable[Observation]]
    long: bool = False


def _rows(*rows: tuple[str, str, str, Callable[[Target], Awaitable[Observation]]]) -> tuple[Documented, ...]:
    return tuple(
        Documented(name=name, behaviour=behaviour, source=source, probe=probe)
        for name, behaviour, source, probe in rows
    )


DOCUMENTED: Final = _rows(
    (
        "connect-rejected",
        "A `$connect` that returns no 2xx rejects the upgrade with its status",
        CONNECT,
        probes.connect_rejected,
    ),
    ("connect-fails", "A `$connect` whose function fails rejects the upgrade", CONNECT, probes.connect_fails),
    (
        "subprotocol",
        "A client that offers subprotocols gets the one that `$connect` returns",
        SUBPROTOCOL,
        probes.subprotocol,
    ),
    ("selected", "The selection expression names the route of a message", SELECTION, probes.selected),
    (
        "no-route",
        "Without a matching route and without `$default`, the client gets an error message",
        SELECTION,
        probes.no_route,
    ),
    ("reserved", "A message selects neither `$connect` nor `$disconnect`", ROUTES, probes.reserved),
    ("not-json", "A message that is no JSON is one for `$default`", ROUTES, probes.not_json),
    (
        "function-fails",
        "A message whose function fails gets an error message, and the connection stays",
        ROUTES,
        probes.function_fails,
    ),
    (
        "no-response",
        "Without a route response, what the function returns is not sent",
        ROUTE_RESPONSE,
        probes.no_response,
    ),
    ("context", "The event of a message has the documented context", VARIABLES, probes.context),
    ("whole-frame", "A frame of 32 KB is accepted", QUOTAS, probes.whole_frame),
    ("whole-message", "A message of 128 KB in frames of 32 KB is accepted", QUOTAS, probes.whole_message),
    ("long-frame", "A longer frame closes the connection with 1009", QUOTAS, probes.long_frame),
    ("long-message", "A longer message closes the connection with 1009", QUOTAS, probes.long_message),
    ("binary", "A binary frame closes the connection with 1003", BINARY, probes.binary),
    ("posted", "POST of `@connections` sends its body to the client as text", CONNECTIONS, probes.posted),
    ("described", "GET of `@connections` describes the connection", CONNECTIONS, probes.described),
    ("disconnect", "`$disconnect` gets the client's close code and reason", CONNECT, probes.disconnect),
    ("pong", "A ping is responded to with a pong", WEBSOCKET, probes.pong),
    (
        "authorizer-context",
        "Routes get the authorizer's context as strings, and the principal's id",
        AUTHORIZER,
        probes.authorizer_context,
    ),
    ("authorizer-denies", "A policy that denies rejects the upgrade with 403", AUTHORIZER, probes.authorizer_denies),
    (
        "authorizer-raises",
        "An authorizer that raises `Unauthorized` rejects the upgrade with 401",
        AUTHORIZER,
        probes.authorizer_raises,
    ),
)
