"""Connections and memberships: the writes to the table.

Always: a membership and its joined-room item are created and deleted together, and created only while the connection
item exists, as is a presence item, so a join that loses the race with `$disconnect` leaves nothing behind. Every
operation is idempotent.
All items of a connection expire at the same time, with its token if it has one: from then on workers do not post to it.
The SDK's errors pass through. If contention persists, the request is rejected as unavailable.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from botocore.exceptions import ClientError

from gatecast import table
from gatecast.rooms.actions import UNLIMITED, Actions, connection_key, joined_room_key, seconds
from gatecast.rooms.backoff import Backoff, busy
from gatecast.rooms.connection import Connection
from gatecast.rooms.departures import Disconnecting, Leaving
from gatecast.rooms.errors import Code, RequestRejected
from gatecast.rooms.observer import LOG, Observer
from gatecast.rooms.presence import Presence
from gatecast.rooms.rooms_to_join import CONDITION_FAILED, MAX_ROOMS_PER_TRANSACTION, Reason, RoomsToJoin
from gatecast.rooms.settings_cache import RoomSettingsCache
from gatecast.table import Item

DEFAULT_ROOMS: Final = 100
MAX_ROOMS: Final = 1_000
"""The memberships of 1,000 rooms take `$disconnect` 80 calls, well within API Gateway's 29 s."""
JOIN_SECONDS: Final = 15.0
"""After this `join` begins no further announcement."""
DISCONNECT_SECONDS: Final = 15.0
"""After this `disconnect` begins no further call; one that is in progress takes 9 s at most. API Gateway waits 29 s."""
_CONTENDED: Final = frozenset({"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})


class DynamoDB(Protocol):
    """The calls of a boto3 DynamoDB client that are needed."""

    def get_item(self, **kwargs: Any) -> Any: ...
    def delete_item(self, **kwargs: Any) -> Any: ...
    def query(self, **kwargs: Any) -> Any: ...
    def transact_write_items(self, **kwargs: Any) -> Any: ...
    def batch_write_item(self, **kwargs: Any) -> Any: ...
    def batch_get_item(self, **kwargs: Any) -> Any: ...


class Memberships:
    """The table, through a boto3 client. Thread-safe."""

    def __init__(
        self,
        dynamodb: DynamoDB,
        table_name: str,
        *,
        max_rooms: int = 0,
        backoff: Backoff | None = None,
        settings: RoomSettingsCache | None = None,
        presence: Presence | None = None,
        observer: Observer = LOG,
    ) -> None:
        """A connection may join at most `max_rooms` rooms, besides those of `connect`; 0 means no limit.

        Without `presence`, no room has presence.
        """
        self._dynamodb = dynamodb
        self._max_rooms = max_rooms or UNLIMITED
        self._actions = Actions(table_name, max_rooms)
        self._table = table_name
        self._backoff = backoff or Backoff()
        self._settings = settings or RoomSettingsCache(dynamodb, table_name, self._backoff)
        self._presence = presence
        self._observer = observer

    def connect(self, connection: Connection, rooms: Sequence[str]) -> None:
        """Writes the connection and its memberships of these rooms in one transaction. Raises RequestRejected.

        The rooms are those that the system keeps; they have no presence.
        """
        attempts = self._backoff.start()
        actions = self._actions.connect(connection, self._settings.get(rooms))
        for _ in attempts:
            if not self._transact(actions):
                return
        raise busy()

    def join(self, connection: Connection, rooms: Sequence[str]) -> dict[str, RequestRejected]:
        """Makes the connection a member of up to 33 rooms, in one transaction. Keeps existing memberships.

        An existing member of a room that has presence only since then becomes present, in another transaction.
        Returns a rejection for each room that it has not joined (too_many_rooms), or that it has joined without the
        room's having been notified (unavailable): a retry completes it. Raises RequestRejected (not_connected,
        unavailable): then nothing is written. The connection counts its rooms in the same transaction.
        """
        if len(rooms) > MAX_ROOMS_PER_TRANSACTION:
            raise ValueError(f"rooms: expected at most {MAX_ROOMS_PER_TRANSACTION}")
        ends_at_seconds = self._backoff.clock() + JOIN_SECONDS
        attempts = self._backoff.start()
        settings = self._settings.get(rooms)
        user = connection.user if self._presence else None
        users = {room: user for room in settings if user and settings[room].presence}
        joining = RoomsToJoin(
            {room: self._actions.join(connection, room, settings[room], users.get(room)) for room in settings}
        )
        for _ in attempts:
            if self._write(connection, joining):
                return {
                    **dict.fromkeys(joining.too_many, self._too_many_rooms()),
                    **self._announce(connection, joining, users, ends_at_seconds),
                }
        raise busy()

    def _write(self, connection: Connection, joining: RoomsToJoin) -> bool:
        """Writes what is left of a join. Whether nothing is left; False after contention. Raises RequestRejected."""
        while rooms := joining.next_rooms:
            reasons = self._transact([self._actions.count(connection, len(rooms)), *joining.next_actions])
            if not reasons:
                joining.succeeded()
                return True
            free_rooms = self._free_rooms(connection) if reasons[0].code == CONDITION_FAILED else None
            if not joining.cancelled(reasons[1:], free_rooms):
                return False
        return True

    def _announce(
        self, connection: Connection, joining: RoomsToJoin, users: Mapping[str, str], ends_at_seconds: float
    ) -> dict[str, RequestRejected]:
        """Announces the joins of rooms with presence, also where an earlier join has written the membership.

        `users` has the user by room. Returns a rejection for each room that has to be joined again.
        """
        members = {room: item for room, item in joining.members_already.items() if room in users}
        joins: dict[str, int | None] = dict.fromkeys(members)
        joins |= {room: connection.requested_at_ms for room in joining.joined if room in users}
        if not (joins and self._presence):
            return {}
        absent = {room: users[room] for room, item in members.items() if item and not table.present_user(item)}
        rejected: dict[str, RequestRejected] = {}
        if absent:
            try:
                entered = self._enter(connection, absent, ends_at_seconds)
            except RequestRejected as rejection:
                rejected = dict.fromkeys(absent, rejection)
            else:
                joins |= dict.fromkeys(entered, connection.requested_at_ms)
        announced = {room: at_ms for room, at_ms in joins.items() if room not in rejected}
        return rejected | self._presence.announce_joins(connection, announced, ends_at_seconds)

    def _enter(self, connection: Connection, users: Mapping[str, str], ends_at_seconds: float) -> list[str]:
        """Writes the presence items of a member that has none, in those of these rooms in which it still is one.

        Returns these. Raises RequestRejected (unavailable).
        """
        rooms = list(users)
        for _ in self._backoff.start(ends_at_seconds):
            entering = [action for room in rooms for action in self._actions.enter(connection, room, users[room])]
            reasons = self._transact([self._actions.connected(connection), *entering])
            if not reasons:
                return rooms
            if reasons[0].code == CONDITION_FAILED:
                return []  # the connection is closing
            of_members = reasons[1::2]
            rooms = [room for room, each in zip(rooms, of_members, strict=True) if each.code != CONDITION_FAILED]
            if not rooms:
                return []
        raise busy()

    def leave(self, connection: Connection, room: str) -> None:
        """Removes the membership, if there is one. Raises RequestRejected: then it is still there."""
        leaving: Leaving | None = None
        for _ in self._backoff.start():
            joined_room = self._joined_room(connection, room)
            if joined_room is None:
                return
            user = table.present_user(joined_room)
            if user and self._presence and leaving is None:
                leaving = Leaving(self._presence, room, user)
            actions = self._actions.leave(connection, room, joined_room)
            reasons = self._transact([*actions, self._actions.uncount(connection)])
            if reasons and reasons[-1].code == CONDITION_FAILED:  # it is gone, or a program joined it without counting
                reasons = self._transact(actions)
            if not reasons:
                if leaving:
                    leaving.deleted()
                return
        raise busy()

    def is_member(self, connection: Connection, room: str) -> bool:
        """Whether the connection has an unexpired membership of the room."""
        joined_room = self._joined_room(connection, room)
        return joined_room is not None and int(joined_room["expires_at"]["N"]) > int(seconds(connection))

    def disconnect(self, connection_id: str) -> None:
        """Removes the connection and its memberships. The connection item goes first: after that no join succeeds.

        Memberships remain where a departure cannot be announced now, and after DISCONNECT_SECONDS: they expire, and the
        worker removes them at the first post that finds the connection gone.
        """
        ends_at_seconds = self._backoff.clock() + DISCONNECT_SECONDS
        self._retry_contention(
            lambda: self._dynamodb.delete_item(TableName=self._table, Key=connection_key(connection_id)),
            ends_at_seconds,
        )
        departures = Disconnecting(self._presence) if self._presence else None
        items = self._joined_rooms(connection_id)
        for requests in table.removal_batches(connection_id, departures.deletable(items) if departures else items):
            if self._backoff.clock() >= ends_at_seconds:
                self._observer.warn("disconnect.incomplete", seconds=DISCONNECT_SECONDS)
                return
            self._write_batch(requests, ends_at_seconds)
            if departures:
                departures.deleted()

    def _transact(self, actions: Sequence[dict[str, Any]]) -> list[Reason]:
        """Returns [] on success, else one reason per action."""
        try:
            self._dynamodb.transact_write_items(TransactItems=actions)
        except ClientError as error:
            found = error.response.get("CancellationReasons", [])
            reasons = [Reason(each.get("Code", "None"), each.get("Item")) for each in found]
            if not {each.code for each in reasons} & {CONDITION_FAILED, *_CONTENDED}:
                raise
            return reasons
        return []

    def _free_rooms(self, connection: Connection) -> int:
        """How many rooms the connection may still join. Raises RequestRejected (not_connected)."""
        key = connection_key(connection.connection_id)
        found = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        if "Item" not in found or int(found["Item"]["expires_at"]["N"]) <= int(seconds(connection)):
            raise RequestRejected(Code.NOT_CONNECTED, "the connection is closing")
        rooms = int(table.lenient_number(found["Item"].get("rooms")) or 0)
        return max(0, self._max_rooms - rooms)

    def _too_many_rooms(self) -> RequestRejected:
        return RequestRejected(
            Code.TOO_MANY_ROOMS, f"room: a connection joins at most {self._max_rooms:,} rooms; leave others"
        )

    def _joined_room(self, connection: Connection, room: str) -> Item | None:
        found = self._dynamodb.get_item(
            TableName=self._table, Key=joined_room_key(connection, room), ConsistentRead=True
        )
        item: Item | None = found.get("Item")
        return item

    def _joined_rooms(self, connection_id: str) -> Iterator[Item]:
        start: dict[str, Any] = {}
        while True:
            page = self._dynamodb.query(
                TableName=self._table,
                ConsistentRead=True,
                KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
                ExpressionAttributeValues={
                    ":pk": {"S": table.connection_pk(connection_id)},
                    ":prefix": {"S": table.JOINED_ROOM_PREFIX},
                },
                **start,
            )
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def _write_batch(self, requests: list[dict[str, Any]], ends_at_seconds: float) -> None:
        unprocessed = {self._table: requests}

        def write() -> bool:
            nonlocal unprocessed
            unprocessed = self._dynamodb.batch_write_item(RequestItems=unprocessed).get("UnprocessedItems") or {}
            return not unprocessed

        self._retry_contention(write, ends_at_seconds)

    def _retry_contention(self, call: Callable[[], object], ends_at_seconds: float) -> None:
        """Retries the call while it conflicts with a transaction, and while it returns False."""
        for _ in self._backoff.start(ends_at_seconds):
            try:
                if call() is not False:
                    return
            except ClientError as error:
                if error.response["Error"]["Code"] != "TransactionConflictException":
                    raise
        raise busy()
