"""Send the receipt in which a broadcast ends, once every part of it has ended.

`worker.decisions.receipts` has the protocol. The callers write the state to the progress item, before `expect`, and as
ended before `end`; here are the calls to the shared receipt and to the receipts queue. What if we die at an await? The
worker that takes the broadcast over finds the same state, and repeats from there what has no further effect.

Without a receipts queue no broadcast ends in a receipt. If the queue fails, broadcasts with receipts wait.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from gatecast import table as keys
from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo
from gatecast.room_settings import RoomSettings
from gatecast.table import Key
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.receipts import (
    ITSELF,
    ReceiptState,
    Sums,
    part_name,
    receipt,
    room_of,
    shares_receipt,
    wants_receipt,
)
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.lease import Lease
from worker.pipeline.sender import Sender
from worker.ports import Claim, DependencyError, MessageQueue, MessageRejected, ProgressStore, ReceiptStore
from worker.resilience import retry_forever

log = structlog.get_logger()

_COMPONENT: Final = "receipts"


class Receipts:
    """`queue` is None if there is no receipts queue."""

    def __init__(
        self,
        queue: MessageQueue | None,
        *,
        store: ReceiptStore,
        progress: ProgressStore,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._progress = progress
        self._sender = Sender(queue, health, component=_COMPONENT) if queue is not None else None
        self._store = store
        self._health = health
        self._metrics = metrics
        self._warned = False

    @property
    def configured(self) -> bool:
        return self._sender is not None

    def wanted(self, broadcast: Broadcast, settings: RoomSettings) -> bool:
        """Whether a broadcast that begins now will end in a receipt."""
        if not wants_receipt(broadcast, settings):
            return False
        if self._sender is None and not self._warned:
            self._warned = True
            log.warning("receipts.off", reason="a broadcast asks for a receipt; set GATECAST_RECEIPTS_QUEUE_URL")
        return self._sender is not None

    def begin(self, broadcast: Broadcast, settings: RoomSettings, start: Checkpoint) -> ReceiptState | None:
        """The state of a broadcast that begins, or is resumed, at `start`; None if it does not end in a receipt."""
        if start.receipt is not None:
            return msgspec.structs.replace(start.receipt, revision=0)
        if not self.wanted(broadcast, settings):
            return None
        if not start.is_start:
            log.warning("receipt.omitted", part=broadcast.part, reason="it began without counting")
            return None
        return ReceiptState()

    async def expect(self, broadcast: Broadcast, state: ReceiptState, parts: Sequence[Broadcast]) -> None:
        """Expect these parts of a broadcast, which are to be sent. `state` is in its progress item."""
        names = [part.part for part in parts]
        if state.begun_by:
            names.append(ITSELF)
        await retry_forever(
            _COMPONENT, self._health, lambda: self._store.expect(_key(broadcast), state.begun_by, names)
        )

    async def forget(self, part: Broadcast) -> None:
        """Expect this part no more, because the queue rejects it."""
        await retry_forever(_COMPONENT, self._health, lambda: self._store.forget(_key(part), part.part))

    async def expect_shards(
        self, broadcast: Broadcast, claim: Claim, state: ReceiptState, parts: Sequence[Broadcast]
    ) -> ReceiptState | None:
        """Expect the shards of a broadcast. Returns its state; None if another worker has taken the broadcast over."""
        state = msgspec.structs.replace(state, begun_by=state.begun_by or claim.claim_id, revision=state.revision + 1)
        if not await self._write(claim, state):
            return None
        await self.expect(broadcast, state, parts)
        return state

    async def end_split(self, broadcast: Broadcast, claim: Claim, state: ReceiptState, lease: Lease) -> bool:
        """End a broadcast whose shards are sent. Returns False if another worker has taken it over.

        Raises LeaseEnded, as `end`.
        """
        state = msgspec.structs.replace(state, milliseconds=0, revision=state.revision + 1)
        if not await self._write(claim, state):
            return False
        await self.end(broadcast, state, lease)
        return True

    async def _write(self, claim: Claim, state: ReceiptState) -> bool:
        checkpoint = msgspec.structs.replace(claim.start, receipt=state)

        async def write() -> bool:
            return await self._progress.write_checkpoint(claim, checkpoint, made_progress=False)

        return await retry_forever("checkpoint", self._health, write)

    async def end(self, broadcast: Broadcast, state: ReceiptState, lease: Lease) -> None:
        """Send the receipt, if nothing else is missing in it. `state` has ended, and is in the progress item.

        Raises LeaseEnded: then the worker that resumes the broadcast sends it.
        """
        await lease.while_held(partial(self._end, broadcast, state))

    async def _end(self, broadcast: Broadcast, state: ReceiptState) -> None:
        milliseconds = state.milliseconds or 0
        if not shares_receipt(broadcast, state):
            await self._send(broadcast, state.sums, milliseconds)
            return
        name = part_name(broadcast)
        shared = await retry_forever(
            _COMPONENT, self._health, lambda: self._store.end(_key(broadcast), name, state.sums, milliseconds)
        )
        if shared is None:
            log.warning("receipt.omitted", part=broadcast.part, reason="no broadcast expects this part")
        elif shared.is_complete:
            await self._send(broadcast, shared.sums, shared.milliseconds)

    async def _send(self, broadcast: Broadcast, sums: Sums, milliseconds: int) -> None:
        sender = self._sender
        if sender is None:  # a worker with a receipts queue began it
            log.warning("receipt.omitted", part=broadcast.part, reason="GATECAST_RECEIPTS_QUEUE_URL is not set")
            return
        body = receipt(broadcast, sums, milliseconds).encode()
        message: dict[str, Any] = {"MessageBody": body, "MessageGroupId": room_of(broadcast) or broadcast.id}
        if is_fifo(sender.url):
            message["MessageDeduplicationId"] = hashlib.sha256(body.encode()).hexdigest()

        async def send() -> None:
            try:
                await sender.send(message)
            except MessageRejected as rejected:  # no receipt is invalid, so it is the queue that has to be changed
                raise DependencyError(rejected.code) from rejected

        await retry_forever(_COMPONENT, self._health, send)
        self._metrics.receipts += 1


def _key(broadcast: Broadcast) -> Key:
    """The key of the receipt that a broadcast shares with its parts."""
    return keys.key(keys.progress_pk(room_of(broadcast) or "", broadcast.id), keys.RECEIPT_SK)
