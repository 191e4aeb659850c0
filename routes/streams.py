"""Reads rooms' histories from the table: heads and entries, always consistently.

A head and the entries up to it are written in one transaction. So an entry that is absent although the head has reached
its offset has been removed. The SDK's errors pass through.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from botocore.exceptions import ClientError

from gatecast import table
from gatecast.entries import Entry
from gatecast.rooms.backoff import Backoff, busy
from routes.entry_cache import StoredEntry
from routes.log import logger
from routes.responses import MAX_MESSAGE_BYTES

_CONTENDED: Final = frozenset({"TransactionConflictException"})


class DynamoDB(Protocol):
    """The calls of a boto3 DynamoDB client that reading needs."""

    def get_item(self, **kwargs: Any) -> Any: ...
    def batch_get_item(self, **kwargs: Any) -> Any: ...
    def put_item(self, **kwargs: Any) -> Any: ...
    def query(self, **kwargs: Any) -> Any: ...


class Page(NamedTuple):
    """Entries by offset, and whether there is none beyond them in the range that was asked for."""

    entries: dict[int, StoredEntry]
    is_complete: bool


class Streams:
    """The table, through a boto3 client. `clock` is in seconds since the epoch. Thread-safe."""

    def __init__(
        self,
        dynamodb: DynamoDB,
        table_name: str,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._backoff = backoff or Backoff()
        self._clock = clock

    def heads(self, rooms: Sequence[str], *, create: bool = True) -> dict[str, int]:
        """The offset of each room's latest message, with one call.

        A room without a head gets one, the clock in milliseconds, so that its next message does not look like a gap.
        Without `create` it gets none, and the clock is returned.
        """
        items = self._one_head(rooms[0]) if len(rooms) == 1 else self._many_heads(rooms)
        heads: dict[str, int] = {}
        for room in rooms:
            offset = table.offset_of_head(items.get(room))
            if offset is None:
                offset = self._create_head(room, items.get(room)) if create else int(self._clock() * 1000)
            heads[room] = offset
        return heads

    def read(self, room: str, first: int, last: int, limit: int) -> Page:
        """At most `limit` entries from `first` towards `last`, both included, in either direction."""
        low, high = sorted((first, last))
        found = self._dynamodb.query(
            TableName=self._table,
            ConsistentRead=True,
            KeyConditionExpression="pk = :pk AND sk BETWEEN :low AND :high",
            ExpressionAttributeValues={
                ":pk": {"S": table.stream_pk(room)},
                ":low": {"S": table.entry_sk(low)},
                ":high": {"S": table.entry_sk(high)},
            },
            ScanIndexForward=last >= first,
            Limit=limit,
        )
        return Page(
            {offset: _stored(item) for item in found["Items"] if (offset := _offset(item)) is not None},
            "LastEvaluatedKey" not in found,
        )

    def entry(self, room: str, offset: int) -> StoredEntry | None:
        """The entry at this offset, if it is there."""
        found = self._dynamodb.get_item(
            TableName=self._table, Key=table.key(table.stream_pk(room), table.entry_sk(offset)), ConsistentRead=True
        )
        return _stored(found["Item"]) if "Item" in found else None

    def _one_head(self, room: str) -> dict[str, Any]:
        found = self._dynamodb.get_item(TableName=self._table, Key=_head_key(room), ConsistentRead=True)
        return {room: found["Item"]} if "Item" in found else {}

    def _many_heads(self, rooms: Sequence[str]) -> dict[str, Any]:
        by_pk = {table.stream_pk(room): room for room in rooms}
        wanted: Any = {"Keys": [_head_key(room) for room in rooms], "ConsistentRead": True}
        heads: dict[str, Any] = {}
        for _ in self._backoff.start():
            response = self._dynamodb.batch_get_item(RequestItems={self._table: wanted})
            found = response.get("Responses", {}).get(self._table, ())
            heads |= {by_pk[item["pk"]["S"]]: item for item in found}
            wanted = response.get("UnprocessedKeys", {}).get(self._table)
            if not wanted:
                return heads
        raise busy()

    def _create_head(self, room: str, damaged: Mapping[str, Any] | None) -> int:
        """Writes a head in place of none, or of one without an offset, and returns its offset.

        Of several that do this at once, and of a worker that appends, one succeeds.
        """
        seen = damaged.get("offset") if damaged else None
        if seen is not None:
            logger.warning(
                "stream.damaged", extra={"reason": "the head has no valid offset: it continues at the clock"}
            )
        for _ in self._backoff.start():
            offset = int(self._clock() * 1000)
            try:
                self._dynamodb.put_item(
                    TableName=self._table,
                    Item={**_head_key(room), "offset": {"N": str(offset)}},
                    ConditionExpression="attribute_not_exists(#offset)" if seen is None else "#offset = :seen",
                    ExpressionAttributeNames={"#offset": "offset"},  # a reserved word
                    **({} if seen is None else {"ExpressionAttributeValues": {":seen": seen}}),
                )
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in _CONTENDED:
                    continue
                if code != "ConditionalCheckFailedException":
                    raise
                written = table.offset_of_head(self._one_head(room).get(room))
                if written is not None:
                    return written
            else:
                return offset
        raise busy()


def _head_key(room: str) -> table.Key:
    return table.key(table.stream_pk(room), table.HEAD_SK)


def _offset(item: Mapping[str, Any]) -> int | None:
    """The offset in an entry's key, if it has one."""
    digits = item["sk"]["S"].removeprefix(table.ENTRY_PREFIX)
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def _stored(item: Mapping[str, Any]) -> StoredEntry:
    entry = Entry.from_item(item)
    if entry is None:
        logger.warning("stream.damaged", extra={"reason": "an entry has an invalid field: it counts as missing"})
        return StoredEntry(None, float("inf"), None)
    encoded = bytes(entry.message.encode())
    fits = len(encoded) <= MAX_MESSAGE_BYTES
    return StoredEntry(encoded if fits else None, entry.expires_at, entry.message_expires_at_ms, entry.reference)
