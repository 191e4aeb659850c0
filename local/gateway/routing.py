"""The Lambda side of a WebSocket API: which route an event goes to, and what the client gets to see of its answer.

Every failure of a handler becomes a status or a text here, never an exception. `$connect` and `$disconnect` are never
selected by a message and never fall back to `$default`.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from local.gateway import events
from local.gateway.authorizer import Authorizer, Denied, decide, denied, has_identity
from local.gateway.counters import Counters
from local.gateway.events import Api, Origin
from local.gateway.integration import Failure, Invoker, Route, Success

CONNECT: Final = "$connect"
DISCONNECT: Final = "$disconnect"
DEFAULT: Final = "$default"

_CLIENT_ERROR: Final = 300


class Admitted(NamedTuple):
    """The upgrade may happen; `origin` has the authorizer's context, `protocol` is `$connect`'s choice."""

    origin: Origin
    protocol: str | None


class Refused(NamedTuple):
    """The upgrade is answered with this status and JSON body."""

    status: int
    body: dict[str, Any]


def select_route(body: str, routes: Mapping[str, Route]) -> str | None:
    """`$request.body.action`: the route of that name, else `$default`, else None."""
    try:
        action = json.loads(body)["action"]
    except (ValueError, TypeError, KeyError, RecursionError):
        action = DEFAULT
    if isinstance(action, str) and action in routes and action not in {CONNECT, DISCONNECT}:
        return action
    return DEFAULT if DEFAULT in routes else None


class Router:
    """Calls the routes of one API."""

    def __init__(
        self,
        api: Api,
        routes: Mapping[str, Route],
        *,
        invoker: Invoker,
        counters: Counters,
        rng: random.Random,
        now_ms: Callable[[], int],
        authorizer: Authorizer | None = None,
    ) -> None:
        self._api = api
        self._routes = routes
        self._invoker = invoker
        self._counters = counters
        self._rng = rng
        self._now_ms = now_ms
        self._authorizer = authorizer

    async def admit(self, origin: Origin) -> Admitted | Refused:
        """The authorizer's decision, then `$connect`'s."""
        if self._authorizer:
            context = await self._authorize(self._authorizer, origin)
            if isinstance(context, Denied):
                return self._refused(context.status, origin)
            origin = replace(origin, authorizer=context)
        if CONNECT not in self._routes:
            return Admitted(origin, None)
        event = events.connect_event(self._api, origin, **self._stamp())
        answer = await self._call(CONNECT, event)
        if isinstance(answer, Failure) or not HTTPStatus.OK <= answer.status < _CLIENT_ERROR:
            return self._refused(answer.status, origin)
        return Admitted(origin, answer.headers.get("sec-websocket-protocol"))

    async def message(self, origin: Origin, body: str) -> str | None:
        """What the client is answered: a route response, an error, or nothing."""
        stamp = self._stamp()
        key = select_route(body, self._routes)
        if key is None:
            answer: Success | Failure = Failure(HTTPStatus.FORBIDDEN)
        else:
            event = events.message_event(self._api, origin, key, body, message_id=self.new_id(), **stamp)
            answer = await self._call(key, event)
        if isinstance(answer, Failure):
            return json.dumps(_error(answer.status, origin, stamp["request_id"]))
        return answer.body or None if key and self._routes[key].response else None

    async def disconnect(self, origin: Origin, *, code: int, reason: str) -> None:
        if DISCONNECT in self._routes:
            event = events.disconnect_event(self._api, origin, code=code, reason=reason, **self._stamp())
            await self._call(DISCONNECT, event)

    def new_id(self) -> str:
        return events.new_id(self._rng)

    async def _authorize(self, authorizer: Authorizer, origin: Origin) -> dict[str, Any] | Denied:
        if not has_identity(authorizer, origin):
            return Denied(HTTPStatus.UNAUTHORIZED)
        event = events.authorizer_event(self._api, origin, **self._stamp())
        policy = await self._invoker.call_raw(authorizer.handler, event)
        return denied(policy) if isinstance(policy, Failure) else decide(policy, event["methodArn"])

    async def _call(self, key: str, event: events.Event) -> Success | Failure:
        self._counters.routes[key] += 1
        answer = await self._invoker.call(self._routes[key].handler, event)
        if isinstance(answer, Failure):
            self._counters.route_errors[key] += 1
        return answer

    def _refused(self, status: int, origin: Origin) -> Refused:
        return Refused(status, _error(status, origin, self.new_id()))

    def _stamp(self) -> dict[str, Any]:
        return {"request_id": self.new_id(), "now_ms": self._now_ms()}


def _error(status: int, origin: Origin, request_id: str) -> events.Event:
    return events.error_message(status, connection_id=origin.connection_id, request_id=request_id)
