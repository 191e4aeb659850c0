"""Parses events and clients' messages into typed values. Pure: equal messages give equal requests or rejections.

The request context, which API Gateway writes, is trusted. Everything that a client sends is validated, and a rejection
names the invalid field. Unknown fields are ignored.
"""

import base64
import hashlib
import json
import string
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from gatecast import Broadcast, table
from gatecast.broadcast import MAX_DATA_BYTES, MAX_NAME_LENGTH, field_with_lone_surrogate, utf8_length
from routes.access import NAME, Access, AuthorizerContext, covers, user_room
from routes.responses import Code, RequestRejected

ACTIONS: Final = ("join", "leave", "publish")
MAX_BODY_BYTES: Final = 131_072
"""The longest message that API Gateway accepts from a client (128 KB): longer ones are not parsed."""
SUBPROTOCOL: Final = "gatecast.v1"
MAX_PUBLISHER_LENGTH: Final = 60
"""Longer keys are replaced by a digest, so that at least 39 characters remain for a client's own id."""

_SAFE_IN_PUBLISHER: Final = "".join(sorted(set(string.punctuation) - set("%/")))


class _RequestContext(msgspec.Struct, rename="camel"):
    connection_id: str
    connected_at: int
    request_time_epoch: int
    authorizer: dict[str, Any] | None = None


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The connection that sent an event. Times are milliseconds since the epoch, by API Gateway's clock.

    If `access` is None, no token restricts it.
    """

    connection_id: str
    connected_at_ms: int
    requested_at_ms: int
    user: str | None = None
    access: Access | None = None

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Caller":
        """Raises KeyError or ValueError (msgspec.ValidationError is one) if it is not a WebSocket event.

        The user is `user` of the authorizer's context, and nothing else: `principalId` may be the same for everyone.
        """
        context = msgspec.convert(event["requestContext"], _RequestContext)
        authorizer = AuthorizerContext.from_event(context.authorizer or {})
        return cls(
            connection_id=context.connection_id,
            connected_at_ms=context.connected_at,
            requested_at_ms=context.request_time_epoch,
            user=authorizer.user,
            access=authorizer.access(),
        )

    @property
    def expires_at(self) -> int:
        """When the connection's items expire, in seconds since the epoch; it receives nothing afterwards.

        They expire with its token, or else after API Gateway's maximum connection lifetime.
        """
        closed_at = table.expires_at(self.connected_at_ms)
        return min(closed_at, self.access.expires_at) if self.access else closed_at


class RoomRequest(msgspec.Struct, frozen=True):
    """The body of `join` and `leave`."""

    room: str


class PublishRequest(msgspec.Struct, frozen=True):
    """The body of `publish`. Without `id` one is generated, so that a retry is another broadcast."""

    room: str
    data: str
    id: str | UnsetType = UNSET
    echo: bool = True


class _AnyRequest(msgspec.Struct):
    action: str


_Request = TypeVar("_Request", bound=msgspec.Struct)


def body_of(event: Mapping[str, Any]) -> str | None:
    """The client's message as text; None if there is none. Raises RequestRejected (bad_request).

    API Gateway sends text. Other sources of events may send an object, or text in Base64.
    """
    body = event.get("body")
    if not isinstance(body, str):
        return None if body is None else json.dumps(body)
    if not event.get("isBase64Encoded"):
        return body
    try:
        return base64.b64decode(body, validate=True).decode()
    except ValueError:
        raise RequestRejected(Code.BAD_REQUEST, "the message is not UTF-8 in Base64") from None


def parse(body: str | None, kind: type[_Request]) -> _Request:
    """The client's message as a request of this type. Raises RequestRejected (bad_request, too_large)."""
    text = body or ""
    if utf8_length(text) > MAX_BODY_BYTES:
        raise RequestRejected(Code.TOO_LARGE, f"the message must be at most {MAX_BODY_BYTES:,} bytes")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise RequestRejected(Code.BAD_REQUEST, "the message is not valid UTF-8") from None
    try:
        return msgspec.json.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise RequestRejected(Code.BAD_REQUEST, f"{path.rstrip('`')}: {reason}" if path else reason) from None
    except (msgspec.DecodeError, RecursionError) as error:
        if field := field_with_lone_surrogate(encoded, kind.__struct_encode_fields__):
            raise RequestRejected(Code.BAD_REQUEST, f"{field}: half of a surrogate pair has no UTF-8") from None
        raise RequestRejected(Code.BAD_REQUEST, f"the message is not valid JSON ({error})") from None


def validate_client_room(room: str) -> str:
    """The room, if clients may use it. Raises RequestRejected (bad_request, forbidden_room)."""
    if not NAME.fullmatch(room):
        raise RequestRejected(Code.BAD_REQUEST, f"room: must be 1 to {MAX_NAME_LENGTH} characters from ! to ~")
    if room.startswith("@"):
        raise RequestRejected(Code.FORBIDDEN_ROOM, "room: names that begin with @ are reserved")
    if "*" in room:  # it would look like a grant or a namespace
        raise RequestRejected(Code.FORBIDDEN_ROOM, "room: names that contain * are reserved")
    return room


