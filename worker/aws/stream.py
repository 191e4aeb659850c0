"""Rooms' histories in DynamoDB: the head of a room's stream, and the transaction that appends to it.

`worker.decisions.history` describes the transaction. If it is cancelled, the response contains a reason for each of its
actions, with the item that did not meet the condition. Source: the API reference of TransactWriteItems.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from gatecast import table as keys
from worker.aws.errors import CONDITION_FAILED, TRANSACTION_CANCELLED, ServiceError, reading_response
from worker.aws.json_service import JsonService
from worker.decisions.history import Attribute, Conflict, SeenHead
from worker.ports import Append, DependencyError, EntryRejected, NewEntry

_FAILED: Final = "ConditionalCheckFailed"
_CONFLICT: Final = "TransactionConflict"
_REJECTED: Final = ("ValidationError", "ItemCollectionSizeLimitExceeded")
_MISMATCH: Final = "IdempotentParameterMismatchException"
_NAMES: Final = {"#offset": "offset"}  # a reserved word


class _Head(msgspec.Struct):
    offset: dict[str, Any] | None = None


class _GetItem(msgspec.Struct):
    item: _Head = msgspec.field(name="Item", default_factory=_Head)


class _Reason(msgspec.Struct):
    code: str = msgspec.field(name="Code", default="None")
    item: dict[str, Any] | None = msgspec.field(name="Item", default=None)


class _Cancelled(msgspec.Struct):
    reasons: list[_Reason] = msgspec.field(name="CancellationReasons")


class Stream:
    """Every call raises what `JsonService` raises."""

    def __init__(self, service: JsonService, table: str) -> None:
        self._service = service
        self._table = table

    async def head(self, room: str) -> SeenHead:
        """The room's head, read consistently."""
        body: dict[str, Any] = {
            "TableName": self._table,
            "Key": keys.key(keys.stream_pk(room), keys.HEAD_SK),
            "ProjectionExpression": "#offset",
            "ExpressionAttributeNames": _NAMES,
            "ConsistentRead": True,
        }
        response_body = await self._service.call("GetItem", msgspec.json.encode(body))
        with reading_response():
            return SeenHead(msgspec.json.decode(response_body, type=_GetItem).item.offset)

    async def append(self, request: Append) -> Conflict | None:
        """Execute the transaction. Returns why it was not executed, or None if it was. Raises EntryRejected."""
        body = {"ClientRequestToken": request.token, "TransactItems": list(self._actions(request))}
        try:
            await self._service.call("TransactWriteItems", msgspec.json.encode(body))
        except ServiceError as error:
            if error.code == TRANSACTION_CANCELLED:
                return _to_conflict(request, error.detail)
            if error.code == "ValidationException":
                raise EntryRejected(error.code) from error
            if error.code == _MISMATCH:  # nothing was executed; the caller makes another transaction
                return Conflict()
            raise
        return None

    async def skip(self, room: str) -> None:
        """Advance the room's head by one offset that has no entry; do nothing if there is no head, or a damaged one."""
        body = {
            "TableName": self._table,
            "Key": keys.key(keys.stream_pk(room), keys.HEAD_SK),
            "UpdateExpression": "SET #offset = #offset + :one",
            "ConditionExpression": "attribute_exists(#offset)",
            "ExpressionAttributeNames": _NAMES,
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        }
        try:
            await self._service.call("UpdateItem", msgspec.json.encode(body))
        except ServiceError as error:
            if error.code not in {CONDITION_FAILED, "ValidationException"}:  # the latter: the offset is no number
                raise

    def _actions(self, request: Append) -> Iterator[dict[str, Any]]:
        """First the head's, then for each entry its own and that of its broadcast's progress item."""
        seen = request.head.stored
        yield self._update(
            keys.key(keys.stream_pk(request.room), keys.HEAD_SK),
            request.entries[-1].offset,
            "attribute_not_exists(#offset)" if seen is None else "#offset = :seen",
            {} if seen is None else {":seen": seen},
        )
        for entry in request.entries:
            yield {
                "Put": {
                    "TableName": self._table,
                    "Item": entry.item,
                    "ConditionExpression": "attribute_not_exists(pk)",
                }
            }
            yield self._update(
                entry.claim.key,
                entry.offset,
                "claimed_by = :claimed_by AND attribute_not_exists(#offset)",
                {":claimed_by": {"S": entry.claim.claim_id}},
            )

    def _update(self, key: keys.Key, offset: int, condition: str, values: dict[str, Attribute]) -> dict[str, Any]:
        return {
            "Update": {
                "TableName": self._table,
                "Key": key,
                "UpdateExpression": "SET #offset = :offset",
                "ConditionExpression": condition,
                "ExpressionAttributeNames": _NAMES,
                "ExpressionAttributeValues": {":offset": {"N": str(offset)}, **values},
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }


def _to_conflict(request: Append, detail: bytes) -> Conflict:
    """Raises EntryRejected, or DependencyError if none of the reasons is a condition or another transaction."""
    with reading_response():
        reasons = msgspec.json.decode(detail, type=_Cancelled).reasons
        head, *others = reasons
        pairs = list(zip(request.entries, others[::2], others[1::2], strict=True))
    codes = [reason.code for reason in reasons]
    if _FAILED not in codes:
        if rejected := next((code for code in codes if code in _REJECTED), None):
            raise EntryRejected(rejected)
        if _CONFLICT in codes:
            return Conflict()
        raise DependencyError(next((code for code in codes if code != "None"), TRANSACTION_CANCELLED))
    recorded, taken_over = _of_broadcasts([(entry, progress) for entry, _, progress in pairs])
    failed = head.code == _FAILED
    return Conflict(
        head=SeenHead(head.item.get("offset")) if failed and head.item is not None else None,
        head_changed=failed,
        occupied=frozenset(number for number, (_, put, _) in enumerate(pairs) if put.code == _FAILED),
        recorded=recorded,
        taken_over=taken_over,
    )


def _of_broadcasts(pairs: Sequence[tuple[NewEntry, _Reason]]) -> tuple[dict[int, int], frozenset[int]]:
    """The offsets that are recorded already, and which broadcasts are claimed by this worker no more."""
    recorded: dict[int, int] = {}
    taken_over = set()
    for number, (entry, reason) in enumerate(pairs):
        if reason.code != _FAILED:
            continue
        item = reason.item or {}
        offset = keys.offset_of_head(item)
        if item.get("claimed_by") == {"S": entry.claim.claim_id} and offset:
            recorded[number] = offset
        else:
            taken_over.add(number)
    return recorded, frozenset(taken_over)
