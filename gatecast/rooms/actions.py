"""The actions of transactions: which items they write, under which conditions. Pure.

Always: a membership, its joined-room item and its presence item are deleted together, and created together, unless the
room has presence only since its member joined: then a later join adds the presence item (`enter`). The connection of
a membership that uses frames uses them, too.
"""

from typing import Any, Final

from gatecast import table
from gatecast.frames import V1
from gatecast.room_settings import RoomSettings
from gatecast.rooms.connection import Connection
from gatecast.table import Item

Action = dict[str, Any]
"""One of `TransactItems`."""
JOINED_ROOM: Final = 1
"""The position of the joined-room item among the actions that join a room. Its condition fails for a member."""
UNLIMITED: Final = 10**9


class Actions:
    """The actions on one table. A connection may join at most `max_rooms` rooms that it counts; 0 means no limit."""

    def __init__(self, table_name: str, max_rooms: int) -> None:
        self._table = table_name
        self._max_rooms = max_rooms or UNLIMITED

    def connect(self, connection: Connection, settings: dict[str, RoomSettings]) -> list[Action]:
        """Puts the connection and its memberships of these rooms, without presence."""
        item = table.connection_item(
            connection.connection_id,
            connected_at_ms=connection.connected_at_ms,
            user=connection.user,
            frames=connection.frames,
        )
        item["expires_at"] = {"N": str(connection.expires_at)}
        items = [item, *(each for room in settings for each in _items(connection, room, settings[room], None))]
        return [self._put(item) for item in items]

    def count(self, connection: Connection, rooms: int) -> Action:
        """Adds to the connection's number of rooms; fails if it is not connected, or would join too many.

        It writes the dialect, too, which the client may have named only now: remainders and dead letters, which are for
        the connection by its id, have the form of what its memberships receive.
        """
        is_first = "attribute_not_exists(rooms) OR " if rooms <= self._max_rooms else ""
        dialect = {":frames": {"N": str(connection.frames)}} if connection.frames != V1 else {}
        return self._update(
            connection,
            UpdateExpression=f"{'SET frames = :frames ' if dialect else ''}ADD rooms :joined",
            ConditionExpression=f"attribute_exists(pk) AND expires_at > :now AND ({is_first}rooms <= :most)",
            ExpressionAttributeValues={
                ":now": {"N": seconds(connection)},
                ":joined": {"N": str(rooms)},
                ":most": {"N": str(self._max_rooms - rooms)},
                **dialect,
            },
        )

    def join(self, connection: Connection, room: str, settings: RoomSettings, present_user: str | None) -> list[Action]:
        """Puts a room's items, with a presence item if there is a `present_user`.

        Its action JOINED_ROOM fails if the connection is a member; the reason has the joined-room item.
        """
        membership, joined_room, *others = _items(connection, room, settings, present_user)
        condition = {
            "ConditionExpression": "attribute_not_exists(pk) OR expires_at <= :now",
            "ExpressionAttributeValues": {":now": {"N": seconds(connection)}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        return [self._put(membership), self._put(joined_room, **condition), *map(self._put, others)]

    def connected(self, connection: Connection) -> Action:
        """Changes nothing; fails if the connection is not connected."""
        return self._update(
            connection,
            UpdateExpression="ADD rooms :zero",
            ConditionExpression="attribute_exists(pk) AND expires_at > :now",
            ExpressionAttributeValues={":zero": {"N": "0"}, ":now": {"N": seconds(connection)}},
        )

    def enter(self, connection: Connection, room: str, user: str) -> list[Action]:
        """Adds the presence item of a member. The first action fails if there is one, or if it is no member."""
        joined_room = {
            "TableName": self._table,
            "Key": joined_room_key(connection, room),
            "UpdateExpression": "SET #present = :user",
            "ConditionExpression": "attribute_exists(pk) AND attribute_not_exists(#present)",
            "ExpressionAttributeNames": {"#present": "present"},
            "ExpressionAttributeValues": {":user": {"S": user}},
        }
        return [{"Update": joined_room}, self._put(_presence_item(connection, room, user))]

    def leave(self, connection: Connection, room: str, joined_room: Item) -> list[Action]:
        """Deletes a room's items; the last action fails unless the joined-room item is as it was read."""
        shard, user = joined_room["shard"], table.present_user(joined_room)
        doomed = [table.key(table.room_pk(room, int(shard["N"])), connection.connection_id)]
        if user:
            doomed.append(table.key(table.presence_pk(room), table.presence_sk(user, connection.connection_id)))
        unchanged = "#present = :user" if user else "attribute_not_exists(#present)"
        return [
            *({"Delete": {"TableName": self._table, "Key": key}} for key in doomed),
            {
                "Delete": {
                    "TableName": self._table,
                    "Key": joined_room_key(connection, room),
                    "ConditionExpression": f"#shard = :shard AND {unchanged}",
                    "ExpressionAttributeNames": {"#shard": "shard", "#present": "present"},  # a reserved word
                    "ExpressionAttributeValues": {":shard": shard, **({":user": {"S": user}} if user else {})},
                }
            },
        ]

    def uncount(self, connection: Connection) -> Action:
        """Subtracts from the connection's number of rooms; fails if it is gone, or has counted none."""
        return self._update(
            connection,
            UpdateExpression="ADD rooms :minus_one",
            ConditionExpression="rooms > :zero",
            ExpressionAttributeValues={":minus_one": {"N": "-1"}, ":zero": {"N": "0"}},
        )

    def _put(self, item: Item, **condition: Any) -> Action:
        return {"Put": {"TableName": self._table, "Item": item, **condition}}

    def _update(self, connection: Connection, **update: Any) -> Action:
        return {"Update": {"TableName": self._table, "Key": connection_key(connection.connection_id), **update}}


def connection_key(connection_id: str) -> table.Key:
    return table.key(table.connection_pk(connection_id), table.CONNECTION_SK)


def joined_room_key(connection: Connection, room: str) -> table.Key:
    return table.key(table.connection_pk(connection.connection_id), table.joined_room_sk(room))


def seconds(connection: Connection) -> str:
    """The time of the request, in seconds since the epoch."""
    return str(connection.requested_at_ms // 1000)


def _items(connection: Connection, room: str, settings: RoomSettings, present_user: str | None) -> list[Item]:
    """The membership, the joined room and, for the user of a connection in a room with presence, the presence item."""
    connection_id, joined_at_ms, expires_at = (
        connection.connection_id,
        connection.requested_at_ms,
        connection.expires_at,
    )
    shard = table.shard_of(connection_id, settings.join_shards)
    times = {"joined_at_ms": joined_at_ms, "expires_at": expires_at}
    membership = table.membership_item(
        room, shard, connection_id, user=connection.user, frames=connection.frames, **times
    )
    joined_room = table.joined_room_item(connection_id, room, shard, expires_at=expires_at, present_user=present_user)
    presence = [_presence_item(connection, room, present_user)] if present_user else []
    return [membership, joined_room, *presence]


def _presence_item(connection: Connection, room: str, user: str) -> Item:
    return table.presence_item(
        room, user, connection.connection_id, joined_at_ms=connection.requested_at_ms, expires_at=connection.expires_at
    )
