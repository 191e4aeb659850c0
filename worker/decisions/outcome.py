"""What an answer means for its delivery. Pure: every decision is a value, taken before anything is awaited.

The status decides, never the body: `x-amzn-ErrorType` is there sometimes, and the body may be empty or not JSON.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final, assert_never

from worker.decisions.backoff import backoff_seconds, given_up
from worker.decisions.endpoint_health import EndpointHealth

YOUNG_SECONDS: Final = 10.0
"""So long a `$connect` may still be running, and 410 mean "not yet"."""
_REFUSED_AGAIN_SECONDS: Final = 1.0
_ASK_AGAIN_SECONDS: Final = 1.0


class Outcome(StrEnum):
    """How a delivery ends; exactly one each."""

    DELIVERED = "delivered"
    GONE = "gone"
    EXPIRED = "expired"
    REJECTED = "rejected"
    UNDELIVERED = "undelivered"


class Meaning(Enum):
    """What a status says by itself."""

    DELIVERED = auto()
    GONE = auto()
    TOO_LARGE = auto()
    THROTTLED = auto()
    REFUSED = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again `after_seconds` from now. `counted`: it has used up one of the delivery's attempts."""

    after_seconds: float
    counted: bool


@dataclass(frozen=True, slots=True)
class History:
    """A delivery's history up to and including the answer that is judged. Times are monotonic seconds."""

    tries: int
    """Posts in all, counted against it or not."""
    attempts: int
    """Posts that count against it, if this one does."""
    refusals: int
    """Answers that refused it while others were not, such as 403, this one included."""
    first_tried_at: float
    age_seconds: float | None
    """How long it has been a member by now; None where it is not one at all, so that nothing can still be running."""


def meaning(status: int) -> Meaning:
    """`status` as HTTP has it; 0 where no answer could be read."""
    match status:
        case 410:
            return Meaning.GONE
        case 413:
            return Meaning.TOO_LARGE
        case 429:
            return Meaning.THROTTLED
        case _ if 200 <= status < 300:  # noqa: PLR2004 - success
            return Meaning.DELIVERED
        case _ if 300 <= status < 500 and status != 408:  # noqa: PLR2004 - neither the peer's fault nor ours to repeat
            return Meaning.REFUSED
        case _:
            return Meaning.FAILED


def judge(status: int, history: History, *, endpoint: EndpointHealth, now: float, jitter: float) -> "Outcome | Retry":
    """The outcome, or when to retry. `endpoint` has heard of this response already. Not for 429."""
    what = meaning(status)
    match what:
        case Meaning.DELIVERED:
            return Outcome.DELIVERED
        case Meaning.TOO_LARGE:
            return Outcome.REJECTED
        case Meaning.GONE:
            return _judge_gone(history, now)
        case Meaning.REFUSED:
            others_succeed = endpoint.others_succeed(history.first_tried_at, rejected=True)
            if history.refusals > 1 and others_succeed:
                return Outcome.REJECTED
            return Retry(max(_REFUSED_AGAIN_SECONDS, backoff_seconds(history.tries, jitter)), counted=False)
        case Meaning.FAILED:
            counted = endpoint.others_succeed(history.first_tried_at, rejected=False)
            if counted and given_up(history.attempts, now - history.first_tried_at):
                return Outcome.UNDELIVERED
            return Retry(backoff_seconds(history.tries, jitter), counted)
        case Meaning.THROTTLED:
            raise ValueError("what a 429 means is decided across connections, by `slow_clients`")
        case _:
            assert_never(what)


def _judge_gone(history: History, now: float) -> Outcome | Retry:
    if history.age_seconds is None:
        return Outcome.GONE
    waited = now - history.first_tried_at
    # A clock that is wrong can make a membership young for ever; what has been tried for that long is not.
    remaining = YOUNG_SECONDS - max(history.age_seconds, waited)
    if remaining <= 0:
        return Outcome.GONE
    return Retry(min(_ASK_AGAIN_SECONDS, remaining + 0.05), counted=False)
