"""The body of `join`: one room, or several at once, each with the position at which the client continues. Pure."""

from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gatecast.frames import V1, V2
from gatecast.rooms.names import validate_client_room
from routes.requests import Caller, Offset, check_may_join, check_not_expired, decode, parse
from routes.responses import Code, RequestRejected

MAX_ROOMS_PER_JOIN: Final = 25
MAX_LAST: Final = 100
"""How many of a room's latest messages a client can ask for when it joins."""


class Position(msgspec.Struct, frozen=True):
    """Which messages of a room's history a client wants: those after `since`, or the `last` ones, or none."""

    since: Offset | UnsetType = UNSET
    last: Annotated[int, Meta(ge=0, le=MAX_LAST)] | UnsetType = UNSET

    @property
    def is_given(self) -> bool:
        """Whether the client asked for messages."""
        return self.since is not UNSET or self.last is not UNSET


class JoinRequest(NamedTuple):
    """The rooms to join, in the client's order, each with its position, or with why it cannot be joined."""

    rooms: dict[str, Position | RequestRejected]
    is_list: bool
    """Whether the client sent `rooms`: then each room has a result of its own."""
    frames: int
    """The dialect of the memberships."""

    @property
    def positions(self) -> dict[str, Position]:
        """The rooms that can be joined."""
        return {room: position for room, position in self.rooms.items() if isinstance(position, Position)}


class _Join(msgspec.Struct):
    room: str | UnsetType = UNSET
    rooms: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_ROOMS_PER_JOIN)] | UnsetType = UNSET
    frames: Annotated[int, Meta(ge=V1, le=V2)] = V1
    since: msgspec.Raw | UnsetType = UNSET
    last: msgspec.Raw | UnsetType = UNSET


class _Named(msgspec.Struct):
    room: str


def parse_join(body: str | None, caller: Caller) -> JoinRequest:
    """The client's message, checked against its token.

    Raises RequestRejected (bad_request, too_large; for a single room also forbidden_room and token_expired). Of several
    rooms, one that is invalid or forbidden fails alone.
    """
    found = parse(body, _Join)
    if (found.room is UNSET) == (found.rooms is UNSET):
        raise RequestRejected(Code.BAD_REQUEST, "room: exactly one of `room` and `rooms` must be given")
    if isinstance(found.room, str):
        position = _position((body or "").encode())
        _check(caller, found.room)
        return JoinRequest({found.room: position}, is_list=False, frames=_dialect(caller, found.frames))
    if found.since is not UNSET or found.last is not UNSET:
        raise RequestRejected(Code.BAD_REQUEST, "rooms: `since` and `last` belong into its objects")
    check_not_expired(caller)
    rooms: dict[str, Position | RequestRejected] = {}
    for number, encoded in enumerate(found.rooms or ()):
        room = _name(number, bytes(encoded))
        if room in rooms:
            raise RequestRejected(Code.BAD_REQUEST, f"rooms[{number}].room: the same room twice")
        rooms[room] = _checked(caller, room, bytes(encoded))
    return JoinRequest(rooms, is_list=True, frames=_dialect(caller, found.frames))


def _dialect(caller: Caller, named: int) -> int:
    """The caller's dialect. Gatecast's own authorizer knows it; another one may not, and then the client names it."""
    return caller.frames if caller.access else max(caller.frames, named)


def _name(number: int, encoded: bytes) -> str:
    """The room that an element of `rooms` names. Without one the whole request is rejected: no error could name it."""
    try:
        return decode(encoded, _Named).room
    except RequestRejected as rejection:
        raise RequestRejected(rejection.code, f"rooms[{number}]: {rejection.message}") from None


def _checked(caller: Caller, room: str, encoded: bytes) -> Position | RequestRejected:
    try:
        _check(caller, room)
        return _position(encoded)
    except RequestRejected as rejection:
        return rejection


def _check(caller: Caller, room: str) -> None:
    validate_client_room(room)
    check_may_join(caller, room)


def _position(encoded: bytes) -> Position:
    position = decode(encoded, Position)
    if position.since is not UNSET and position.last is not UNSET:
        raise RequestRejected(Code.BAD_REQUEST, "last: cannot be given together with `since`")
    return position
