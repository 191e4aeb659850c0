"""The routes of a WebSocket API: selects an event's route, and determines what the client receives.

Every failure of a handler becomes a status or an error message here, never an exception. `$connect` and `$disconnect`
are never selected by a message and never fall back to `$default`.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from gatecast.emulator import events
from gatecast.emulator.authorizer import Authorizer, Denied, decide, denied, has_identity
from gatecast.emulator.clock import Clock
from gatecast.emulator.counters import Counters
from gatecast.emulator.events import Api, ConnectionInfo
from gatecast.emulator.integration import Failure, Invoker, Mock, Route, Success
from gatecast.emulator.selection import ACTION, Selection

CONNECT: Final = "$connect"
DISCONNECT: Final = "$disconnect"
DEFAULT: Final = "$default"

_CLIENT_ERROR: Final = 300


class UpgradeAccepted(NamedTuple):
    """The upgrade is accepted; `info` has the authorizer's context, `protocol` is the one that `$connect` chose."""

    info: ConnectionInfo
    protocol: str | None


class UpgradeRejected(NamedTuple):
    """The upgrade is rejected with this status and JSON body."""

    status: int
    body: dict[str, Any]


def select_route(body: str, routes: Mapping[str, Route], selection: Selection = ACTION) -> str | None:
    """The route whose key the expression yields, else `$default`, else None."""
    key = selection.key(body)
    if key in routes and key not in {CONNECT, DISCONNECT}:
        return key
    return DEFAULT if DEFAULT in routes else None


class Router:
    """Invokes the routes of one API."""

    def __init__(
        self,
        api: Api,
        routes: Mapping[str, Route],
        *,
        selection: Selection,
        invoker: Invoker,
        counters: Counters,
        rng: random.Random,
        clock: Clock,
        authorizer: Authorizer | None = None,
    ) -> None:
        self._api = api
        self._routes = routes
        self._selection = selection
        self._invoker = invoker
        self._counters = counters
        self._rng = rng
        self._clock = clock
        self._authorizer = authorizer

    async def admit(self, info: ConnectionInfo) -> UpgradeAccepted | UpgradeRejected:
        """Invokes the authorizer, then `$connect`: whether the upgrade is accepted."""
        if self._authorizer:
            context = await self._authorize(self._authorizer, info)
            if isinstance(context, Denied):
                return self._reject(context.status, info)
            info = replace(info, authorizer=context)
        if CONNECT not in self._routes:
            return UpgradeAccepted(info, None)
        event = events.connect_event(self._api, info, **self._stamp())
        result = await self._invoke(CONNECT, event)
        if isinstance(result, Failure) or not HTTPStatus.OK <= result.status < _CLIENT_ERROR:
            return self._reject(result.status, info)
        return UpgradeAccepted(info, result.headers.get("sec-websocket-protocol"))

    async def message(self, info: ConnectionInfo, body: str) -> str | None:
        """Invokes the message's route. Returns a route response, an error message, or None."""
        stamp = self._stamp()
        key = select_route(body, self._routes, self._selection)
        if key is None:
            result: Success | Failure = Failure(HTTPStatus.FORBIDDEN)
        else:
            event = events.message_event(self._api, info, key, body, message_id=self.new_id(), **stamp)
            result = await self._invoke(key, event)
        if isinstance(result, Failure):
            return json.dumps(_error(result.status, info, stamp["request_id"]))
        return result.body or None if key and self._routes[key].response else None

    async def disconnect(self, info: ConnectionInfo, *, code: int, reason: str) -> None:
        if DISCONNECT in self._routes:
            event = events.disconnect_event(self._api, info, code=code, reason=reason, **self._stamp())
            await self._invoke(DISCONNECT, event)

    def new_id(self) -> str:
        return events.new_id(self._rng)

    async def _authorize(self, authorizer: Authorizer, info: ConnectionInfo) -> dict[str, Any] | Denied:
        if not has_identity(authorizer, info):
            return Denied(HTTPStatus.UNAUTHORIZED)
        event = events.authorizer_event(self._api, info, **self._stamp())
        policy = await self._invoker.invoke_raw(authorizer.handler, event)
        return denied(policy) if isinstance(policy, Failure) else decide(policy, event["methodArn"])

    async def _invoke(self, key: str, event: events.Event) -> Success | Failure:
        integration = self._routes[key].integration
        if isinstance(integration, Mock):
            self._counters.mocks[key] += 1
            return Success(HTTPStatus.OK, {}, integration.respond(event.get("body", "")))
        self._counters.routes[key] += 1
        result = await self._invoker.invoke(integration, event)
        if isinstance(result, Failure):
            self._counters.route_errors[key] += 1
        return result

    def _reject(self, status: int, info: ConnectionInfo) -> UpgradeRejected:
        return UpgradeRejected(status, _error(status, info, self.new_id()))

    def _stamp(self) -> dict[str, Any]:
        return {"request_id": self.new_id(), "now_ms": self._clock.now_ms()}


def _error(status: int, info: ConnectionInfo, request_id: str) -> events.Event:
    return events.error_message(status, connection_id=info.connection_id, request_id=request_id)
