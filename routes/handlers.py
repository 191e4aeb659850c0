"""The functions that API Gateway's routes invoke: `connect`, `disconnect`, `default`, `join`, `leave`, `publish`.

Each takes the event of a Lambda proxy integration and always answers: nothing that a client sends, and nothing that a
dependency does, ends in an exception. Logs name what failed, never what was sent.
"""

import uuid
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, Final

from gatecast import tracing
from routes import answers, dependencies, environment
from routes.answers import Answer, Code, Refused
from routes.environment import ConfigurationError
from routes.log import Handler, lambda_handler, log_failure
from routes.metrics import measured
from routes.requests import (
    Caller,
    PublishRequest,
    RoomRequest,
    broadcast_of,
    chosen_subprotocol,
    read,
    refuse_expired,
    refuse_join,
    refuse_publish,
    room_for_clients,
    system_rooms,
    why_unknown,
)

Event = dict[str, Any]

_STATUSES: Final = {Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE, Code.TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED}
"""What `$connect` answers; any other code is a 400."""


def _answers_client(action: str) -> Callable[[Callable[[Caller, str | None], Mapping[str, str]]], Handler]:
    """Makes a message route's handler of a function from caller and text to the fields of an ok answer."""

    def decorate(route: Callable[[Caller, str | None], Mapping[str, str]]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Answer:
            with measured(action or "$default") as invocation:
                try:
                    return answers.ok(action, route(_caller(event), event.get("body")))
                except Refused as refused:
                    if refused.code is Code.UNAVAILABLE:
                        invocation.failed()
                        log_failure("route.failed", refused, action=action)
                    else:
                        invocation.rejected()
                    return answers.error(action, refused)
                except Exception as error:  # noqa: BLE001 - the client is answered, whatever happened
                    invocation.failed()
                    log_failure("route.failed", error, action=action)
                    return answers.error(action, Refused(Code.UNAVAILABLE, "not now: try again"))

        return lambda_handler(handle)

    return decorate


def _answers_gateway(action: str) -> Callable[[Callable[[Event], Mapping[str, str] | None]], Handler]:
    """Makes the handler of `$connect` or `$disconnect` of a function from event to the headers of the answer."""

    def decorate(route: Callable[[Event], Mapping[str, str] | None]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Answer:
            with measured(action) as invocation:
                try:
                    return answers.status(HTTPStatus.OK, route(event))
                except Exception as error:  # noqa: BLE001 - as above
                    log_failure("route.failed", error, action=action)
                    code = error.code if isinstance(error, Refused) else Code.UNAVAILABLE
                    if code is Code.UNAVAILABLE:
                        invocation.failed()
                    else:
                        invocation.rejected()
                    return answers.status(_STATUSES.get(code, HTTPStatus.BAD_REQUEST))

        return lambda_handler(handle)

    return decorate


@_answers_gateway("$connect")
def connect(event: Event) -> Mapping[str, str] | None:
    """Lets a client in as a member of `@all` and, where its user is known, of `@user/{user}`.

    A user whose name fits in no room's is refused with 400, a token that expired on the way with 401, and a client that
    cannot be written down now, or that no authorizer let in though one is demanded, with 503.
    """
    caller = _caller(event)
    refuse_expired(caller)
    dependencies.memberships().connect(caller, system_rooms(caller))
    subprotocol = chosen_subprotocol(event)
    return {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else None


@_answers_gateway("$disconnect")
def disconnect(event: Event) -> None:
    """Forgets the connection. API Gateway may never ask for it: expiry and the worker clean up, too."""
    dependencies.memberships().disconnect(Caller.of(event).connection_id)


@_answers_client("join")
def join(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "join", "room": "lobby"}`: from now on the client receives what is broadcast to the room."""
    room = room_for_clients(read(body, RoomRequest).room)
    refuse_join(caller, room)
    dependencies.limits().count("join", caller)
    dependencies.memberships().join(caller, room)
    return {"room": room}


@_answers_client("leave")
def leave(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "leave", "room": "lobby"}`: ok as well where it was no member, and whatever its token says."""
    room = room_for_clients(read(body, RoomRequest).room)
    dependencies.memberships().leave(caller, room)
    return {"room": room}


@_answers_client("publish")
def publish(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "publish", "room": "lobby", "data": "…", "id": "optional", "echo": false}`.

    Ok means that SQS has stored the broadcast; the answer carries its `id`, which is the publisher and the client's id.
    """
    broadcast = broadcast_of(read(body, PublishRequest), caller, made_up_id=uuid.uuid4().hex)
    room = str(broadcast.room)
    refuse_publish(caller, room)
    dependencies.limits().count("publish", caller)
    if not dependencies.memberships().is_member(caller, room):
        raise Refused(Code.NOT_A_MEMBER, "room: join it before you publish to it")
    publisher = dependencies.publisher()
    with tracing.publishing(gatecast_id=broadcast.id):
        publisher.publish(broadcast)
    tracing.flush()  # Lambda stops the process when it has answered
    return {"room": room, "id": broadcast.id}


@_answers_client("")
def default(_caller: Caller, body: str | None) -> Mapping[str, str]:
    """Whatever names no action that this API has."""
    raise why_unknown(body)


def _caller(event: Event) -> Caller:
    """Raises ConfigurationError for a connection that came in past the authorizer."""
    caller = Caller.of(event)
    if caller.access is None and not environment.open_access():
        raise ConfigurationError(
            "no authorizer has said what this connection may do: attach the authorizer to $connect,"
            f" or set GATECAST_AUTHORIZER to {environment.OPEN_ACCESS!r}"
        )
    return caller
