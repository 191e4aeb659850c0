"""The operations of clients with a token: what its grants allow, and no more than over the WebSocket.

Publishing needs the grant `publish`. As there is no connection, there is no membership either: reading needs the grant
`join`, except for the rooms of the system that the user is in. The rate limits are those of the user's connections,
and count both together.
"""

import uuid
from http import HTTPStatus
from typing import Final

import msgspec

from gatecast import tracing
from gatecast.rooms.names import system_rooms
from routes import dependencies, reading
from routes.http import messages
from routes.http.problems import response, unsupported
from routes.http.reads import page_of
from routes.http.request import Request
from routes.http.routing import Operation
from routes.publishing import PublishRequest, to_broadcast
from routes.requests import (
    Caller,
    check_may_join,
    check_may_publish,
    check_not_expired,
    validate_readable_room,
)
from routes.responses import Response


def publish_to_room(request: Request, caller: Caller, room: str) -> Response:
    """All members of the room receive the body, as a message from the user."""
    request.check_query()
    message = messages.message_in(request)
    if "payload" in message.payload:
        raise unsupported("the Content-Type must be application/json or text/…: only backends publish others")
    asked = msgspec.structs.replace(PublishRequest(room=room), **message.payload)
    if message.id is not None:
        asked = msgspec.structs.replace(asked, id=message.id)
    broadcast = to_broadcast(asked, caller, generated_id=uuid.uuid4().hex)
    check_may_publish(caller, room)
    dependencies.limits().count("publish", caller)
    publisher = dependencies.publisher()
    with tracing.publishing(gatecast_id=broadcast.id):
        publisher.publish(broadcast)
    tracing.flush()  # Lambda freezes the process once the handler has returned
    return response(HTTPStatus.ACCEPTED, {"id": broadcast.id})


def room(request: Request, caller: Caller, room: str) -> Response:
    """How many members the room has."""
    request.check_query()
    return response(HTTPStatus.OK, reading.count_of(_readable(caller, room)))


def room_messages(request: Request, caller: Caller, room: str) -> Response:
    """The room's history after an offset."""
    page = page_of(request)
    return response(HTTPStatus.OK, reading.messages_of(_readable(caller, room), page.since, page.limit))


def room_members(request: Request, caller: Caller, room: str) -> Response:
    """The users who are present in the room."""
    request.check_query("after")
    return response(HTTPStatus.OK, reading.users_of(_readable(caller, room), request.query.get("after") or None))


OPERATIONS: Final = (
    Operation("POST", "/client/rooms/{room}/messages", "publish_to_room", publish_to_room),
    Operation("GET", "/client/rooms/{room}/messages", "room_messages", room_messages),
    Operation("GET", "/client/rooms/{room}/members", "room_members", room_members),
    Operation("GET", "/client/rooms/{room}", "room", room),
)


def _readable(caller: Caller, name: str) -> str:
    """The room, after the request was counted, if the token allows to read it. Raises RequestRejected."""
    room = validate_readable_room(name, caller)
    check_not_expired(caller)
    if room not in system_rooms(caller.user):
        check_may_join(caller, room)
    dependencies.limits().count("read", caller)
    return room
