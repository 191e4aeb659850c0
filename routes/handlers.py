"""The functions that API Gateway's routes invoke: `connect`, `disconnect`, `default`, `join`, `leave`, `publish`.

Each takes the event of a Lambda proxy integration and always answers: nothing that a client sends, and nothing that a
dependency does, ends in an exception. Logs name what failed, never what was sent.
"""

import traceback
import uuid
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

from routes import answers, dependencies
from routes.answers import Answer, Code, Refused
from routes.dependencies import ConfigurationError
from routes.requests import (
    Caller,
    PublishRequest,
    RoomRequest,
    broadcast_of,
    offered_subprotocol,
    read,
    room_for_clients,
    system_rooms,
    why_unknown,
)

Event = dict[str, Any]
Handler = Callable[[Event, Any], Answer]

_HERE: Final = Path(__file__).parent
logger: Final = Logger(service="gatecast-routes")


def _lambda_handler(handler: Handler) -> Handler:
    # said here, because an environment variable can switch it on: an event holds what clients sent, tokens included
    injected: Handler = logger.inject_lambda_context(handler, log_event=False)
    return injected


def _answers_client(action: str) -> Callable[[Callable[[Caller, str | None], Mapping[str, str]]], Handler]:
    """Makes a message route's handler of a function from caller and text to the fields of an ok answer."""

    def decorate(route: Callable[[Caller, str | None], Mapping[str, str]]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Answer:
            try:
                return answers.ok(action, route(Caller.of(event), event.get("body")))
            except Refused as refused:
                if refused.code is Code.UNAVAILABLE:
                    _log_failure(action, refused)
                return answers.error(action, refused)
            except Exception as error:  # noqa: BLE001 - the client is answered, whatever happened
                _log_failure(action, error)
                return answers.error(action, Refused(Code.UNAVAILABLE, "not now: try again"))

        return _lambda_handler(handle)

    return decorate


def _answers_gateway(action: str) -> Callable[[Callable[[Event], Mapping[str, str] | None]], Handler]:
    """Makes the handler of `$connect` or `$disconnect` of a function from event to the headers of the answer."""

    def decorate(route: Callable[[Event], Mapping[str, str] | None]) -> Handler:
        @wraps(route)
        def handle(event: Event, _context: Any) -> Answer:
            try:
                return answers.status(HTTPStatus.OK, route(event))
            except Exception as error:  # noqa: BLE001 - as above
                _log_failure(action, error)
                refused = isinstance(error, Refused) and error.code is not Code.UNAVAILABLE
                return answers.status(HTTPStatus.BAD_REQUEST if refused else HTTPStatus.SERVICE_UNAVAILABLE)

        return _lambda_handler(handle)

    return decorate


@_answers_gateway("$connect")
def connect(event: Event) -> Mapping[str, str] | None:
    """Lets a client in as a member of `@all` and, where its user is known, of `@user/{user}`.

    A user whose name fits in no room's is refused with 400, a client that cannot be written down now with 503.
    """
    caller = Caller.of(event)
    dependencies.memberships().connect(caller, system_rooms(caller))
    subprotocol = offered_subprotocol(event.get("headers"))
    return {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else None


@_answers_gateway("$disconnect")
def disconnect(event: Event) -> None:
    """Forgets the connection. API Gateway may never ask for it: expiry and the worker clean up, too."""
    dependencies.memberships().disconnect(Caller.of(event).connection_id)


@_answers_client("join")
def join(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "join", "room": "lobby"}`: from now on the client receives what is broadcast to the room."""
    room = room_for_clients(read(body, RoomRequest).room)
    dependencies.memberships().join(caller, room)
    return {"room": room}


@_answers_client("leave")
def leave(caller: Caller, body: str | None) -> Mapping[str, str]:
    """`{"action": "leave", "room": "lobby"}`: ok as well where the client was no member."""
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
    if not dependencies.memberships().is_member(caller, room):
        raise Refused(Code.NOT_A_MEMBER, "room: join it before you publish to it")
    dependencies.publisher().publish(broadcast)
    return {"room": room, "id": broadcast.id}


@_answers_client("")
def default(_caller: Caller, body: str | None) -> Mapping[str, str]:
    """Whatever names no action that this API has."""
    raise why_unknown(body)


def _log_failure(action: str, error: Exception) -> None:
    """One line that tells what failed and where, without the messages of others, which may quote what was sent."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == _HERE]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    details = {"action": action, "error": type(error).__name__, "where": where}
    match error:
        case ClientError():
            details |= {"code": error.response["Error"]["Code"], "operation": error.operation_name}
        case Refused() | ConfigurationError():
            details["reason"] = str(error)
    logger.error("route.failed", extra=details)
