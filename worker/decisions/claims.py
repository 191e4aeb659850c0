"""Who may go on with a broadcast that somebody has claimed already? Pure.

- Nobody, once it is completed: for a day every message with its id is a duplicate, and its own message for ever.
- The same message, received again: at once. Its worker has died or lost the lease.
- Any message, if the claim was released: the broadcast was given up as a whole.
- Another message, once the claim is abandoned: not completed and not renewed for longer than any worker at work lets
  pass. That is how a message goes on that SQS itself has moved to the dead-letter queue and back, which gives it a new
  id. It goes on from the checkpoint. Until then it has to wait: it may be needed yet.
- Another message, a day after the broadcast was last in progress or completed: as a new broadcast, from the beginning.

A worker renews its claim at least every `RENEW_SECONDS`, and before its first post if that comes later. So where clocks
differ by less than `ABANDONED_SECONDS - RENEW_SECONDS`, only a worker that stands still has its claim taken by another
message while it is at work, and then its next write finds that out. `tests/property/test_claim_schedules.py` explores
every schedule of this, with crashes, redeliveries and moves to the dead-letter queue and back.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from worker.decisions.checkpoint import RENEW_SECONDS

DUPLICATE_SECONDS: Final = 24 * 3600
"""So long another message with the same target, id and part is the same broadcast."""
ABANDONED_SECONDS: Final = 4 * RENEW_SECONDS
"""A claim that is not renewed for so long belongs to nobody who is at work."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims: a message, at one of its receives. `token` is new for every receive.

    `waited` are the receives before, if nobody has claimed the broadcast yet, that count as no try: on a FIFO queue it
    may have been received only to wait for others.
    """

    message_id: str
    receives: int
    token: str
    waited: int


class NotClaimed(Enum):
    """Why a broadcast is not ours."""

    COMPLETED = auto()
    """All that was to be done has been done: whatever message asks for it can be deleted."""
    HELD = auto()
    """Another message has it and may be in progress: it will be completed or abandoned, so ask again later."""
    SUPERSEDED = auto()
    """This very message was received again, later or elsewhere: hands off."""


class Standing(NamedTuple):
    """What is known of a broadcast that was claimed. Times are seconds since the epoch."""

    message_id: str | None
    """Whose claim it is; None if it was released."""
    receives: int = 0
    claim_id: str = ""
    seen_at: float = 0.0
    """When it was last in progress for certain, or completed."""
    completed: bool = False


class Resumption(Enum):
    """How a claimant goes on with it."""

    FROM_CHECKPOINT = auto()
    FROM_START = auto()


def judge(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    """Whether this claimant may go on. The claim is its own only if nothing has changed when that is written down."""
    if standing.message_id is None:
        return NotClaimed.COMPLETED if standing.completed else Resumption.FROM_CHECKPOINT
    if standing.message_id == claimant.message_id:
        if standing.completed:
            return NotClaimed.COMPLETED
        later = claimant.receives > standing.receives or claimant.token == standing.claim_id
        return Resumption.FROM_CHECKPOINT if later else NotClaimed.SUPERSEDED
    age = now - standing.seen_at
    if age >= DUPLICATE_SECONDS:
        return Resumption.FROM_START
    if standing.completed:
        return NotClaimed.COMPLETED
    return Resumption.FROM_CHECKPOINT if age >= ABANDONED_SECONDS else NotClaimed.HELD
