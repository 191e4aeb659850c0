"""Claims, checkpoints and completions in DynamoDB: conditional writes to a broadcast's progress item.

`worker.decisions.claims` decides which message may resume a broadcast; `progress_item` defines the item's form. Most
claims are decided by the condition of their first write, which is equivalent to `decide`. If the condition fails, the
error contains the item; it is judged, and claimed only if it has not changed since it was read.

All writes except claims and completions are conditional on `claimed_by`: if that condition fails, another worker has
taken over. A completion needs no condition: it records that every member has an outcome, whichever worker holds the
claim.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from gatecast import table as keys
from gatecast.broadcast import Broadcast
from gatecast.table import Key
from worker.aws.errors import CONDITION_FAILED, ServiceError, reading_response
from worker.aws.json_service import JsonService
from worker.aws.progress_item import (
    TTL_SECONDS,
    CompletedKey,
    ProgressItem,
    UnreadableItem,
    completed_item,
    judging,
    parse_item,
    reset_item,
)
from worker.batcher import Batcher
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed, Resumption, decide
from worker.ports import Claim, DamagedProgress, DependencyError

_MAX_CLAIMS: Final = 25
_CLAIM_WAIT_SECONDS: Final = 0.003
_TAKE_OVER: Final = (
    "attribute_not_exists(completed_at) AND (attribute_not_exists(pk) OR attribute_not_exists(message_id)"
    " OR (message_id = :message_id AND (receives < :receives OR claimed_by = :claimed_by)))"
)
_IS_CLAIMED: Final = "claimed_by = :claimed_by"
_IS_LATEST: Final = (
    f"{_IS_CLAIMED} AND (attribute_not_exists(receipt_revision) OR receipt_revision <= :receipt_revision)"
)
"""A write may arrive after a later one. Without counts that only repeats posts."""
_VERSION_ATTRIBUTES: Final = ("message_id", "claimed_by", "renewed_at", "completed_at")
"""If these are unchanged, the item is unchanged since it was read."""
_KEEP_CHECKPOINT: Final = "REMOVE renewed_at, receipt_revision"
_REMOVE_CHECKPOINT: Final = (
    "REMOVE renewed_at, completed_at, #cursor, pending, pending_v2, receipt, receipt_revision, #offset"
)
_CLAIM_ATTRIBUTES: Final = (
    "pk",
    "sk",
    "message_id",
    "claimed_by",
    "receives",
    "claimed_at",
    "expires_at",
    "progressed_at_receive",
)


class _ConditionNotMet(Exception):
    def __init__(self, item: ProgressItem) -> None:
        self.item = item


class _UpdateResponse(msgspec.Struct):
    attributes: msgspec.Raw = msgspec.field(name="Attributes", default=msgspec.Raw(b"{}"))


class _ConditionFailed(msgspec.Struct):
    item: msgspec.Raw = msgspec.field(name="Item", default=msgspec.Raw(b"{}"))


class _Put(msgspec.Struct):
    item: CompletedKey = msgspec.field(name="Item")


class _Request(msgspec.Struct):
    put: _Put | None = msgspec.field(name="PutRequest", default=None)


class _BatchWriteResponse(msgspec.Struct):
    unprocessed: dict[str, list[_Request]] = msgspec.field(name="UnprocessedItems", default_factory=dict)


class _StatementError(msgspec.Struct):
    code: str = msgspec.field(name="Code", default="Unknown")


class _StatementResponse(msgspec.Struct):
    error: _StatementError | None = msgspec.field(name="Error", default=None)


class _StatementsResponse(msgspec.Struct):
    responses: list[_StatementResponse] = msgspec.field(name="Responses")


class Progress:
    """Every call raises what `JsonService` raises. `wall_clock` gives seconds since the epoch."""

    def __init__(self, service: JsonService, table: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self._table = table
        self._wall_clock = wall_clock
        values = ", ".join(f"'{name}': ?" for name in _CLAIM_ATTRIBUTES)
        # The operator configures the table's name, and it is validated, so it cannot inject anything.
        self._insert = f'INSERT INTO "{table}" VALUE {{{values}}}'
        self._first_claims: Batcher[list[dict[str, str]], str | None] = Batcher(
            self._insert_claims, max_items=_MAX_CLAIMS, wait_seconds=_CLAIM_WAIT_SECONDS, urgent=True
        )

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        """One conditional write; concurrent claims share a call. Idempotent per claimant.

        Raises DamagedProgress for an item that no worker can have written.
        """
        pk, sk = keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part)
        now = int(self._wall_clock())
        if claimant.receive_count == 1:
            values = (pk, sk, claimant.message_id, claimant.claim_id)
            numbers = (claimant.receive_count, now, now + TTL_SECONDS, claimant.waited)
            row = [*({"S": value} for value in values), *({"N": str(number)} for number in numbers)]
            code = await self._first_claims.submit(row)
            if code is None:
                return _claim(keys.key(pk, sk), claimant, Checkpoint(), 0)
            if "DuplicateItem" not in code:
                raise DependencyError(code)
        try:
            return await self._take_over(broadcast, keys.key(pk, sk), claimant, now)
        except UnreadableItem as error:
            raise DamagedProgress(pk, error.offset) from error

    async def _insert_claims(self, rows: Sequence[list[dict[str, str]]]) -> list[str | None]:
        first = {(row[0]["S"], row[1]["S"]): row for row in reversed(rows)}  # a call may contain each key only once
        body = {"Statements": [{"Statement": self._insert, "Parameters": row} for row in first.values()]}
        response_body = await self._service.call("BatchExecuteStatement", msgspec.json.encode(body))
        with reading_response():
            responses = msgspec.json.decode(response_body, type=_StatementsResponse).responses
            codes = {
                id(row): response.error.code if response.error else None
                for row, response in zip(first.values(), responses, strict=True)
            }
        return [codes.get(id(row), "DuplicateItem") for row in rows]

    async def _take_over(self, broadcast: Broadcast, key: Key, claimant: Claimant, now: int) -> Claim | NotClaimed:
        """Claim an item that normally exists already."""
        try:
            before = await self._write_claim(key, claimant, now, condition=_TAKE_OVER, waited=claimant.waited)
        except _ConditionNotMet as held:
            return await self._claim_another(broadcast, key, claimant, now, held.item)
        with judging(before):
            progressed_at = before.progressed_at()
            waited = claimant.waited if progressed_at is None else progressed_at
            return _claim(key, claimant, before.start(broadcast), waited, before.valid_offset())

    async def _claim_another(
        self, broadcast: Broadcast, key: Key, claimant: Claimant, now: int, item: ProgressItem
    ) -> Claim | NotClaimed:
        """Claim an item that another message holds, if it may be claimed and has not changed since it was read."""
        with judging(item):
            standing = item.standing(now)
            verdict = decide(standing, claimant, now)
            if isinstance(verdict, NotClaimed):
                return verdict
            if standing.message_id in (None, claimant.message_id):
                return NotClaimed.HELD  # the item has changed since the condition failed
            from_start = verdict is Resumption.FROM_START
            start = Checkpoint() if from_start else item.start(broadcast)
        waited = claimant.receive_count - 1  # earlier receives only waited for the other message's claim
        seen = {
            name: msgspec.to_builtins(value)
            for name in _VERSION_ATTRIBUTES
            if (value := getattr(item, name)) is not None
        }
        try:
            before = await self._write_claim(
                key,
                claimant,
                now,
                condition=" AND ".join(
                    f"{name} = :seen_{name}" if name in seen else f"attribute_not_exists({name})"
                    for name in _VERSION_ATTRIBUTES
                ),
                values={f":seen_{name}": value for name, value in seen.items()},
                waited=waited,
                from_start=from_start,
            )
        except _ConditionNotMet:
            return NotClaimed.HELD
        # Its earlier worker, if it still runs, may have assigned an offset since the item was read.
        with judging(before):
            return _claim(key, claimant, start, waited, None if from_start else before.valid_offset())

    async def _write_claim(
        self,
        key: Key,
        claimant: Claimant,
        now: int,
        *,
        condition: str,
        waited: int,
        values: dict[str, Any] | None = None,
        from_start: bool | None = None,
    ) -> ProgressItem:
        """Returns the item as it was before. Raises _ConditionNotMet if the condition is not met.

        `waited` is the number of receives that do not count as attempts. `from_start` is given if the claim was another
        message's, whose receive count is meaningless here; if True, the checkpoint is removed as well.
        """
        progressed = ":waited" if from_start is not None else "if_not_exists(progressed_at_receive, :waited)"
        removal = _REMOVE_CHECKPOINT if from_start else _KEEP_CHECKPOINT
        body = {
            "TableName": self._table,
            "Key": key,
            "UpdateExpression": (
                "SET message_id = :message_id, receives = :receives, claimed_by = :claimed_by, claimed_at = :now,"
                f" expires_at = :expires, progressed_at_receive = {progressed} {removal}"
            ),
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {
                ":message_id": {"S": claimant.message_id},
                ":receives": {"N": str(claimant.receive_count)},
                ":claimed_by": {"S": claimant.claim_id},
                ":now": {"N": str(now)},
                ":waited": {"N": str(waited)},
                ":expires": {"N": str(now + TTL_SECONDS)},
                **(values or {}),
            },
            "ReturnValues": "ALL_OLD",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if from_start:
            body["ExpressionAttributeNames"] = {"#cursor": "cursor", "#offset": "offset"}
        try:
            response_body = await self._service.call("UpdateItem", msgspec.json.encode(body))
        except ServiceError as error:
            if error.code != CONDITION_FAILED:
                raise
            with reading_response():
                item = parse_item(msgspec.json.decode(error.detail, type=_ConditionFailed).item)
            raise _ConditionNotMet(item) from None
        with reading_response():
            return parse_item(msgspec.json.decode(response_body, type=_UpdateResponse).attributes)

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        """Record these broadcasts (at most 25) as completed. Returns the claims that were not processed."""
        now = int(self._wall_clock())
        by_key = {(claim.key["pk"]["S"], claim.key["sk"]["S"]): claim for claim in claims}
        unprocessed = await self._batch_write(
            [{"PutRequest": {"Item": completed_item(claim, now)}} for claim in by_key.values()]
        )
        unprocessed_keys = {request.put.item.key for request in unprocessed if request.put}
        return [claim for key, claim in by_key.items() if key in unprocessed_keys]

    async def reset(self, broadcast: Broadcast) -> None:
        """Delete the progress item, or all of it that is not the broadcast's offset. Only for one that is damaged."""
        key = keys.key(keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part))
        request: dict[str, Any] = {"DeleteRequest": {"Key": key}}
        if broadcast.offset is not UNSET:
            request = {"PutRequest": {"Item": reset_item(key, broadcast.offset, int(self._wall_clock()))}}
        if await self._batch_write([request]):
            raise DependencyError("UnprocessedItems")

    async def _batch_write(self, requests: list[dict[str, Any]]) -> list[_Request]:
        """BatchWriteItem. Returns the unprocessed requests."""
        body = msgspec.json.encode({"RequestItems": {self._table: requests}})
        response_body = await self._service.call("BatchWriteItem", body)
        with reading_response():
            response = msgspec.json.decode(response_body, type=_BatchWriteResponse)
        return response.unprocessed.get(self._table, [])

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, made_progress: bool) -> bool:
        """Returns False if the broadcast has been taken over: this worker must then stop working on it."""
        update = "SET #cursor = :cursor, pending = :pending, renewed_at = :now"
        condition = _IS_CLAIMED
        pending = checkpoint.encode_pending()
        values: dict[str, Any] = {
            ":now": {"N": str(int(self._wall_clock()))},
            ":cursor": {"S": checkpoint.cursor},
            ":pending": {"B": pending},
        }
        if (v2 := checkpoint.encode_v2()) is not None:
            update += ", pending_v2 = :v2"
            values[":v2"] = {"B": v2}
        if checkpoint.receipt is not None:
            update += ", receipt = :receipt, receipt_revision = :receipt_revision"
            condition = _IS_LATEST
            values[":receipt"] = {"B": checkpoint.receipt.encode(checkpoint.cursor, pending)}
            values[":receipt_revision"] = {"N": str(checkpoint.receipt.revision)}
        if made_progress:
            update += ", progressed_at_receive = :receives"
            values[":receives"] = {"N": str(claim.receive_count)}
        return await self._update_claimed(claim, update, values, condition=condition, names={"#cursor": "cursor"})

    async def release(self, claim: Claim) -> bool:
        """Let any message claim the broadcast and resume from its checkpoint. False if it has been taken over."""
        return await self._update_claimed(
            claim,
            "REMOVE message_id, claimed_by, receives, progressed_at_receive, renewed_at",
            {},
            condition=f"{_IS_CLAIMED} OR (attribute_exists(pk) AND attribute_not_exists(message_id))",
        )

    async def _update_claimed(
        self,
        claim: Claim,
        update: str,
        values: dict[str, Any],
        *,
        condition: str = _IS_CLAIMED,
        names: dict[str, str] | None = None,
    ) -> bool:
        body: dict[str, Any] = {
            "TableName": self._table,
            "Key": claim.key,
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {":claimed_by": {"S": claim.claim_id}, **values},
        }
        if names:
            body["ExpressionAttributeNames"] = names
        try:
            await self._service.call("UpdateItem", msgspec.json.encode(body))
        except ServiceError as error:
            if error.code == CONDITION_FAILED:
                return False
            raise
        return True


def _claim(key: Key, claimant: Claimant, start: Checkpoint, progressed_at: int, offset: int | None = None) -> Claim:
    return Claim(
        key,
        claimant.message_id,
        claimant.claim_id,
        claimant.receive_count,
        start,
        claimant.receive_count - progressed_at,
        offset,
    )
