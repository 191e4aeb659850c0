"""What the client gives to the program: messages, and changes, as values. Pure."""

import json
from typing import Any

import msgspec


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A payload that is fetched with a GET of `url`, without further headers, until `expires_at_ms`.

    After that, and after a 403, the room's history has the message with a new URL. Its content is not checked.
    """

    url: str
    bytes: int
    content_type: str
    expires_at_ms: int


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message. It has `data` (text), `raw` (the bytes of a JSON value, as they were published) or `reference`."""

    id: str
    room: str | None
    """None if it was published to connections and not to a room."""
    offset: int | None = None
    """Its position in the room's history; None in a room without history."""
    from_: str | None = None
    """The user who published it, where the server knows it."""
    published_at_ms: int
    data: str | None = None
    raw: bytes | None = None
    reference: Reference | None = None

    @property
    def json(self) -> Any:
        """The JSON value, parsed at each access. For text it is `data`, parsed. Whole numbers are exact.

        It is parsed by `json.loads`, whose limits hold: a whole number of more than 4,300 digits
        (`sys.set_int_max_str_digits`) raises ValueError. The text as it was published is in `raw`, or in `data`. Raises
        ValueError also if `data` is not JSON, or if there is neither, as where the payload has to be fetched.
        """
        if self.raw is not None:
            return json.loads(self.raw)
        if self.data is None:
            raise ValueError("the message has neither text nor JSON")
        return json.loads(self.data)


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """The room's events were interrupted here. `recovered`: whether nothing is missing nevertheless.

    It is true after a reconnect in a room with history if every message in between follows. It is false if messages may
    be missing between those before and those after this event: load the room's state from its source. In a room with
    history these are messages with an offset between `after` and `before`, both exclusive.
    """

    room: str | None
    """None for the messages of no room."""
    recovered: bool
    after: int | None = None
    before: int | None = None


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Users who have joined the room and who have departed since. Changes that a later one supersedes are left out."""

    room: str
    joined: tuple[str, ...] = ()
    departed: tuple[str, ...] = ()
    at_ms: int


RoomEvent = Message | Recovered | Presence


class Connecting(msgspec.Struct, frozen=True):
    """No connection is open: the client is opening one, or waits before the next attempt."""

    failures: int = 0
    """Attempts since the last connection that held."""
    problem: str = ""
    """Why the last connection or attempt ended; empty at the start."""


class Connected(msgspec.Struct, frozen=True):
    """A connection is open. Rooms are being joined again; each reports `Recovered`. A renewal is no change."""


class Closed(msgspec.Struct, frozen=True):
    """The client has stopped for good. `code` is that of `ConnectionClosed`."""

    code: str


State = Connecting | Connected | Closed


class Member(msgspec.Struct, frozen=True):
    """A user who is present in a room, on this number of connections."""

    user: str
    connections: int


class Members(msgspec.Struct, frozen=True):
    """The users who were present in a room, in the order of their names.

    `at_ms` is the server's time just before it read the first of them; 0 if the server gives none. A `Presence` with
    an earlier `at_ms` is older than the list: ignore it. Apply all others to the list, also those that arrived before
    it. A change that the list does not contain has a later time, or the same one, so after a user's last change the
    result is right, in whatever order list and events arrive. This is certain only as far as the server's clocks agree:
    lists and joins have the time of a route, departures that of a worker. What a difference between them makes wrong,
    the user's next change or the next list corrects.
    """

    users: tuple[Member, ...]
    at_ms: int


class Count(msgspec.Struct, frozen=True):
    """How many connections were members of a room at a time."""

    members: int
    counted_at_ms: int


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a room's history, in the order of the offsets.

    `offset` is the position that the page ends with. With `more`, the next page begins after it. `recovered` is false
    if messages are missing between the position that was asked for and the first of the page.
    """

    messages: tuple[Message, ...]
    offset: int
    recovered: bool
    more: bool