def check_not_expired(caller: Caller) -> None:
    """Raises RequestRejected (token_expired) from the second in which the caller's token expires."""
    if caller.access and caller.requested_at_ms >= caller.access.expires_at * 1000:
        raise RequestRejected(Code.TOKEN_EXPIRED, "the token has expired: connect again with a new one")


def check_may_join(caller: Caller, room: str) -> None:
    """Raises RequestRejected (token_expired, forbidden_room) if the caller's token does not allow it to join."""
    check_not_expired(caller)
    if caller.access and not covers(caller.access.join, room):
        raise RequestRejected(Code.FORBIDDEN_ROOM, "room: the token does not allow to join it")


def check_may_publish(caller: Caller, room: str) -> None:
    """Raises RequestRejected (token_expired, forbidden_room) if the caller's token does not allow it to publish."""
    check_not_expired(caller)
    if caller.access and not covers(caller.access.publish, room):
        raise RequestRejected(Code.FORBIDDEN_ROOM, "room: the token does not allow to publish to it")


def unknown_action(body: str | None) -> RequestRejected:
    """The rejection of a message that matched no route."""
    try:
        parse(body, _AnyRequest)
    except RequestRejected as rejection:
        return rejection
    return RequestRejected(Code.UNKNOWN_ACTION, f"action: must be one of {', '.join(ACTIONS)}")


def system_rooms(caller: Caller) -> list[str]:
    """The rooms that every connection joins at `$connect`. Raises RequestRejected if the user's name does not fit."""
    if caller.user is None:
        return ["@all"]
    room = user_room(caller.user)
    if room is None:
        available = MAX_NAME_LENGTH - len("@user/")
        raise RequestRejected(Code.BAD_REQUEST, f"user: must be 1 to {available} characters from ! to ~")
    return ["@all", room]


def offered_subprotocols(event: Mapping[str, Any]) -> list[str]:
    """The values of `Sec-WebSocket-Protocol`, in the client's order. One of them may be a token."""
    lines = header_values(event, "sec-websocket-protocol")
    return [offered for line in lines for part in line.split(",") if (offered := part.strip())]


def header_values(event: Mapping[str, Any], lower_name: str) -> list[str]:
    """The values of a header, one per line in which the client sent it. Names of headers are in any case."""
    headers: Mapping[str, Any] = event.get("multiValueHeaders") or event.get("headers") or {}
    values: list[str] = []
    for name, value in headers.items():
        if name.lower() == lower_name:
            values += [value] if isinstance(value, str) else value
    return values


def chosen_subprotocol(event: Mapping[str, Any]) -> str | None:
    """The subprotocol that `$connect` returns: the supported one, if the client offers it.

    It never echoes another offer, which may be a token. Browsers fail a connection if none of their offers is accepted.
    """
    return SUBPROTOCOL if SUBPROTOCOL in offered_subprotocols(event) else None


def to_broadcast(request: PublishRequest, caller: Caller, *, generated_id: str) -> Broadcast:
    """The broadcast that a member's request publishes. Raises RequestRejected (bad_request, too_large)."""
    room = validate_client_room(request.room)
    if not request.data:
        raise RequestRejected(Code.BAD_REQUEST, "data: must not be empty")
    if utf8_length(request.data) > MAX_DATA_BYTES:
        raise RequestRejected(Code.TOO_LARGE, f"data: must be at most {MAX_DATA_BYTES:,} bytes in UTF-8")
    publisher = publisher_key(caller)
    own_id = generated_id if isinstance(request.id, UnsetType) else request.id
    broadcast_id = f"{publisher}/{own_id}"
    if not own_id or not NAME.fullmatch(broadcast_id):
        available = MAX_NAME_LENGTH - len(publisher) - 1
        raise RequestRejected(Code.BAD_REQUEST, f"id: must be 1 to {available} characters from ! to ~")
    return Broadcast(
        id=broadcast_id,
        room=room,
        data=request.data,
        except_=UNSET if request.echo else (caller.connection_id,),
        published_at_ms=caller.requested_at_ms,
    )


def publisher_key(caller: Caller) -> str:
    """The namespace of a publisher's ids: `@` and the user, or the connection id; at most 60 characters, no slash.

    No two publishers share a key: a connection id never begins with `@`, and as `%` and `/` are percent-encoded, only
    a digest's key begins with `%sha256:`.
    """
    publisher = f"@{caller.user}" if caller.user else caller.connection_id
    key = quote(publisher, safe=_SAFE_IN_PUBLISHER)
    if len(key) <= MAX_PUBLISHER_LENGTH:
        return key
    return f"%sha256:{hashlib.sha256(publisher.encode()).hexdigest()[:40]}"
