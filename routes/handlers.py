"""The functions that API Gateway's routes invoke: `connect`, `disconnect`, `default`, `join`, `leave`, `publish`.

Each takes the event of a Lambda proxy integration and always returns a response: nothing that a client sends, and no
failure of a dependency, raises an exception. Other events, such as those that keep functions warm, are ignored. Logs
name what failed, never what a client sent.
"""

import uuid
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, Final

from gatecast import tracing
from routes import dependencies, environment, responses
from routes.environment import ConfigurationError
from routes.log import Handler, lambda_handler, log_failure
from routes.metrics import record_invocation
from routes.requests import (
    Caller,
    PublishRequest,
    RoomRequest,
    body_of,
    check_may_join,
    check_may_publish,
    check_not_expired,
    chosen_subprotocol,
    parse,
    system_rooms,
    to_broadcast,
    unknown_action,
    validate_client_room,
)
from routes.responses import Code, RequestRejected, Response

Event = dict[str, Any]

_STATUSES: Final = {Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE, Code.TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED}
"""The status of a rejected `$connect`, by code; any other code is a 400."""


def _message_route(action: str) -> Callable[[Callable[[Caller, str | None], Mapping[str, str]]], Handler]:
    """Turns a function from caller and body to the fields of an ok response into a message route's handler."""

    def decorate(route: Callable[[Caller, str | None], Mapping[str, str]]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Response:
            with record_invocation(action or "$default") as invocation:
                try:
                    return responses.ok(action, route(_caller(event), body_of(event)))
                except RequestRejected as rejection:
                    if rejection.code is Code.UNAVAILABLE:
                        invocation.failed()
                        log_failure("route.failed", rejection, action=action)
                    else:
                        invocation.rejected()
                        _count_rejection(event)
                    return responses.error(action, rejection)
                except Exception as error:  # noqa: BLE001 - the client always gets a response
                    invocation.failed()
                    log_failure("route.failed", error, action=action)
                    return responses.error(action, RequestRejected(Code.UNAVAILABLE, "temporarily unavailable: retry"))

        return lambda_handler(handle)

    return decorate


def _lifecycle_route(action: str) -> Callable[[Callable[[Event], Mapping[str, str] | None]], Handler]:
    """Turns a function from event to response headers into the handler of `$connect` or `$disconnect`."""

    def decorate(route: Callable[[Event], Mapping[str, str] | None]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Response:
            with record_invocation(action) as invocation:
                try:
                    return responses.status(HTTPStatus.OK, route(event))
                except Exception as error:  # noqa: BLE001 - as above
                    log_failure("route.failed", error, action=action)
                    code = error.code if isinstance(error, RequestRejected) else Code.UNAVAILABLE
                    if code is Code.UNAVAILABLE:
                        invocation.failed()
                    else:
                        invocation.rejected()
                    return responses.status(_STATUSES.get(code, HTTPStatus.BAD_REQUEST))

        return lambda_handler(handle)

    return decorate


@_lifecycle_route("$connect")
def connect(event: Event) -> Mapping[str, str] | None:
    """Accepts a client as a member of `@all` and, if its user is known, of `@user/{user}`.

    The status is 400 if the user's name does not fit in a room's name, 401 if the token has expired in the meantime,
    and 503 if the connection cannot be written, or if an authorizer is required and none has admitted the client.
    """
    caller = _caller(event)
    check_not_expired(caller)
    dependencies.memberships().connect(caller, system_rooms(caller))
    subprotocol = chosen_subprotocol(event)
    return {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else None


@_lifecycle_route("$disconnect")
def disconnect(event: Event) -> None:
    """Removes the connection. API Gateway does not guarantee this call: expiry and the worker clean up, too."""
    dependencies.memberships().disconnect(Caller.from_event(event).connection_id)


@_message_route("join")
def join(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "join", "room": "lobby"}`: from now on the client receives the room's broadcasts."""
    room = validate_client_room(parse(body, RoomRequest).room)
    check_may_join(caller, room)
    dependencies.limits().count("join", caller)
    dependencies.memberships().join(caller, room)
    return {"room": room}


@_message_route("leave")
def leave(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "leave", "room": "lobby"}`: ok even if the client is not a member; independent of its token."""
    room = validate_client_room(parse(body, RoomRequest).room)
    dependencies.limits().count("leave", caller)
    dependencies.memberships().leave(caller, room)
    return {"room": room}


@_message_route("publish")
def publish(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "publish", "room": "lobby", "data": "…", "id": "optional", "echo": false}`.

    Ok means that SQS has stored the broadcast. The response has its `id`: the publisher's key, `/` and the client's id.
    """
    broadcast = to_broadcast(parse(body, PublishRequest), caller, generated_id=uuid.uuid4().hex)
    room = str(broadcast.room)
    check_may_publish(caller, room)
    dependencies.limits().count("publish", caller)
    if not dependencies.memberships().is_member(caller, room):
        raise RequestRejected(Code.NOT_A_MEMBER, "room: join it before you publish to it")
    publisher = dependencies.publisher()
    with tracing.publishing(gatecast_id=broadcast.id):
        publisher.publish(broadcast)
    tracing.flush()  # Lambda freezes the process once the handler has returned
    return {"room": room, "id": broadcast.id}


@_message_route("")
def default(_caller: Caller, body: str | None) -> Mapping[str, str]:
    """Rejects a message that names no known action."""
    raise unknown_action(body)


def _count_rejection(event: Event) -> None:
    try:
        if rejections := dependencies.rejections():
            rejections.count(Caller.from_event(event))
    except Exception as error:  # noqa: BLE001 - the client gets its response even if nobody counts
        log_failure("rejection.not_counted", error)


def _caller(event: Event) -> Caller:
    """Raises ConfigurationError if an authorizer is required and none has admitted the connection."""
    caller = Caller.from_event(event)
    if caller.access is None and not environment.open_access():
        raise ConfigurationError(
            "no authorizer has granted this connection access: attach the authorizer to $connect,"
            f" or set GATECAST_AUTHORIZER to {environment.OPEN_ACCESS!r}"
        )
    return caller
