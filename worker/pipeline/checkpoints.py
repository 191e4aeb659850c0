"""Write the checkpoints of one broadcast in progress, one after the other, and with them what its receipt will say.

A broadcast that ends in a receipt (`worker.decisions.receipts`) has its state here. It changes in memory first, and is
part of every checkpoint from then on, so that a write that is cancelled, or arrives late, leaves nothing inconsistent.
"""

import asyncio

import msgspec

from gatecast.broadcast import Broadcast
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.receipts import ReceiptState, room_of
from worker.delivery.fanout import Fanout
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.services import Services
from worker.ports import Claim
from worker.resilience import retry_forever


class Checkpoints:
    """The checkpoints of `fanout`. `receipt` is what has been counted so far, if it ends in a receipt."""

    def __init__(
        self, services: Services, fanout: Fanout, lease: Lease, claim: Claim, receipt: ReceiptState | None
    ) -> None:
        self._services = services
        self._fanout = fanout
        self._lease = lease
        self._claim = claim
        self._receipt = receipt
        self._writing = asyncio.Lock()
        self._reported_units = 0

    @property
    def has_receipt(self) -> bool:
        return self._receipt is not None

    async def write(self) -> None:
        """Write the present position. If another worker has taken the broadcast over, the lease is lost."""
        fanout, claim, services = self._fanout, self._claim, self._services
        async with self._writing:
            fanout.checkpoint_schedule.snapshot(services.clock())
            checkpoint = self._checkpoint()
            made_progress = fanout.made_progress

            async def write() -> bool:
                return await services.progress.write_checkpoint(claim, checkpoint, made_progress=made_progress)

            self.report_cost()
            if await retry_forever("checkpoint", services.health, write):
                fanout.checkpoint_schedule.written()
                services.metrics.checkpoints += 1
            else:
                self._lease.transition(LeaseState.LOST)

    def _checkpoint(self) -> Checkpoint:
        checkpoint = self._fanout.checkpoint()
        if self._receipt is None:
            return checkpoint
        sums, revision = self._fanout.outcomes.sums, self._receipt.revision + 1
        self._receipt = msgspec.structs.replace(self._receipt, sums=sums, revision=revision)
        return msgspec.structs.replace(checkpoint, receipt=self._receipt)

    def report_cost(self) -> None:
        """Count what has been posted since the last report as a cost of the room."""
        units = self._fanout.outcomes.billed_units
        new, self._reported_units = units - self._reported_units, units
        room = room_of(self._fanout.broadcast)
        if new and room is not None:
            self._services.dearest_rooms.spent(room, new, self._services.clock())

    async def end(self, milliseconds: int) -> ReceiptState | None:
        """Record that a broadcast with a receipt is settled, this long after it was published.

        Returns what it has counted; None if another worker has taken it over, so that this one may send no receipt.
        """
        assert self._receipt is not None  # noqa: S101 - the caller has checked
        self._receipt = msgspec.structs.replace(self._receipt, milliseconds=milliseconds)
        await self.write()
        return self._receipt if self._lease.state is not LeaseState.LOST else None

    async def expect(self, remainder: Broadcast) -> bool:
        """Expect a remainder that is to be sent, if there is a receipt.

        Returns False if another worker has taken the broadcast over: then it must not be sent.
        """
        if self._receipt is None:
            return True
        broadcast = self._fanout.broadcast
        begun_by = "" if broadcast.part else self._receipt.begun_by or self._claim.claim_id
        handed_off = remainder.connections or ()
        self._receipt = msgspec.structs.replace(self._receipt, begun_by=begun_by, handed_off=handed_off)
        await self.write()
        if self._lease.state is LeaseState.LOST:
            return False
        await self._services.receipts.expect(broadcast, self._receipt, [remainder])
        return True

    def sent(self) -> None:
        """The remainder is on the queue, and its members are settled: the next checkpoint is without them."""
        if self._receipt is not None:
            self._receipt = msgspec.structs.replace(self._receipt, handed_off=())

    async def forget(self, remainder: Broadcast) -> None:
        """Expect a remainder no more that the queue rejects: its members stay with this broadcast."""
        if self._receipt is not None:
            await self._services.receipts.forget(remainder)
            self._receipt = msgspec.structs.replace(self._receipt, handed_off=())
