"""What the server sends, as values, and requests as text. Pure.

Frames of an unknown type, and fields that are not known, are ignored. A message has the form of
`gatecast.frames.Message`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from gatecast.client.errors import RequestFailed
from gatecast.client.events import Message, Reference
from gatecast.client.sequence import Ask, Page
from gatecast.frames import V2
from gatecast.frames import Message as MessageOnWire

MAX_REQUEST_BYTES: Final = 131_072
"""API Gateway closes the connection for a longer one."""
MAX_ROOMS: Final = 25
"""Rooms in one join."""

Ref = int | str | None


class Messages(msgspec.Struct, frozen=True):
    messages: tuple[MessageOnWire, ...] = ()
    room: str | None = None
    skipped: tuple[tuple[int, int], ...] = ()


class PresenceFrame(msgspec.Struct, frozen=True):
    room: str
    at_ms: int
    joined: tuple[str, ...] = ()
    departed: tuple[str, ...] = ()


class Reconnect(msgspec.Struct, frozen=True):
    """The connection will be cut within this time. Reserved: servers of this version send none."""

    within_ms: int


class ClosedFrame(msgspec.Struct, frozen=True):
    """The connection is cut now; with `retry` the client is welcome on another one."""

    code: str
    retry: bool


class Pong(msgspec.Struct, frozen=True):
    ref: Ref = None


class Error(msgspec.Struct, frozen=True):
    code: str
    message: str = ""
    retry_after_seconds: float | None = None
    ref: Ref = None

    def to_exception(self) -> RequestFailed:
        return RequestFailed(self.code, self.message, self.retry_after_seconds)


class RoomResult(msgspec.Struct, frozen=True):
    """The fields of a join's or a history's response that concern one room; without `offset` it has no history."""

    room: str | None = None
    offset: int | None = None
    recovered: bool = True
    messages: tuple[MessageOnWire, ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()
    more: bool = False
    error: Error | None = None

    def page(self, room: str) -> Page | None:
        if self.offset is None:
            return None
        messages = [to_message(each, room) for each in self.messages]
        return Page(
            offset=self.offset, recovered=self.recovered, messages=messages, skipped=self.skipped, more=self.more
        )


class User(msgspec.Struct, frozen=True):
    user: str
    connections: int = 1


class Ok(RoomResult, frozen=True):
    """The fields of all ok responses."""

    ref: Ref = None
    connection: str | None = None
    expires_at_ms: int | None = None
    rooms: tuple[RoomResult, ...] = ()
    id: str | None = None
    users: tuple[User, ...] = ()
    after: Any = None
    at_ms: int | None = None
    members: int | None = None
    counted_at_ms: int | None = None


class GatewayError(msgspec.Struct, frozen=True):
    """API Gateway's own message where a function failed or was throttled. It does not name the request."""

    message: str
    requestId: str  # noqa: N815 - as API Gateway spells it


class _Type(msgspec.Struct):
    type: str = ""


Frame = Messages | PresenceFrame | Reconnect | ClosedFrame | Pong | Error | Ok | GatewayError

_type_decoder: Final = msgspec.json.Decoder(_Type)
_decoders: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    "messages": msgspec.json.Decoder(Messages),
    "presence": msgspec.json.Decoder(PresenceFrame),
    "reconnect": msgspec.json.Decoder(Reconnect),
    "closed": msgspec.json.Decoder(ClosedFrame),
    "pong": msgspec.json.Decoder(Pong),
    "error": msgspec.json.Decoder(Error),
    "ok": msgspec.json.Decoder(Ok),
    "": msgspec.json.Decoder(GatewayError),
}


class NotAFrame(ValueError):
    """The text is no frame, or one whose fields are of other types than they should be."""


def parse(text: str | bytes) -> Frame | None:
    """The frame in a message of the server; None if its type is unknown. Raises NotAFrame."""
    try:
        decoder = _decoders.get(_type_decoder.decode(text).type)
        return None if decoder is None else decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotAFrame(str(error)) from None


def to_message(message: MessageOnWire, room: str | None) -> Message:
    return Message(
        id=message.id,
        room=room,
        offset=message.offset or None,
        from_=message.from_ or None,
        published_at_ms=message.published_at_ms,
        data=None if message.data is UNSET else message.data,
        raw=bytes(message.json) if isinstance(message.json, msgspec.Raw) else None,
        reference=None if message.reference is UNSET else Reference(**msgspec.structs.asdict(message.reference)),
    )


def json_value(value: Any) -> msgspec.Raw:
    """A value as JSON; `msgspec.Raw` is that already. Whole numbers are exact.

    Raises RequestFailed (`bad_request`) for what has no JSON, as NaN or an object, and for what exceeds the limits of
    `json.dumps`, as a whole number of more than 4,300 digits: `msgspec.Raw` passes even that.
    """
    if isinstance(value, msgspec.Raw):
        return value
    try:
        return msgspec.Raw(json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestFailed("bad_request", f"not possible as JSON: {error}") from None


def encode(request: Mapping[str, Any], ref: int) -> str:
    """A request's text. Raises RequestFailed (`too_large`, `bad_request`) for what could not be accepted anyway."""
    try:
        encoded = msgspec.json.encode({**request, "ref": ref})
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise RequestFailed("bad_request", f"not possible as JSON: {error}") from None
    if len(encoded) > MAX_REQUEST_BYTES:
        raise RequestFailed("too_large", f"the request has {len(encoded):,} bytes, more than {MAX_REQUEST_BYTES:,}")
    return encoded.decode()


def join(asks: Sequence[tuple[str, Ask]]) -> dict[str, Any]:
    """One join, of one room or of several. It names the dialect for servers without an authorizer."""
    rooms = [
        {
            "room": room,
            **({"since": ask.since} if ask.since is not None else {}),
            **({"last": ask.last} if ask.last else {}),
        }
        for room, ask in asks
    ]
    if len(rooms) == 1:
        return {"action": "join", "frames": V2, **rooms[0]}
    return {"action": "join", "frames": V2, "rooms": rooms}
