"""Progress items: the claim and the checkpoint of each broadcast, in DynamoDB.

Beside their keys they have `message_id`, `receives`, `claimed_by`, `claimed_at` (the claim: which message, at which
receive, by which lease, when), `cursor`, `pending` (the checkpoint), `progressed_at_receive` and `expires_at`. Every
write but the claim itself is conditional on `claimed_by`: where that fails, somebody else has taken over.
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
from worker.checkpoint import Checkpoint
from worker.ports import Claim, Claimant, NotClaimed, ServiceError

TTL_SECONDS: Final = 15 * 24 * 3600
"""Beyond the longest retention of a queue (14 days): a message never outlives what is known about it."""
DUPLICATE_SECONDS: Final = 24 * 3600
"""So long another message with the same target, id and part is the same broadcast."""

_MOST_CLAIMS: Final = 25
_CLAIM_WITHIN_SECONDS: Final = 0.003
_TAKE_OVER: Final = (
    "attribute_not_exists(pk) OR attribute_not_exists(message_id)"
    " OR (message_id = :message_id AND (receives < :receives OR claimed_by = :claimed_by))"
)


_CLAIMED: Final = "claimed_by = :claimed_by"


class _S(msgspec.Struct):
    S: str = ""


class _N(msgspec.Struct):
    N: str = "0"


class _B(msgspec.Struct):
    B: bytes = b""


class _Item(msgspec.Struct):
    message_id: _S | None = None
    claimed_at: _N | None = None
    cursor: _S | None = None
    pending: _B | None = None
    progressed_at_receive: _N | None = None
    expires_at: _N | None = None


class _HeldBy(Exception):  # noqa: N818 - it says what is the case
    def __init__(self, item: _Item) -> None:
        self.item = item


class _UpdateAnswer(msgspec.Struct):
    attributes: _Item = msgspec.field(name="Attributes", default_factory=_Item)


class _ConditionFailed(msgspec.Struct):
    item: _Item = msgspec.field(name="Item", default_factory=_Item)


class _StatementError(msgspec.Struct):
    code: str = msgspec.field(name="Code", default="Unknown")


class _StatementAnswer(msgspec.Struct):
    error: _StatementError | None = msgspec.field(name="Error", default=None)


class _StatementsAnswer(msgspec.Struct):
    responses: list[_StatementAnswer] = msgspec.field(name="Responses")


class Progress:
    """Every call raises what `JsonService` raises. `wall_clock` gives seconds since the epoch."""

    def __init__(self, service: JsonService, table: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self._table = table
        self._wall_clock = wall_clock
        values = ", ".join(f"'{name}': ?" for name in _INSERTED)
        self._insert = f'INSERT INTO "{table}" VALUE {{{values}}}'  # the table's name is the operator's, and checked
        self._insertions: Batcher[list[dict[str, str]], str | None] = Batcher(
            self._insert_batch, most=_MOST_CLAIMS, wait_seconds=_CLAIM_WITHIN_SECONDS
        )

    async def claim(self, broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        """One conditional write; those of one moment share a call. Repeating it for a claimant changes nothing."""
        pk, sk = keys.progress_pk(broadcast.room or "", broadcast.id), keys.progress_sk(broadcast.part)
        now = int(self._wall_clock())
        if claimant.receives == 1:
            values = (pk, sk, claimant.message_id, claimant.token)
            numbers = (claimant.receives, now, now + TTL_SECONDS, claimant.waited)
            row = [*({"S": value} for value in values), *({"N": str(number)} for number in numbers)]
            code = await self._insertions.ask(row)
            if code is None:
                return Claim(keys.key(pk, sk), claimant.token, claimant.receives, Checkpoint(), fresh_receives=1)
            if "DuplicateItem" not in code:
                raise ServiceError(code)
        return await self._take_over(keys.key(pk, sk), claimant, now)

    async def _insert_batch(self, rows: Sequence[list[dict[str, str]]]) -> list[str | None]:
        first = {(row[0]["S"], row[1]["S"]): row for row in reversed(rows)}  # a call takes each key once
        body = {"Statements": [{"Statement": self._insert, "Parameters": row} for row in first.values()]}
        answer = await self._service.call("BatchExecuteStatement", msgspec.json.encode(body))
        responses = msgspec.json.decode(answer, type=_StatementsAnswer).responses
        codes = {
            id(row): response.error.code if response.error else None
            for row, response in zip(first.values(), responses, strict=True)
        }
        return [codes.get(id(row), "DuplicateItem") for row in rows]

    async def _take_over(self, key: Key, claimant: Claimant, now: int) -> Claim | NotClaimed:
        """Of an item that is there, from this message's earlier receive or released; or, after a day, as a new one."""
        try:
            before = await self._write_claim(key, claimant, now, condition=_TAKE_OVER, values={})
        except _HeldBy as held:
            if held.item.message_id is None or claimant.message_id == held.item.message_id.S:
                return NotClaimed(duplicate=False)
            claimed_at = int(held.item.claimed_at.N) if held.item.claimed_at else now
            expired = held.item.expires_at is not None and float(held.item.expires_at.N) <= now
            if claimed_at > now - DUPLICATE_SECONDS and not expired:
                return NotClaimed(duplicate=True)
            return await self._start_afresh(key, claimant, now, held.item.message_id.S)
        start = Checkpoint()
        if before.cursor is not None and before.pending is not None:
            start = Checkpoint.decode(before.cursor.S, before.pending.B)
        progressed_at = int(before.progressed_at_receive.N) if before.progressed_at_receive else claimant.waited
        return Claim(key, claimant.token, claimant.receives, start, claimant.receives - progressed_at)

    async def _start_afresh(self, key: Key, claimant: Claimant, now: int, holder: str) -> Claim | NotClaimed:
        """A day later the same id is a new broadcast, and the old one's checkpoint goes with its claim."""
        try:
            await self._write_claim(
                key,
                claimant,
                now,
                condition="message_id = :holder",
                values={":holder": {"S": holder}},
                afresh=True,
            )
        except _HeldBy:
            return NotClaimed(duplicate=True)
        return Claim(key, claimant.token, claimant.receives, Checkpoint(), claimant.receives - claimant.waited)

    async def _write_claim(
        self, key: Key, claimant: Claimant, now: int, *, condition: str, values: dict[str, Any], afresh: bool = False
    ) -> _Item:
        """The item as it was before. Raises _HeldBy if the condition does not hold."""
        body = {
            "TableName": self._table,
            "Key": key,
            "UpdateExpression": (
                "SET message_id = :message_id, receives = :receives, claimed_by = :claimed_by, claimed_at = :now,"
                " expires_at = :expires, progressed_at_receive = "
                + (_AFRESH if afresh else "if_not_exists(progressed_at_receive, :before)")
            ),
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {
                ":message_id": {"S": claimant.message_id},
                ":receives": {"N": str(claimant.receives)},
                ":claimed_by": {"S": claimant.token},
                ":now": {"N": str(now)},
                ":before": {"N": str(claimant.waited)},
                ":expires": {"N": str(now + TTL_SECONDS)},
                **values,
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
            raise _HeldBy(msgspec.json.decode(error.detail, type=_ConditionFailed).item) from None
        return msgspec.json.decode(answer, type=_UpdateAnswer).attributes

    async def write_checkpoint(self, claim: Claim, checkpoint: Checkpoint, *, progress: bool) -> bool:
        """False if the broadcast has been taken over: then nothing more may be done for it here."""
        update = "SET #cursor = :cursor, pending = :pending"
        values: dict[str, Any] = {
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
            "REMOVE message_id, claimed_by, receives, progressed_at_receive",
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


_AFRESH: Final = ":before REMOVE #cursor, pending"
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
