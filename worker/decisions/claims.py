"""Which message may resume a broadcast that is already claimed. Pure.

- None, once it is completed: for a day every message with its id is a duplicate, and its own message for ever.
- The same message, received again: at once. Its worker has crashed or lost the lease.
- Any message, if the claim was released: the broadcast was given up as a whole.
- Another message, once the claim is abandoned: not completed, and not renewed for longer than any running worker takes.
  This is how a message resumes that SQS itself has moved to the dead-letter queue and back, which gives it a new id. It
  resumes from the checkpoint. Until then it has to wait, because it may still be needed.
- Another message, a day after the broadcast was last in progress or completed: as a new broadcast, from the start.

A worker renews its claim at least every `RENEW_SECONDS`, and before its first post if that comes later. So if clocks
differ by less than `ABANDONED_SECONDS - RENEW_SECONDS`, another message takes the claim of a running worker only if
that worker is suspended or blocked, and then its next write detects it. `tests/property/test_claim_schedules.py`
explores every schedule of this, with crashes, redeliveries and moves to the dead-letter queue and back.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from worker.decisions.checkpoint import RENEW_SECONDS

DUPLICATE_SECONDS: Final = 24 * 3600
"""The time for which another message with the same target, id and part is the same broadcast."""
ABANDONED_SECONDS: Final = 4 * RENEW_SECONDS
"""A claim that has not been renewed for this long belongs to no running worker."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """A message that claims, at one of its receives. `claim_id` is new for every receive.

    `waited` is the number of earlier receives that do not count as attempts if the broadcast was not claimed yet: on a
    FIFO queue the message may have been received only to wait for others.
    """

    message_id: str
    receive_count: int
    claim_id: str
    waited: int


class NotClaimed(Enum):
    """Why a broadcast was not claimed."""

    COMPLETED = auto()
    """It is completed: any message for it can be deleted."""
    HELD = auto()
    """Another message holds the claim and may be in progress: it will be completed or abandoned, so retry later."""
    SUPERSEDED = auto()
    """The same message was received again later, perhaps by another worker: leave the broadcast to that one."""


class Standing(NamedTuple):
    """The stored state of a broadcast that was claimed. Times are seconds since the epoch."""

    message_id: str | None
    """The message that holds the claim; None if it was released."""
    receive_count: int = 0
    claim_id: str = ""
    seen_at: float = 0.0
    """When it was last known to be in progress, or was completed."""
    completed: bool = False


class Resumption(Enum):
    """Where a claimant resumes."""

    FROM_CHECKPOINT = auto()
    FROM_START = auto()


def decide(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    """Where this claimant resumes, or why it may not. It holds the claim only once a conditional write succeeds."""
    if standing.message_id is None:
        return NotClaimed.COMPLETED if standing.completed else Resumption.FROM_CHECKPOINT
    if standing.message_id == claimant.message_id:
        if standing.completed:
            return NotClaimed.COMPLETED
        later = claimant.receive_count > standing.receive_count or claimant.claim_id == standing.claim_id
        return Resumption.FROM_CHECKPOINT if later else NotClaimed.SUPERSEDED
    age = now - standing.seen_at
    if age >= DUPLICATE_SECONDS:
        return Resumption.FROM_START
    if standing.completed:
        return NotClaimed.COMPLETED
    return Resumption.FROM_CHECKPOINT if age >= ABANDONED_SECONDS else NotClaimed.HELD
