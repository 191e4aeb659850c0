"""The functions that API Gateway's routes invoke: `connect`, `disconnect`, `default`, and one for each action.

Each takes the event of a Lambda proxy integration and always returns a response: nothing that a client sends, and no
failure of a dependency, raises an exception. Other events, such as those that keep functions warm, are ignored. Logs
name what failed, never what a client sent.
"""

import uuid
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import UNSET

from gatecast import tracing
from gatecast.rooms.names import system_rooms, validate_client_room
from routes import dependencies, environment, join_results, reading, responses
from routes.environment import ConfigurationError
from routes.joins import parse_join
from routes.log import Handler, lambda_handler, log_failure
from routes.metrics import record_invocation
from routes.publishing import PublishRequest, to_broadcast
from routes.requests import (
    Caller,
    HistoryRequest,
    MembersRequest,
    RoomRequest,
    body_of,
    check_may_publish,
    check_not_expired,
    parse,
    ref_of,
    unknown_action,
    validate_readable_room,
)
from routes.responses import Code, Ref, RequestRejected, Response
from routes.subprotocols import chosen_dialect, chosen_subprotocol

Event = dict[str, Any]
Fields = Mapping[str, Any]
"""What a route adds to its response."""

_STATUSES: Final = {Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE, Code.TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED}
"""The status of a rejected `$connect`, by code; any other code is a 400."""


def _message_route(
    action: str, respond: Callable[[str, Fields, Ref], Response] = responses.ok
) -> Callable[[Callable[[Caller, str | None], Fields]], Handler]:
    """Turns a function from caller and body to the fields of an ok response into a message route's handler."""

    def decorate(route: Callable[[Caller, str | None], Fields]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Response:
            ref: Ref = UNSET
            with record_invocation(action or "$default") as invocation:
                try:
                    body = body_of(event)
                    ref = ref_of(body)
                    return respond(action, route(_caller(event), body), ref)
                except RequestRejected as rejection:
                    if rejection.code is Code.UNAVAILABLE:
                        invocation.failed()
                        log_failure("route.failed", rejection, action=action)
                    else:
                        invocation.rejected()
                        _count_rejection(event)
                    return responses.error(action, rejection, ref)
                except Exception as error:  # noqa: BLE001 - the client always gets a response
                    invocation.failed()
                    log_failure("route.failed", error, action=action)
                    unavailable = RequestRejected(Code.UNAVAILABLE, "temporarily unavailable: retry")
                    return responses.error(action, unavailable, ref)

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
    caller = msgspec.structs.replace(_caller(event), frames=chosen_dialect(event))
    check_not_expired(caller)
    dependencies.memberships().connect(caller, system_rooms(caller.user))
    subprotocol = chosen_subprotocol(event)
    return {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else None


@_lifecycle_route("$disconnect")
def disconnect(event: Event) -> None:
    """Removes the connection. API Gateway does not guarantee this call: expiry and the worker clean up, too."""
    dependencies.memberships().disconnect(Caller.from_event(event).connection_id)


@_message_route("join")
def join(caller: Caller, body: str | None) -> Fields:
    """`{"action": "join", "room": "lobby", "since": 7}`: from now on the client receives the room's broadcasts.

    In a room with history it also receives what it missed. Up to 25 rooms are joined with `rooms` in place of `room`.
    """
    request = parse_join(body, caller)
    caller = msgspec.structs.replace(caller, frames=request.frames)
    dependencies.limits().count("join", caller)
    results = join_results.join(caller, request)
    about = {"connection": caller.connection_id, "expires_at_ms": caller.ends_at_ms}
    if request.is_list:
        return {**about, "rooms": [join_results.fields(room, result) for room, result in results.items()]}
    ((room, result),) = results.items()
    if isinstance(result, RequestRejected):
        raise result
    return {**join_results.fields(room, result), **about}


@_message_route("leave")
def leave(caller: Caller, body: str | None) -> Fields:
    """`{"action": "leave", "room": "lobby"}`: ok even if the client is not a member; independent of its token."""
    room = validate_client_room(parse(body, RoomRequest).room)
    dependencies.limits().count("leave", caller)
    dependencies.memberships().leave(caller, room)
    return {"room": room}


@_message_route("publish")
def publish(caller: Caller, body: str | None) -> Fields:
    """`{"action": "publish", "room": "lobby", "data": "…", "id": "optional", "echo": false}`, or `json` for `data`.

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


@_message_route("history")
def history(caller: Caller, body: str | None) -> Fields:
    """`{"action": "history", "room": "lobby", "since": 7, "limit": 100}`: a member's messages after an offset."""
    request = parse(body, HistoryRequest)
    request.check()
    return reading.messages_of(_readable_room(caller, request.room), request.since, request.limit)


@_message_route("members")
def members(caller: Caller, body: str | None) -> Fields:
    """`{"action": "members", "room": "lobby", "after": "optional"}`: a page of the users who are in the room."""
    request = parse(body, MembersRequest)
    return reading.users_of(_readable_room(caller, request.room), request.after or None)


@_message_route("count")
def count(caller: Caller, body: str | None) -> Fields:
    """`{"action": "count", "room": "lobby"}`: how many connections are members, and when they were counted."""
    return reading.count_of(_readable_room(caller, parse(body, RoomRequest).room))


@_message_route("ping", responses.pong)
def ping(_caller: Caller, _body: str | None) -> Fields:
    """`{"action": "ping"}`: keeps the connection open. Not limited: a counter would cost more than the response."""
    return {}


@_message_route("")
def default(_caller: Caller, body: str | None) -> Fields:
    """Rejects a message that names no known action."""
    raise unknown_action(body)


def _readable_room(caller: Caller, name: str) -> str:
    """The room, after the request was counted, if the caller is in it. Raises RequestRejected."""
    room = validate_readable_room(name, caller)
    check_not_expired(caller)
    dependencies.limits().count("read", caller)
    if not dependencies.memberships().is_member(caller, room):
        raise RequestRejected(Code.NOT_A_MEMBER, "room: only its members can read what is in it: join it first")
    return room


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
