"""Connections and rooms for the Lambda handlers of a program of its own.

It does what the routes of Gatecast do, on the same table, so both can be used side by side. What it reads of a request
is the connection's id: who the user is and which dialect the connection has was written when it connected.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

from gatecast import table
from gatecast.broadcast import MAX_NAME_LENGTH
from gatecast.frames import V1, V2
from gatecast.publisher import Publisher
from gatecast.rooms.actions import connection_key
from gatecast.rooms.connection import StoredConnection
from gatecast.rooms.counts import Counts
from gatecast.rooms.errors import Code, NoPublisher, RequestRejected
from gatecast.rooms.kicking import Kicked, kick
from gatecast.rooms.memberships import DEFAULT_ROOMS, MAX_ROOMS, Memberships
from gatecast.rooms.names import is_room, system_rooms, validate_client_room
from gatecast.rooms.presence import Members, Presence
from gatecast.rooms.revocations import Revocations
from gatecast.rooms.rooms_to_join import MAX_ROOMS_PER_TRANSACTION
from gatecast.rooms.settings_cache import RoomSettingsCache

_MAX_ID_LENGTH: Final = 128


class Member(NamedTuple):
    """One membership: a connection in a room, and since when, in milliseconds since the epoch."""

    connection_id: str
    user: str | None
    joined_at_ms: int


class Rooms:
    """The connections and rooms in one table, through a boto3 client of DynamoDB, whose errors pass through.

    `publisher` is for `kick`, and for rooms with presence, to which it announces joins and departures; without one,
    these raise NoPublisher. A connection joins at most `max_rooms` rooms; 0 means no limit. Thread-safe. Settings of
    rooms are cached for 30 s, so create one object per process, not one per request.

    What a client may not do raises RequestRejected, whose `code` and `message` are for the client. Every call can be
    repeated.

    >>> rooms = Rooms(dynamodb, table_name, publisher=Publisher(sqs, queue_url))
    >>> rooms.connect("L0SM9cOFvHcCIhw=", user="ann")
    >>> rooms.join("L0SM9cOFvHcCIhw=", "lobby")
    >>> [(member.connection_id, member.user) for member in rooms.connections("lobby")]
    [('L0SM9cOFvHcCIhw=', 'ann')]
    >>> rooms.join("L0SM9cOFvHcCIhw=", "@all")
    Traceback (most recent call last):
    gatecast.rooms.errors.RequestRejected: room: names that begin with @ are reserved
    >>> rooms.leave("L0SM9cOFvHcCIhw=", "lobby")
    >>> rooms.disconnect("L0SM9cOFvHcCIhw=")
    """

    def __init__(
        self,
        dynamodb: Any,
        table_name: str,
        *,
        publisher: Publisher | None = None,
        max_rooms: int = DEFAULT_ROOMS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`wall_clock` gives seconds since the epoch. Raises TypeError and ValueError for what cannot be used."""
        if not hasattr(dynamodb, "transact_write_items"):
            raise TypeError(f'dynamodb: expected boto3.client("dynamodb"), got {type(dynamodb).__name__}')
        if type(max_rooms) is not int or not 0 <= max_rooms <= MAX_ROOMS:
            raise ValueError(f"max_rooms: expected a whole number from 0 to {MAX_ROOMS:,}, got {max_rooms!r}")
        self._dynamodb = dynamodb
        self._table = table_name
        self._given_publisher = publisher
        self._wall_clock = wall_clock
        self._settings = RoomSettingsCache(dynamodb, table_name)
        counts = Counts(dynamodb, table_name, self._settings, wall_clock=wall_clock)
        self._presence = Presence(dynamodb, table_name, self._settings, counts, self._publisher, wall_clock=wall_clock)
        self._memberships = Memberships(
            dynamodb, table_name, max_rooms=max_rooms, settings=self._settings, presence=self._presence
        )
        self._revocations = Revocations(dynamodb, table_name, wall_clock)

    def connect(
        self,
        connection_id: str,
        *,
        user: str | None = None,
        frames: int = V1,
        expires_at: int | None = None,
        issued_at: float | None = None,
    ) -> None:
        """Writes a new connection, which joins `@all` and, if its user is known, `@user/{user}`. For `$connect`.

        `frames` is 2 for a connection of `gatecast.v2`: then `$connect` must return the subprotocol. `expires_at` is
        when the connection's token ends, and `issued_at` when it was issued, in seconds since the epoch. Who the
        user is must be known for certain: authenticate the client before. Raises RequestRejected: bad_request for the
        name of a user that does not fit, token_expired for a token that has expired and for a user who is revoked,
        unavailable.
        """
        _check_connection_id(connection_id)
        if frames not in {V1, V2}:
            raise ValueError(f"frames: expected {V1} or {V2}, got {frames!r}")
        rooms = system_rooms(user)
        now_ms = self._now_ms()
        ends_at = table.expires_at(now_ms)
        if expires_at is not None:
            table.seconds("expires_at", expires_at)
            if expires_at * 1000 <= now_ms:
                raise RequestRejected(Code.TOKEN_EXPIRED, "the token has expired: connect again with a new one")
            ends_at = min(ends_at, expires_at)
        if user is not None and self._revocations.is_revoked(user, issued_at=issued_at):
            raise RequestRejected(Code.TOKEN_EXPIRED, "the token has been revoked")
        self._memberships.connect(StoredConnection(connection_id, now_ms, now_ms, ends_at, user, frames), rooms)

    def disconnect(self, connection_id: str) -> None:
        """Removes a connection and its memberships. For `$disconnect`, which API Gateway does not guarantee.

        What cannot be removed in 15 s, or announced while the queue does not respond, remains until it expires or a
        worker finds the connection gone. Raises RequestRejected (unavailable).
        """
        _check_connection_id(connection_id)
        self._memberships.disconnect(connection_id)

    def join(self, connection_id: str, room: str) -> None:
        """Makes a connection a member of a room: from now on it receives the room's broadcasts.

        Raises RequestRejected: bad_request or forbidden_room for a name that clients may not use, not_connected,
        too_many_rooms, unavailable. Whether the client may join this room is for the caller to decide.
        """
        for rejection in self.join_many(connection_id, [room]).values():
            raise rejection

    def join_many(self, connection_id: str, rooms: Sequence[str]) -> dict[str, RequestRejected]:
        """Makes a connection a member of up to 33 rooms in one transaction. Returns why it has not joined some of them.

        Raises RequestRejected (bad_request, not_connected, unavailable): then it has joined none of them.
        """
        if isinstance(rooms, str):
            raise TypeError("rooms: expected a sequence of names, got one")
        if len(rooms) > MAX_ROOMS_PER_TRANSACTION:
            raise RequestRejected(Code.BAD_REQUEST, f"rooms: at most {MAX_ROOMS_PER_TRANSACTION} at once")
        if not all(isinstance(room, str) for room in rooms):  # without a name no rejection could name it
            raise RequestRejected(Code.BAD_REQUEST, "room: must be a string")
        connection = self._connection(connection_id)
        valid: list[str] = []
        rejected: dict[str, RequestRejected] = {}
        for room in dict.fromkeys(rooms):
            try:
                valid.append(validate_client_room(room))
            except RequestRejected as rejection:
                rejected[room] = rejection
        if not valid:
            return rejected
        if connection.user and any(settings.presence for settings in self._settings.get(valid).values()):
            self._publisher()  # before anything is written
        return rejected | self._memberships.join(connection, valid)

    def leave(self, connection_id: str, room: str) -> None:
        """Ends a membership, if there is one.

        Raises RequestRejected: bad_request or forbidden_room for a name that clients may not use; unavailable, then the
        connection is still a member.
        """
        self._memberships.leave(self._named(connection_id), validate_client_room(room))

    def is_member(self, connection_id: str, room: str) -> bool:
        """Whether the connection has joined the room: what to ask before a client publishes to it, or reads in it."""
        return is_room(room) and self._memberships.is_member(self._named(connection_id), room)

    def members(self, room: str, after: str | None = None) -> Members:
        """A page of the users in a room with presence, in order, each with the number of connections.

        At most 500 users, those after the user `after`, which is the `after` of the page before. Read consistently.
        Raises RequestRejected (bad_request) for a room whose settings have no `presence`: for these there is
        `connections`.
        """
        if not is_room(room) or room.startswith("@") or not self._settings.get([room])[room].presence:
            raise RequestRejected(Code.BAD_REQUEST, "room: its members cannot be listed, because it has no presence")
        return self._presence.members(room, after)

    def connections(self, room: str) -> Iterator[Member]:
        """The connections in any room, `@all` and `@user/{user}` included, page by page as they are taken.

        Costs half a read unit per 4 KB of memberships, about 60 of them. Eventually consistent: one that has joined a
        moment ago may be missing. Raises RequestRejected (bad_request).
        """
        if not is_room(room):
            raise RequestRejected(Code.BAD_REQUEST, f"room: must be 1 to {MAX_NAME_LENGTH} characters from ! to ~")
        return self._pages(room, self._settings.get([room])[room].shards)

    def kick(
        self,
        *,
        code: str,
        user: str | None = None,
        room: str | None = None,
        connections: Collection[str] | None = None,
        retry: bool = False,
        for_seconds: int | None = None,
        id: str | None = None,  # noqa: A002 - the field's name
    ) -> Kicked:
        """Has the workers close all connections of a user, all members of a room, or these connections.

        Clients of `gatecast.v2` receive `code`, a name, and `retry`, whether to connect again. With `for_seconds` the
        user cannot connect for that long, at least 11 s, nor afterwards with a token that was issued before; 0 revokes
        the tokens so far, and those of these 11 s. `connect` rejects such a user, and so does Gatecast's authorizer. A
        revocation that ends later remains. On a FIFO queue the result then has `repeat_after_seconds`. Raises
        InvalidBroadcast or ValueError before any call, and NoPublisher.
        """
        return kick(
            self._publisher(),
            self._revocations,
            code=code,
            retry=retry,
            now_ms=self._now_ms(),
            user=user,
            room=room,
            connections=connections,
            for_seconds=for_seconds,
            id=id,
        )

    def _named(self, connection_id: str) -> StoredConnection:
        """The connection where only its id and the time of the request matter, without a call."""
        _check_connection_id(connection_id)
        now_ms = self._now_ms()
        return StoredConnection(connection_id, now_ms, now_ms, table.expires_at(now_ms))

    def _connection(self, connection_id: str) -> StoredConnection:
        _check_connection_id(connection_id)
        found = self._dynamodb.get_item(
            TableName=self._table, Key=connection_key(connection_id), ConsistentRead=True
        ).get("Item")
        connection = StoredConnection.from_item(connection_id, found, self._now_ms())
        if connection is None:
            raise RequestRejected(Code.NOT_CONNECTED, "the connection is closing")
        return connection

    def _pages(self, room: str, shards: int) -> Iterator[Member]:
        for shard in range(shards):
            query: dict[str, Any] = {
                "TableName": self._table,
                "KeyConditionExpression": "pk = :pk",
                "ExpressionAttributeValues": {":pk": {"S": table.room_pk(room, shard)}},
            }
            while True:
                page = self._dynamodb.query(**query)
                now = self._wall_clock()
                for item in page["Items"]:
                    expires_at = table.lenient_number(item.get("expires_at"))
                    if expires_at is None or expires_at > now:
                        joined_at_ms = int(table.lenient_number(item.get("joined_at_ms")) or 0)
                        yield Member(item["sk"]["S"], table.text_of(item.get("user")), joined_at_ms)
                if "LastEvaluatedKey" not in page:
                    break
                query["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _publisher(self) -> Publisher:
        if self._given_publisher is None:
            raise NoPublisher("create Rooms with a `publisher`: rooms with presence and `kick` need one")
        return self._given_publisher

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)


def _check_connection_id(connection_id: object) -> None:
    if not isinstance(connection_id, str) or not 0 < len(connection_id.encode()) <= _MAX_ID_LENGTH:
        raise ValueError(f"connection_id: expected API Gateway's, 1 to {_MAX_ID_LENGTH} bytes, got {connection_id!r}")
