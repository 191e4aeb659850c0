"""Shared receipts in DynamoDB: one item per broadcast with parts, changed by conditional writes alone.

It has `begun_by` S, the sets `expected` and `ended` of parts' names, the sums N, `milliseconds` N and `expires_at`.
`worker.decisions.receipts` says what each call does. An item that no worker has written is no shared receipt.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gatecast.table import Key
from worker.aws.errors import CONDITION_FAILED, ServiceError, reading_response
from worker.aws.json_service import JsonService
from worker.aws.progress_item import TTL_SECONDS
from worker.decisions.receipts import SharedReceipt, Sums

_WRONG_TYPE: Final = "ValidationException"
_SUMS: Final = Sums._fields
_EXPECT: Final = "SET expires_at = :expires ADD expected :parts"
_BEGIN: Final = (
    f"SET expires_at = :expires, begun_by = :begun_by, expected = :parts REMOVE ended, milliseconds, {', '.join(_SUMS)}"
)
_FORGET: Final = "SET expires_at = :expires DELETE expected :parts"
_ADD_SUMS: Final = f"ADD ended :parts, {', '.join(f'{name} :{name}' for name in _SUMS)}"
_END: Final = f"SET expires_at = :expires {_ADD_SUMS}"
_END_LAST: Final = f"SET expires_at = :expires, milliseconds = :milliseconds {_ADD_SUMS}"


class _Set(msgspec.Struct):
    names: list[str] = msgspec.field(name="SS")


class _S(msgspec.Struct):
    S: str


class _Item(msgspec.Struct):
    begun_by: _S
    expected: _Set
    ended: _Set | None = None


class _Updated(msgspec.Struct):
    attributes: dict[str, Any] = msgspec.field(name="Attributes", default_factory=dict)


class _ConditionFailed(msgspec.Struct):
    item: dict[str, Any] = msgspec.field(name="Item", default_factory=dict)


class SharedReceipts:
    """Every call raises what `JsonService` raises. `wall_clock` gives seconds since the epoch."""

    def __init__(self, service: JsonService, table: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self._table = table
        self._wall_clock = wall_clock

    async def expect(self, key: Key, begun_by: str, parts: Sequence[str]) -> None:
        """Expect these parts. `begun_by` is empty if it is a part that expects others."""
        values: dict[str, Any] = {":parts": {"SS": list(parts)}}
        if not begun_by:
            await self._update(key, _EXPECT, "attribute_exists(begun_by)", values)
            return
        values[":begun_by"] = {"S": begun_by}
        began = await self._update(key, _BEGIN, "attribute_not_exists(begun_by) OR begun_by <> :begun_by", values)
        if not began:
            await self._update(key, _EXPECT, "begun_by = :begun_by", values)

    async def forget(self, key: Key, part: str) -> None:
        """Expect a part no more."""
        await self._update(key, _FORGET, "attribute_exists(begun_by)", {":parts": {"SS": [part]}})

    async def end(self, key: Key, part: str, sums: Sums, milliseconds: int) -> SharedReceipt | None:
        """Add what a part has counted, once. Returns the shared receipt; None if the part is not one of it."""
        values: dict[str, Any] = {
            ":part": {"S": part},
            ":parts": {"SS": [part]},
            **{f":{name}": {"N": str(count)} for name, count in sums._asdict().items()},
        }
        update = _END
        if milliseconds:
            update = _END_LAST
            values[":milliseconds"] = {"N": str(milliseconds)}
        condition = "contains(expected, :part) AND NOT contains(ended, :part)"
        body = {**self._body(key, update, condition, values), "ReturnValues": "ALL_NEW"}
        try:
            response = await self._service.call("UpdateItem", msgspec.json.encode(body))
            with reading_response():
                item = msgspec.json.decode(response, type=_Updated).attributes
        except ServiceError as error:
            if error.code == _WRONG_TYPE:
                return None
            if error.code != CONDITION_FAILED:
                raise
            with reading_response():
                item = msgspec.json.decode(error.detail, type=_ConditionFailed).item
        receipt = _parsed(item)
        return receipt if receipt is not None and part in receipt.expected else None

    async def _update(self, key: Key, update: str, condition: str, values: Mapping[str, Any]) -> bool:
        """Whether the condition was met. An item with an attribute of another type meets none."""
        try:
            await self._service.call("UpdateItem", msgspec.json.encode(self._body(key, update, condition, values)))
        except ServiceError as error:
            if error.code in (CONDITION_FAILED, _WRONG_TYPE):
                return False
            raise
        return True

    def _body(self, key: Key, update: str, condition: str, values: Mapping[str, Any]) -> dict[str, Any]:
        expires = {":expires": {"N": str(int(self._wall_clock()) + TTL_SECONDS)}}
        return {
            "TableName": self._table,
            "Key": key,
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {**values, **expires},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


def _parsed(item: Mapping[str, Any]) -> SharedReceipt | None:
    try:
        found = msgspec.convert(item, type=_Item)
        numbers = {name: int(item[name]["N"]) for name in (*_SUMS, "milliseconds") if name in item}
    except (msgspec.ValidationError, ValueError, LookupError, TypeError):
        return None
    milliseconds = numbers.pop("milliseconds", 0)
    ended = frozenset(found.ended.names) if found.ended else frozenset[str]()
    return SharedReceipt(found.begun_by.S, frozenset(found.expected.names), ended, Sums(**numbers), milliseconds)
