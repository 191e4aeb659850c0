"""Progress items: the claim, the checkpoint and the completion of each broadcast, in DynamoDB.

Beside their keys they have `message_id`, `receives`, `claimed_by`, `claimed_at` (the claim: which message, at which
receive, by which lease, when), `renewed_at` (when it was last in progress for certain), `cursor`, `pending` (the
checkpoint), `progressed_at_receive` and `expires_at`. Of a completed one only the claim's message and times are left,
and `completed_at`.

Who may go on with a broadcast?

- The same message, received again: at once. Its worker has died or lost the lease.
- Any message, if the claim was released: it was given up as a whole.
- Another message, once the claim is abandoned: not completed and not renewed for longer than any worker at work lets
  pass. That is how a message goes on that SQS itself has moved to the dead-letter queue and back, which gives it a new
  id. It goes on from the checkpoint; until then it has to wait.
- Nobody, once it is completed: for a day every message with its id is a duplicate.

Every write but the claim and the completion is conditional on `claimed_by`: where that fails, somebody else has taken
over. A completion needs no condition: it says that every member has an outcome, which is true whoever has the claim.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from gatecast import table as keys
from gatecast.broadcast import Broadcast
from gatecast.table import Key
from worker.aws.json_service import CONDITION_FAILED, JsonService
from worker.batching import Batcher
from worker.checkpoint import RENEW_SECONDS, Checkpoint
from worker.ports import Claim, Claimant, DamagedProgress, NotClaimed, ServiceError

TTL_SECONDS: Final = 15 * 24 * 3600
"""Beyond the longest retention of a queue (14 days): a message never outlives what is known about it."""
DUPLICATE_SECONDS: Final = 24 * 3600
"""So long another message with the same target, id and part is the same broadcast."""
ABANDONED_SECONDS: Final = 4 * RENEW_SECONDS
"""A claim that is not renewed for so long belongs to nobody who is at work, clocks that differ included."""

_MAX_CLAIMS: Final = 25
_CLAIM_WITHIN_SECONDS: Final = 0.003
_TAKE_OVER: Final = (
    "attribute_not_exists(completed_at) AND (attribute_not_exists(pk) OR attribute_not_exists(message_id)"
    " OR (message_id = :message_id AND (receives < :receives OR claimed_by = :claimed_by)))"
)


_CLAIMED: Final = "claimed_by = :claimed_by"


class _S(msgspec.Struct):
    S: str


class _N(msgspec.Struct):
    N: str


class _B(msgspec.Struct):
    B: bytes


class _Item(msgspec.Struct):
    message_id: _S | None = None
    claimed_by: _S | None = None
    claimed_at: _N | None = None
    renewed_at: _N | None = None
    completed_at: _N | None = None
    cursor: _S | None = None
    pending: _B | None = None
    progressed_at_receive: _N | None = None
    expires_at: _N | None = None

    def last_seen_at(self) -> int:
        return max(_integer(self.claimed_at), _integer(self.renewed_at))

    def start(self) -> Checkpoint:
        if self.cursor is None or self.pending is None:
            return Checkpoint()
        try:
            return Checkpoint.decode(self.cursor.S, self.pending.B)
        except msgspec.MsgspecError as error:
            raise _Unreadable(str(error)) from None


def _integer(number: _N | None) -> int:
    return int(number.N) if number else 0


class _HeldBy(Exception):  # noqa: N818 - it says what is the case
    def __init__(self, item: _Item) -> None:
        self.item = item


class _UpdateResponse(msgspec.Struct):
    attributes: msgspec.Raw = msgspec.field(name="Attributes", default=msgspec.Raw(b"{}"))


class _ConditionFailed(msgspec.Struct):
    item: msgspec.Raw = msgspec.field(name="Item", default=msgspec.Raw(b"{}"))


class _CompletedItem(msgspec.Struct):
    pk: _S
    sk: _S


class _PutItem(msgspec.Struct):
    item: _CompletedItem = msgspec.field(name="Item")


class _Put(msgspec.Struct):
    request: _PutItem = msgspec.field(name="PutRequest")


class _BatchWriteResponse(msgspec.Struct):
    unprocessed: dict[str, list[_Put]] = msgspec.field(name="UnprocessedItems", default_factory=dict)


class _BatchDeleteResponse(msgspec.Struct):
    unprocessed: dict[str, Any] = msgspec.field(name="UnprocessedItems", default_factory=dict)


class _Unreadable(Exception):  # noqa: N818 - it says what is the case
    """An item has another form than any worker writes."""


def _read(item: msgspec.Raw) -> _Item:
    try:
        return msgspec.json.decode(item, type=_Item)
    except msgspec.ValidationError as error:
        raise _Unreadable(str(error)) from None


def _claim(key: Key, claimant: Claimant, start: Checkpoint, fresh_receives: int) -> Claim:
    return Claim(key, claimant.message_id, claimant.token, claimant.receives, start, fresh_receives)


def _completed_item(claim: Claim, now: int) -> dict[str, Any]:
    return {
        **claim.key,
        "message_id": {"S": claim.message_id},
        "claimed_at": {"N": str(now)},
        "completed_at": {"N": str(now)},
        "expires_at": {"N": str(now + TTL_SECONDS)},
    }


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
        values = ", ".join(f"'{name}': ?" for name in _INSERTED)
        self._insert = f'INSERT INTO "{table}" VALUE {{{values}}}'  # the table's name is the operator's, and checked
        self._insertions: Batcher[list[dict[str, str]], str | None] = Batcher(
            self._insert_batch, most=_MAX_CLAIMS, wait_seconds=_CLAIM_WITHIN_SECONDS
        )

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        """One conditional write; those of one moment share a call. Repeating it for a claimant changes nothing.

        Raises DamagedProgress for an item that nobody can have written as it is.
        """
        pk, sk = keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part)
        now = int(self._wall_clock())
        if claimant.receives == 1:
            values = (pk, sk, claimant.message_id, claimant.token)
            numbers = (claimant.receives, now, now + TTL_SECONDS, claimant.waited)
            row = [*({"S": value} for value in values), *({"N": str(number)} for number in numbers)]
            code = await self._insertions.ask(row)
            if code is None:
                return _claim(keys.key(pk, sk), claimant, Checkpoint(), fresh_receives=1)
            if "DuplicateItem" not in code:
                raise ServiceError(code)
        try:
            return await self._take_over(keys.key(pk, sk), claimant, now)
        except (_Unreadable, ValueError) as error:  # ValueError: a number that is none
            raise DamagedProgress(pk) from error

    async def _insert_batch(self, rows: Sequence[list[dict[str, str]]]) -> list[str | None]:
        first = {(row[0]["S"], row[1]["S"]): row for row in reversed(rows)}  # a call takes each key once
        body = {"Statements": [{"Statement": self._insert, "Parameters": row} for row in first.values()]}
        answer = await self._service.call("BatchExecuteStatement", msgspec.json.encode(body))
        responses = msgspec.json.decode(answer, type=_StatementsResponse).responses
        codes = {
            id(row): response.error.code if response.error else None
            for row, response in zip(first.values(), responses, strict=True)
        }
        return [codes.get(id(row), "DuplicateItem") for row in rows]

    async def _take_over(self, key: Key, claimant: Claimant, now: int) -> Claim | NotClaimed:
        """Of an item that is there: who may go on is said above."""
        try:
            before = await self._write_claim(key, claimant, now, condition=_TAKE_OVER)
        except _HeldBy as held:
            item = held.item
        else:
            progressed_at = _integer(before.progressed_at_receive) if before.progressed_at_receive else claimant.waited
            return _claim(key, claimant, before.start(), claimant.receives - progressed_at)
        if item.message_id is None or claimant.message_id == item.message_id.S:
            return NotClaimed.COMPLETED if item.completed_at else NotClaimed.SUPERSEDED
        if item.last_seen_at() <= now - DUPLICATE_SECONDS or (item.expires_at and float(item.expires_at.N) <= now):
            return await self._take_from(item, key, claimant, now, afresh=True)  # a day later it is a new broadcast
        if item.completed_at:
            return NotClaimed.COMPLETED
        if item.last_seen_at() > now - ABANDONED_SECONDS:
            return NotClaimed.HELD
        return await self._take_from(item, key, claimant, now, afresh=False)

    async def _take_from(
        self, item: _Item, key: Key, claimant: Claimant, now: int, *, afresh: bool
    ) -> Claim | NotClaimed:
        """Of another message, if its claim is still as it was seen. `afresh`: forget how far that has come."""
        seen = {name: value for name in _SEEN if (value := getattr(item, name)) is not None}
        condition = " AND ".join(
            f"{name} = :seen_{name}" if name in seen else f"attribute_not_exists({name})" for name in _SEEN
        )
        values = {f":seen_{name}": msgspec.to_builtins(value) for name, value in seen.items()}
        try:
            await self._write_claim(key, claimant, now, condition=condition, values=values, afresh=afresh)
        except _HeldBy:
            return NotClaimed.HELD
        return _claim(key, claimant, Checkpoint() if afresh else item.start(), claimant.receives - claimant.waited)

    async def _write_claim(
        self,
        key: Key,
        claimant: Claimant,
        now: int,
        *,
        condition: str,
        values: dict[str, Any] | None = None,
        afresh: bool | None = None,
    ) -> _Item:
        """The item as it was before. Raises _HeldBy if the condition does not hold.

        `afresh` is given where the claim was another message's, whose receives say nothing.
        """
        progressed = ":before" if afresh is not None else "if_not_exists(progressed_at_receive, :before)"
        body = {
            "TableName": self._table,
            "Key": key,
            "UpdateExpression": (
                "SET message_id = :message_id, receives = :receives, claimed_by = :claimed_by, claimed_at = :now,"
                f" expires_at = :expires, progressed_at_receive = {progressed} {_AFRESH if afresh else _NOT_AFRESH}"
            ),
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {
                ":message_id": {"S": claimant.message_id},
                ":receives": {"N": str(claimant.receives)},
                ":claimed_by": {"S": claimant.token},
                ":now": {"N": str(now)},
                ":before": {"N": str(claimant.waited)},
                ":expires": {"N": str(now + TTL_SECONDS)},
                **(values or {}),
            },
            "ReturnValues": "ALL_OLD",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if afresh:
            body["ExpressionAttributeNames"] = {"#cursor": "cursor"}
        try:
            answer = await self._service.call("UpdateItem", msgspec.json.encode(body))
        except ServiceError as error:
            if error.code != CONDITION_FAILED:
                raise
            raise _HeldBy(_read(msgspec.json.decode(error.detail, type=_ConditionFailed).item)) from None
        return _read(msgspec.json.decode(answer, type=_UpdateResponse).attributes)

    async def complete(self, claims: Sequence[Claim]) -> list[Claim]:
        """Write down that these (25 at most) are completed; returns those that were not processed."""
        now = int(self._wall_clock())
        by_key = {(claim.key["pk"]["S"], claim.key["sk"]["S"]): claim for claim in claims}
        requests = [{"PutRequest": {"Item": _completed_item(claim, now)}} for claim in by_key.values()]
        body = msgspec.json.encode({"RequestItems": {self._table: requests}})
        response = msgspec.json.decode(await self._service.call("BatchWriteItem", body), type=_BatchWriteResponse)
        items = (put.request.item for put in response.unprocessed.get(self._table, ()))
        return [by_key[item.pk.S, item.sk.S] for item in items]

    async def forget(self, broadcast: Broadcast) -> None:
        """Remove the item. Only for one that is damaged."""
        key = keys.key(keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part))
        body = msgspec.json.encode({"RequestItems": {self._table: [{"DeleteRequest": {"Key": key}}]}})
        response = msgspec.json.decode(await self._service.call("BatchWriteItem", body), type=_BatchDeleteResponse)
        if response.unprocessed:
            raise ServiceError("UnprocessedItems")

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, progress: bool) -> bool:
        """False if the broadcast has been taken over: then nothing more may be done for it here."""
        update = "SET #cursor = :cursor, pending = :pending, renewed_at = :now"
        values: dict[str, Any] = {
            ":now": {"N": str(int(self._wall_clock()))},
            ":cursor": {"S": checkpoint.cursor},
            ":pending": {"B": checkpoint.encode_pending()},
        }
        if progress:
            update += ", progressed_at_receive = :receives"
            values[":receives"] = {"N": str(claim.receives)}
        return await self._update_claimed(claim, update, values, names={"#cursor": "cursor"})

    async def release(self, claim: Claim) -> bool:
        """Let any message claim the broadcast and go on from its checkpoint. False if it has been taken over."""
        return await self._update_claimed(
            claim,
            "REMOVE message_id, claimed_by, receives, progressed_at_receive, renewed_at",
            {},
            condition=f"{_CLAIMED} OR (attribute_exists(pk) AND attribute_not_exists(message_id))",
        )

    async def _update_claimed(
        self,
        claim: Claim,
        update: str,
        values: dict[str, Any],
        *,
        condition: str = _CLAIMED,
        names: dict[str, str] | None = None,
    ) -> bool:
        body: dict[str, Any] = {
            "TableName": self._table,
            "Key": claim.key,
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {":claimed_by": {"S": claim.claimed_by}, **values},
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


_SEEN: Final = ("message_id", "claimed_by", "renewed_at", "completed_at")
"""What says whether an item is still as it was when it was read."""
_NOT_AFRESH: Final = "REMOVE renewed_at"
_AFRESH: Final = "REMOVE renewed_at, completed_at, #cursor, pending"
_INSERTED: Final = (
    "pk",
    "sk",
    "message_id",
    "claimed_by",
    "receives",
    "claimed_at",
    "expires_at",
    "progressed_at_receive",
)
