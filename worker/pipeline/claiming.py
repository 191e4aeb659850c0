"""Claim a broadcast: become the only worker that delivers it, and learn where to resume it."""

import asyncio
import dataclasses
from typing import Final
from uuid import uuid4

import structlog

from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed
from worker.decisions.locator import can_resume
from worker.pipeline.services import Services
from worker.ports import Claim, DamagedProgress, Message
from worker.resilience import retry_forever

log = structlog.get_logger()

_HELD_SECONDS: Final = 0.5
"""How long to wait if another message holds the claim, before claiming again: most broadcasts take less time."""
_DAMAGED_READS: Final = 3
"""How often a progress item is read before it counts as damaged: the damage may have been in the response only."""
_DAMAGED_SECONDS: Final = 0.5


async def claim_broadcast(broadcast: Broadcast, message: Message, services: Services) -> Claim | NotClaimed:
    """Claim the broadcast. Raises DamagedProgress if the progress item was damaged in every read."""
    # on a FIFO queue each receive may have been made only to wait for others
    waited = message.receive_count - 1 if is_fifo(services.sender.url) else 0
    claimant = Claimant(message.id, message.receive_count, uuid4().hex, waited)

    async def claim() -> Claim | NotClaimed:
        return await retry_forever("claim", services.health, lambda: services.progress.claim(broadcast, claimant))

    for _ in range(_DAMAGED_READS - 1):
        try:
            claimed = await claim()
        except DamagedProgress:
            await asyncio.sleep(_DAMAGED_SECONDS)
        else:
            break
    else:
        claimed = await claim()
    if claimed is NotClaimed.HELD:
        await asyncio.sleep(_HELD_SECONDS)
        claimed = await claim()
    return claimed if isinstance(claimed, NotClaimed) else _resumable(claimed, broadcast, services)


def _resumable(claim: Claim, broadcast: Broadcast, services: Services) -> Claim:
    """The claim, which starts over if its checkpoint was written while members were in another table.

    One that has ended, except for its receipt, reads no more members.
    """
    start = claim.start
    has_ended = start.receipt is not None and start.receipt.has_ended
    if not broadcast.room or has_ended or can_resume(start.cursor, services.locator_prefix):
        return claim
    log.warning("broadcast.restarted", reason="its checkpoint is of another table or index")
    return dataclasses.replace(claim, start=Checkpoint())
