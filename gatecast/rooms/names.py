"""The names of rooms: which ones clients may use, and which ones the system keeps. Pure."""

import re
from typing import Final, TypeGuard

from gatecast.broadcast import MAX_NAME_LENGTH
from gatecast.rooms.errors import Code, RequestRejected

NAME: Final = re.compile(r"[!-~]{1,100}")
"""The pattern of a room's name."""
_ALL: Final = "@all"
_USER_ROOM: Final = "@user/"
MAX_USER_LENGTH: Final = MAX_NAME_LENGTH - len(_USER_ROOM)


def is_room(name: object) -> TypeGuard[str]:
    """Whether a room can have this name."""
    return isinstance(name, str) and bool(NAME.fullmatch(name))


def validate_client_room(room: object) -> str:
    """The room, if clients may use it. Raises RequestRejected (bad_request, forbidden_room)."""
    if not is_room(room):
        raise RequestRejected(Code.BAD_REQUEST, f"room: must be 1 to {MAX_NAME_LENGTH} characters from ! to ~")
    if room.startswith("@"):
        raise RequestRejected(Code.FORBIDDEN_ROOM, "room: names that begin with @ are reserved")
    if "*" in room:  # it would look like a grant or a namespace
        raise RequestRejected(Code.FORBIDDEN_ROOM, "room: names that contain * are reserved")
    return room


def user_room(user: str) -> str | None:
    """The user's own room, or None if the user's name does not fit in a room's name."""
    room = f"{_USER_ROOM}{user}"
    return room if user and NAME.fullmatch(room) else None


def system_rooms(user: str | None) -> list[str]:
    """The rooms that a connection joins when it connects. Raises RequestRejected if the user's name does not fit."""
    if user is None:
        return [_ALL]
    room = user_room(user)
    if room is None:
        raise RequestRejected(Code.BAD_REQUEST, f"user: must be 1 to {MAX_USER_LENGTH} characters from ! to ~")
    return [_ALL, room]
