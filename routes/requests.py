"""Parses events and clients' messages into typed values. Pure: equal messages give equal requests or rejections.

The request context, which API Gateway writes, is trusted. Everything that a client sends is validated, and a rejection
names the invalid field. Unknown fields are ignored.
"""

import base64
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gatecast import table
from gatecast.broadcast import LARGEST_OFFSET, MAX_NAME_LENGTH, field_with_lone_surrogate, reason_of, utf8_length
from gatecast.frames import V1
from gatecast.rooms.names import system_rooms, validate_client_room
from routes.access import Access, AuthorizerContext, covers
from routes.responses import Code, Ref, RequestRejected

ACTIONS: Final = ("join", "leave", "publish", "history", "members", "count", "ping")
MAX_BODY_BYTES: Final = 131_072
"""The longest message that API Gateway accepts from a client (128 KB): longer ones are not parsed."""
MAX_REF_LENGTH: Final = 64
"""In characters: of a string, and of an integer's digits with its sign."""
MAX_LIMIT: Final = 1_000
"""How many messages a request for history returns at most."""
_LIFETIME_MS: Final = 2 * 3600 * 1000
"""API Gateway closes a connection after two hours."""


_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _RequestContext(msgspec.Struct, rename="camel"):
    connection_id: str
    connected_at: int
    request_time_epoch: int
    authorizer: dict[str, Any] | None = None


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The connection that sent an event. Times are milliseconds since the epoch, by API Gateway's clock.

    If `access` is None, no token restricts it. `frames` is its dialect, V1 or V2, as far as the event shows it.
    """

    connection_id: str
    connected_at_ms: int
    requested_at_ms: int
    user: str | None = None
    access: Access | None = None
    frames: int = V1

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
            frames=authorizer.dialect,
        )

    @property
    def expires_at(self) -> int:
        """When the connection's items expire, in seconds since the epoch; it receives nothing afterwards.

        They expire with its token, or else after API Gateway's maximum connection lifetime.
        """
        closed_at = table.expires_at(self.connected_at_ms)
        return min(closed_at, self.access.expires_at) if self.access else closed_at

    @property
    def ends_at_ms(self) -> int:
        """When the connection ends at the latest, in milliseconds: with its token, or when API Gateway closes it."""
        closed_at_ms = self.connected_at_ms + _LIFETIME_MS
        return min(closed_at_ms, self.access.expires_at * 1000) if self.access else closed_at_ms


class RoomRequest(msgspec.Struct, frozen=True):
    """The body of `leave` and `count`."""

    room: str


Offset = Annotated[int, Meta(ge=0, le=LARGEST_OFFSET)]


class HistoryRequest(msgspec.Struct, frozen=True):
    """The body of `history`: at most `limit` messages after the offset `since`."""

    room: str
    since: Offset
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = MAX_LIMIT
    last: msgspec.Raw | UnsetType = UNSET

    def check(self) -> None:
        """Raises RequestRejected (bad_request)."""
        if self.last is not UNSET:
            raise RequestRejected(Code.BAD_REQUEST, "last: only `join` has it, without `since`")


class MembersRequest(msgspec.Struct, frozen=True):
    """The body of `members`: the users of a page, whose names are above `after`; of the first page if that is null."""

    room: str
    after: Annotated[str, Meta(max_length=MAX_NAME_LENGTH)] | None = None


class _AnyRequest(msgspec.Struct):
    action: str


class _Referring(msgspec.Struct):
    ref: msgspec.Raw | UnsetType = UNSET


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


def ref_of(body: str | None) -> Ref:
    """The message's `ref`, which its response repeats; UNSET if it has none, or none that can be read.

    Raises RequestRejected (bad_request) if it is neither a string nor an integer of at most MAX_REF_LENGTH characters.
    """
    text = body or ""
    if utf8_length(text) > MAX_BODY_BYTES:
        return UNSET
    found = _found_ref(text)
    match found:
        case UnsetType():
            return UNSET
        case str() if len(found) <= MAX_REF_LENGTH and not _LONE_SURROGATE.search(found):
            return found
        case int() if not isinstance(found, bool) and -(10 ** (MAX_REF_LENGTH - 1)) < found < 10**MAX_REF_LENGTH:
            return found
    allowed = f"a string or an integer of at most {MAX_REF_LENGTH} characters"
    raise RequestRejected(Code.BAD_REQUEST, f"ref: must be {allowed}")


def _found_ref(text: str) -> Any:
    """The value of `ref` in a message, or UNSET; None if it is none that could be valid."""
    try:
        encoded = msgspec.json.decode(text.encode(), type=_Referring).ref
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        with suppress(ValueError, RecursionError):  # not even JSON, or a text in it is no UTF-8, beside a valid `ref`
            loaded = json.loads(text)
            return loaded.get("ref", UNSET) if isinstance(loaded, dict) else UNSET
        return UNSET
    try:
        return encoded if isinstance(encoded, UnsetType) else msgspec.json.decode(encoded)
    except (msgspec.DecodeError, RecursionError):
        return None


def parse(body: str | None, kind: type[_Request]) -> _Request:
    """The client's message as a request of this type. Raises RequestRejected (bad_request, too_large)."""
    text = body or ""
    if utf8_length(text) > MAX_BODY_BYTES:
        raise RequestRejected(Code.TOO_LARGE, f"the message must be at most {MAX_BODY_BYTES:,} bytes")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise RequestRejected(Code.BAD_REQUEST, "the message is not valid UTF-8") from None
    return decode(encoded, kind)


def decode(encoded: bytes, kind: type[_Request]) -> _Request:
    """A client's JSON object as a struct of this type. Raises RequestRejected (bad_request), which names the field."""
    try:
        return msgspec.json.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        reason, path = reason_of(error), str(error).partition(" - at `$.")[2]
        raise RequestRejected(Code.BAD_REQUEST, f"{path.rstrip('`')}: {reason}" if path else reason) from None
    except (msgspec.DecodeError, RecursionError) as error:
        if field := field_with_lone_surrogate(encoded, kind.__struct_encode_fields__):
            raise RequestRejected(Code.BAD_REQUEST, f"{field}: half of a surrogate pair has no UTF-8") from None
        raise RequestRejected(Code.BAD_REQUEST, f"the message is not valid JSON ({error})") from None


def validate_readable_room(room: str, caller: Caller) -> str:
    """The room, if clients may use it, or one of those that the system keeps and the caller is in.

    Raises RequestRejected (bad_request, forbidden_room).
    """
    return room if room in system_rooms(caller.user) else validate_client_room(room)


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
