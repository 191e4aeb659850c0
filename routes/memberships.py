"""Connections and memberships: the routes' writes to the table.

Always: a membership and its joined-room item are created and deleted together, and created only while the connection
item exists, so a join that loses the race with `$disconnect` leaves nothing behind. Every operation is idempotent.
All items of a connection expire at the same time, with its token if it has one: from then on workers do not post to it.
The SDK's errors pass through. If contention persists, the request is rejected as unavailable.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from botocore.exceptions import ClientError

from gatecast import table
from gatecast.table import Item
from routes.backoff import Backoff
from routes.join_shards import JoinShards
from routes.log import logger
from routes.requests import Caller
from routes.responses import Code, RequestRejected

CONDITION_FAILED: Final = "ConditionalCheckFailed"
DISCONNECT_SECONDS: Final = 15.0
"""After this `disconnect` begins no further call; one that is in progress takes 9 s at most. API Gateway waits 29 s."""
_UNLIMITED: Final = 10**9
_CONTENDED: Final = frozenset({"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})


class DynamoDB(Protocol):
    """The calls of a boto3 DynamoDB client that the routes need."""

    def get_item(self, **kwargs: Any) -> Any: ...
    def delete_item(self, **kwargs: Any) -> Any: ...
    def query(self, **kwargs: Any) -> Any: ...
    def transact_write_items(self, **kwargs: Any) -> Any: ...
    def batch_write_item(self, **kwargs: Any) -> Any: ...


class Memberships:
    """The table, through a boto3 client. Thread-safe."""

    def __init__(
        self, dynamodb: DynamoDB, table_name: str, *, max_rooms: int = 0, backoff: Backoff | None = None
    ) -> None:
        """A connection may join at most `max_rooms` rooms, besides those of `connect`; 0 means no limit."""
        self._dynamodb = dynamodb
        self._max_rooms = max_rooms
        self._table = table_name
        self._backoff = backoff or Backoff()
        self._join_shards = JoinShards(dynamodb, table_name, self._backoff.clock)

    def connect(self, caller: Caller, rooms: Sequence[str]) -> None:
        """Writes the connection and its memberships of these rooms in one transaction. Raises RequestRejected."""
        attempts = self._backoff.start()
        connection = {
            **table.connection_item(caller.connection_id, connected_at_ms=caller.connected_at_ms, user=caller.user),
            "expires_at": {"N": str(caller.expires_at)},
        }
        items = [connection, *(item for room in rooms for item in self._join_items(caller, room))]
        actions = [self._action("Put", Item=item) for item in items]
        for _ in attempts:
            if not self._transact(actions):
                return
        raise _contention()

    def join(self, caller: Caller, room: str) -> None:
        """Makes the connection a member. Keeps an existing membership.

        Raises RequestRejected (not_connected, too_many_rooms). The connection counts its rooms in the same transaction.
        """
        attempts = self._backoff.start()
        membership, joined_room = self._join_items(caller, room)
        now = {":now": {"N": _seconds(caller)}}
        actions = [
            self._action(
                "Update",
                Key=_connection_key(caller.connection_id),
                UpdateExpression="ADD rooms :one",
                ConditionExpression="attribute_exists(pk) AND expires_at > :now"
                " AND (attribute_not_exists(rooms) OR rooms < :max)",
                ExpressionAttributeValues={
                    **now,
                    ":one": {"N": "1"},
                    ":max": {"N": str(self._max_rooms or _UNLIMITED)},
                },
            ),
            self._action("Put", Item=membership),
            self._action(
                "Put",
                Item=joined_room,
                ConditionExpression="attribute_not_exists(pk) OR expires_at <= :now",
                ExpressionAttributeValues=now,
            ),
        ]
        for _ in attempts:
            match self._transact(actions):
                case []:
                    return
                case [code, _, _] if code == CONDITION_FAILED and not self._is_connected(caller):
                    raise RequestRejected(Code.NOT_CONNECTED, "the connection is closing")
                case [_, _, code] if code == CONDITION_FAILED:
                    return  # already a member
                case [code, _, _] if code == CONDITION_FAILED:
                    raise RequestRejected(
                        Code.TOO_MANY_ROOMS, f"room: a connection joins at most {self._max_rooms:,} rooms; leave others"
                    )
        raise _contention()

    def leave(self, caller: Caller, room: str) -> None:
        """Removes the membership, if there is one. Raises RequestRejected."""
        for _ in self._backoff.start():
            joined_room = self._joined_room(caller, room)
            if joined_room is None:
                return
            shard = joined_room["shard"]
            membership = table.key(table.room_pk(room, int(shard["N"])), caller.connection_id)
            actions = [
                self._action("Delete", Key=membership),
                self._action(
                    "Delete",
                    Key=_joined_room_key(caller, room),
                    # left, or rejoined on another shard, in between: retry with what is there now
                    ConditionExpression="#shard = :shard",
                    ExpressionAttributeNames={"#shard": "shard"},  # a reserved word
                    ExpressionAttributeValues={":shard": shard},
                ),
            ]
            counted = self._action(
                "Update",
                Key=_connection_key(caller.connection_id),
                UpdateExpression="ADD rooms :minus_one",
                ConditionExpression="rooms > :zero",
                ExpressionAttributeValues={":minus_one": {"N": "-1"}, ":zero": {"N": "0"}},
            )
            codes = self._transact([*actions, counted])
            if codes[-1:] == [CONDITION_FAILED]:  # the connection is gone, or a program joined it without counting
                codes = self._transact(actions)
            if not codes:
                return
        raise _contention()

    def is_member(self, caller: Caller, room: str) -> bool:
        """Whether the caller has an unexpired membership of the room."""
        joined_room = self._joined_room(caller, room)
        return joined_room is not None and int(joined_room["expires_at"]["N"]) > int(_seconds(caller))

    def disconnect(self, connection_id: str) -> None:
        """Removes the connection and its memberships. The connection item goes first: after that no join succeeds.

        Ends after DISCONNECT_SECONDS, even if memberships remain: they expire, and the worker removes them at the first
        post that finds the connection gone.
        """
        ends_at_seconds = self._backoff.clock() + DISCONNECT_SECONDS
        self._retry_contention(
            lambda: self._dynamodb.delete_item(TableName=self._table, Key=_connection_key(connection_id)),
            ends_at_seconds,
        )
        for requests in table.removal_batches(connection_id, self._joined_rooms(connection_id)):
            if self._backoff.clock() >= ends_at_seconds:
                logger.warning("disconnect.incomplete", extra={"seconds": DISCONNECT_SECONDS})
                return
            self._write_batch(requests, ends_at_seconds)

    def _join_items(self, caller: Caller, room: str) -> tuple[Item, Item]:
        shard = table.shard_of(caller.connection_id, self._join_shards.get(room))
        membership = table.membership_item(
            room,
            shard,
            caller.connection_id,
            joined_at_ms=caller.requested_at_ms,
            expires_at=caller.expires_at,
            user=caller.user,
        )
        return membership, table.joined_room_item(caller.connection_id, room, shard, expires_at=caller.expires_at)

    def _action(self, kind: str, **arguments: Any) -> dict[str, Any]:
        return {kind: {"TableName": self._table, **arguments}}

    def _transact(self, actions: Sequence[dict[str, Any]]) -> list[str]:
        """Returns [] on success, else one code per action: a failed condition, a conflict, or "None"."""
        try:
            self._dynamodb.transact_write_items(TransactItems=actions)
        except ClientError as error:
            codes = [reason.get("Code", "None") for reason in error.response.get("CancellationReasons", [])]
            if not set(codes) & {CONDITION_FAILED, *_CONTENDED}:
                raise
            return codes
        return []

    def _is_connected(self, caller: Caller) -> bool:
        key = _connection_key(caller.connection_id)
        found = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return "Item" in found and int(found["Item"]["expires_at"]["N"]) > int(_seconds(caller))

    def _joined_room(self, caller: Caller, room: str) -> Item | None:
        found = self._dynamodb.get_item(TableName=self._table, Key=_joined_room_key(caller, room), ConsistentRead=True)
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
        raise _contention()


def _connection_key(connection_id: str) -> table.Key:
    return table.key(table.connection_pk(connection_id), table.CONNECTION_SK)


def _joined_room_key(caller: Caller, room: str) -> table.Key:
    return table.key(table.connection_pk(caller.connection_id), table.joined_room_sk(room))


def _seconds(caller: Caller) -> str:
    return str(caller.requested_at_ms // 1000)


def _contention() -> RequestRejected:
    return RequestRejected(Code.UNAVAILABLE, "busy: retry")
