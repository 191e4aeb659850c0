"""Events and clients' texts as typed values. Pure: the same text always gives the same request or refusal.

What API Gateway wrote (the request context) is believed; what a client wrote is checked, and every refusal names the
field at fault. Fields that are not known here are ignored.
"""

import hashlib
import string
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from gatecast import Broadcast, table
from gatecast.broadcast import MAX_DATA_BYTES, MAX_NAME_LENGTH, field_with_lone_surrogate, utf8_length
from routes.access import NAME, Access, AuthorizerContext, covers, user_room
from routes.answers import Code, Refused

ACTIONS: Final = ("join", "leave", "publish")
MAX_BODY_BYTES: Final = 131_072
"""The longest message that API Gateway takes from a client (128 KB): nothing longer is looked into."""
SUBPROTOCOL: Final = "gatecast.v1"
MAX_PUBLISHER_LENGTH: Final = 60
"""Longer ones are replaced by a digest, so that at least 39 characters are left for a client's own id."""

_KEPT_IN_PUBLISHER: Final = "".join(sorted(set(string.punctuation) - set("%/")))


class _RequestContext(msgspec.Struct, rename="camel"):
    connection_id: str
    connected_at: int
    request_time_epoch: int
    authorizer: AuthorizerContext | None = None


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The connection that an event is about. Times are milliseconds since the epoch, by API Gateway's clock.

    Without `access` no token limits what it may do.
    """

    connection_id: str
    connected_at_ms: int
    requested_at_ms: int
    user: str | None = None
    access: Access | None = None

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> "Caller":
        """Raises KeyError or ValueError (msgspec.ValidationError is one) if the event is not a WebSocket event.

        The user is what the authorizer called `user` in its context, or else its `principalId`.
        """
        context = msgspec.convert(event["requestContext"], _RequestContext)
        authorizer = context.authorizer or AuthorizerContext()
        return cls(
            connection_id=context.connection_id,
            connected_at_ms=context.connected_at,
            requested_at_ms=context.request_time_epoch,
            user=authorizer.user or authorizer.principal_id or None,
            access=authorizer.access(),
        )

    @property
    def expires_at(self) -> int:
        """When all that is written down of the connection expires, in seconds since the epoch.

        That is with its token, or else when API Gateway has closed it in any case. After that it receives nothing more.
        """
        closed_at = table.expires_at(self.connected_at_ms)
        return min(closed_at, self.access.expires_at) if self.access else closed_at


class RoomRequest(msgspec.Struct, frozen=True):
    """The body of `join` and `leave`."""

    room: str


class PublishRequest(msgspec.Struct, frozen=True):
    """The body of `publish`. Without `id` one is made up, and a repetition is a second broadcast."""

    room: str
    data: str
    id: str | UnsetType = UNSET
    echo: bool = True


class _AnyRequest(msgspec.Struct):
    action: str


_Request = TypeVar("_Request", bound=msgspec.Struct)


def read(body: str | None, kind: type[_Request]) -> _Request:
    """The client's text as a request of this kind. Raises Refused (bad_request, too_large)."""
    text = body or ""
    if utf8_length(text) > MAX_BODY_BYTES:
        raise Refused(Code.TOO_LARGE, f"the message must be at most {MAX_BODY_BYTES:,} bytes")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise Refused(Code.BAD_REQUEST, "the message is not valid UTF-8") from None
    try:
        return msgspec.json.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise Refused(Code.BAD_REQUEST, f"{path.rstrip('`')}: {reason}" if path else reason) from None
    except (msgspec.DecodeError, RecursionError) as error:
        if field := field_with_lone_surrogate(encoded, kind.__struct_encode_fields__):
            raise Refused(Code.BAD_REQUEST, f"{field}: half of a surrogate pair has no UTF-8") from None
        raise Refused(Code.BAD_REQUEST, f"the message is not valid JSON ({error})") from None


def room_for_clients(room: str) -> str:
    """The room, if it may be a client's. Raises Refused (bad_request, forbidden_room)."""
    if not NAME.fullmatch(room):
        raise Refused(Code.BAD_REQUEST, f"room: must be 1 to {MAX_NAME_LENGTH} characters from ! to ~")
    if room.startswith("@"):
        raise Refused(Code.FORBIDDEN_ROOM, "room: names that begin with @ are reserved")
    return room


