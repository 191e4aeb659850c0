"""Rooms' histories in memory, with the reads of DynamoDB that `routes.streams` needs."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
from botocore.exceptions import ClientError
from msgspec import UNSET

from gatecast import table
from gatecast.broadcast import Reference
from gatecast.entries import entry_item
from gatecast.frames import Message

MAX_PAGE_BYTES = 1_000_000
UNIT_BYTES = 4_096
"""Of a consistent read: one read unit."""
Item = dict[str, Any]


class StreamTable:
    """`calls` are the reads and writes in order, `read_units` what the reads cost. `now` is in seconds since the epoch.

    `on_call` is called before each of them; entries for which `hides` is true are left out by queries, but not by
    GetItem, as a transaction that is being applied may be.
    """

    def __init__(self, now: float) -> None:
        self.now = now
        self.items: dict[tuple[str, str], Item] = {}
        self.calls: list[str] = []
        self.read_units = 0
        self.on_call: Callable[[str], object] = lambda _call: None
        self.hides: Callable[[int], bool] = lambda _offset: False
        self.unprocessed = 0
        """How many of the next calls of BatchGetItem leave all but one key unprocessed."""
        self.failure: Exception | None = None

    def clock(self) -> float:
        return self.now

    def append(
        self,
        room: str,
        data: str | None = "hello",
        *,
        json: bytes | None = None,
        seconds: float = 3600,
        expires_at_ms: int | None = None,
        from_: str | None = None,
        reference: Reference | None = None,
    ) -> int:
        """What a worker's transaction writes; the offset."""
        offset = (self.head(room) or int(self.now * 1000) - 1) + 1
        message = Message(
            id=f"id-{offset}",
            offset=offset,
            published_at_ms=int(self.now * 1000),
            data=UNSET if data is None or json is not None or reference is not None else data,
            json=UNSET if json is None else msgspec.Raw(json),
            from_=from_ or UNSET,
        )
        expires_at = int(self.now + seconds)
        item: Item = entry_item(
            room,
            message,
            expires_at=expires_at,
            message_expires_at_ms=expires_at_ms,
            reference=reference or UNSET,
        )
        self.items[table.stream_pk(room), table.entry_sk(offset)] = item
        self.set_head(room, {"N": str(offset)})
        return offset

    def head(self, room: str) -> int | None:
        return table.offset_of_head(self.items.get((table.stream_pk(room), table.HEAD_SK)))

    def set_head(self, room: str, offset: Any) -> None:
        key = table.key(table.stream_pk(room), table.HEAD_SK)
        self.items[table.stream_pk(room), table.HEAD_SK] = {**key, "offset": offset}

    def delete(self, room: str, offset: int) -> None:
        self.items.pop((table.stream_pk(room), table.entry_sk(offset)), None)

    def entry(self, room: str, offset: int) -> Item | None:
        return self.items.get((table.stream_pk(room), table.entry_sk(offset)))

    # The calls of a boto3 client

    def _called(self, call: str) -> None:
        self.on_call(call)
        self.calls.append(call)
        if self.failure:
            raise self.failure

    def get_item(self, **call: Any) -> Any:
        self._called("GetItem")
        assert call["ConsistentRead"] is True
        item = self.items.get((call["Key"]["pk"]["S"], call["Key"]["sk"]["S"]))
        self.read_units += units(size_of(item or {}))
        return {"Item": item} if item else {}

    def batch_get_item(self, **call: Any) -> Any:
        self._called("BatchGetItem")
        ((name, wanted),) = call["RequestItems"].items()
        assert wanted["ConsistentRead"] is True
        keys = wanted["Keys"]
        read = keys
        if self.unprocessed:
            self.unprocessed -= 1
            read = keys[:1]
        found = [self.items.get((key["pk"]["S"], key["sk"]["S"])) for key in read]
        self.read_units += sum(units(size_of(item or {})) for item in found)
        rest = {name: {**wanted, "Keys": keys[len(read) :]}} if len(read) < len(keys) else {}
        return {"Responses": {name: [item for item in found if item]}, "UnprocessedKeys": rest}

    def put_item(self, **call: Any) -> Any:
        self._called("PutItem")
        assert call["ExpressionAttributeNames"] == {"#offset": "offset"}
        item = call["Item"]
        key = (item["pk"]["S"], item["sk"]["S"])
        existing = self.items.get(key, {}).get("offset")
        if call["ConditionExpression"] == "attribute_not_exists(#offset)":
            holds = existing is None
        else:
            assert call["ConditionExpression"] == "#offset = :seen"
            holds = existing == call["ExpressionAttributeValues"][":seen"]
        if not holds:
            raise client_error("ConditionalCheckFailedException", "PutItem")
        self.items[key] = item

    def query(self, **call: Any) -> Any:
        self._called("Query")
        assert call["ConsistentRead"] is True
        assert call["KeyConditionExpression"] == "pk = :pk AND sk BETWEEN :low AND :high"
        pk, low, high = (call["ExpressionAttributeValues"][name]["S"] for name in (":pk", ":low", ":high"))
        assert low <= high
        keys = sorted(key for key in self.items if key[0] == pk and low <= key[1] <= high)
        found: list[Item] = []
        size = 0
        for key in keys if call["ScanIndexForward"] else reversed(keys):
            if len(found) == call["Limit"] or size > MAX_PAGE_BYTES:
                break
            found.append(self.items[key])
            size += size_of(self.items[key])
        self.read_units += units(size)
        page: Item = {"Items": self._visible(found)}
        if len(found) == call["Limit"] or len(found) < len(keys):  # at exactly the limit, there may be no more
            page["LastEvaluatedKey"] = {"pk": {"S": pk}, "sk": found[-1]["sk"]}
        return page

    def _visible(self, items: list[Item]) -> list[Item]:
        return [item for item in items if not self.hides(int(item["sk"]["S"].removeprefix(table.ENTRY_PREFIX)))]


def size_of(item: Item) -> int:
    """About what DynamoDB counts: names and values, in UTF-8."""
    return sum(len(name) + sum(len(str(text).encode()) for text in value.values()) for name, value in item.items())


def units(size: int) -> int:
    return max(1, math.ceil(size / UNIT_BYTES))


def client_error(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "secret"}}, operation)