def refuse_expired(caller: Caller) -> None:
    """Raises Refused (token_expired) from the second on in which the token's time is up."""
    if caller.access and caller.requested_at_ms >= caller.access.expires_at * 1000:
        raise Refused(Code.TOKEN_EXPIRED, "the token has expired: connect again with a new one")


def refuse_join(caller: Caller, room: str) -> None:
    """Raises Refused (token_expired, forbidden_room) if the caller's token does not let it join the room."""
    refuse_expired(caller)
    if caller.access and not covers(caller.access.join, room):
        raise Refused(Code.FORBIDDEN_ROOM, "room: the token does not allow to join it")


def refuse_publish(caller: Caller, room: str) -> None:
    """Raises Refused (token_expired, forbidden_room) if the caller's token does not let it publish to the room."""
    refuse_expired(caller)
    if caller.access and not covers(caller.access.publish, room):
        raise Refused(Code.FORBIDDEN_ROOM, "room: the token does not allow to publish to it")


def why_unknown(body: str | None) -> Refused:
    """Why no route took this text."""
    try:
        read(body, _AnyRequest)
    except Refused as refused:
        return refused
    return Refused(Code.UNKNOWN_ACTION, f"action: must be one of {', '.join(ACTIONS)}")


def system_rooms(caller: Caller) -> list[str]:
    """The rooms that a connection is in from the start. Raises Refused if the user's name fits in no room's."""
    if caller.user is None:
        return ["@all"]
    room = user_room(caller.user)
    if room is None:
        longest = MAX_NAME_LENGTH - len("@user/")
        raise Refused(Code.BAD_REQUEST, f"user: must be 1 to {longest} characters from ! to ~")
    return ["@all", room]


def offered_subprotocols(event: Mapping[str, Any]) -> list[str]:
    """What a client offers in `Sec-WebSocket-Protocol`, in its order. A token may be among it."""
    headers: Mapping[str, Any] = event.get("multiValueHeaders") or event.get("headers") or {}
    lines: list[str] = []
    for name, value in headers.items():
        if name.lower() == "sec-websocket-protocol":
            lines += [value] if isinstance(value, str) else value
    return [offered for line in lines for part in line.split(",") if (offered := part.strip())]


def chosen_subprotocol(event: Mapping[str, Any]) -> str | None:
    """What `$connect` answers: the one subprotocol there is, if it is offered, and never what a client made up.

    What else is offered may be a token. Browsers fail a connection whose offers are all left unanswered.
    """
    return SUBPROTOCOL if SUBPROTOCOL in offered_subprotocols(event) else None


def broadcast_of(request: PublishRequest, caller: Caller, *, made_up_id: str) -> Broadcast:
    """What is put on the queue for a request that a member made. Raises Refused (bad_request, too_large)."""
    room = room_for_clients(request.room)
    if not request.data:
        raise Refused(Code.BAD_REQUEST, "data: must not be empty")
    if utf8_length(request.data) > MAX_DATA_BYTES:
        raise Refused(Code.TOO_LARGE, f"data: must be at most {MAX_DATA_BYTES:,} bytes in UTF-8")
    publisher = publisher_label(caller)
    own_id = made_up_id if isinstance(request.id, UnsetType) else request.id
    broadcast_id = f"{publisher}/{own_id}"
    if not own_id or not NAME.fullmatch(broadcast_id):
        left = MAX_NAME_LENGTH - len(publisher) - 1
        raise Refused(Code.BAD_REQUEST, f"id: must be 1 to {left} characters from ! to ~")
    return Broadcast(
        id=broadcast_id,
        room=room,
        data=request.data,
        except_=UNSET if request.echo else (caller.connection_id,),
        published_at_ms=caller.requested_at_ms,
    )


def publisher_label(caller: Caller) -> str:
    """Whose ids these are: `@` and the user, or else the connection id; at most 60 characters, none of them a slash.

    No two publishers share a label: a connection id never begins with `@`, and as `%` and `/` are percent-encoded, no
    other label begins with the `%` of a digest.
    """
    publisher = f"@{caller.user}" if caller.user else caller.connection_id
    label = quote(publisher, safe=_KEPT_IN_PUBLISHER)
    if len(label) <= MAX_PUBLISHER_LENGTH:
        return label
    return f"%sha256:{hashlib.sha256(publisher.encode()).hexdigest()[:40]}"
