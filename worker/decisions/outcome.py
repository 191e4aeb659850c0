"""The decision that follows from a response: an outcome or a retry. Pure: a decision is a value.

The status decides, never the body: `x-amzn-ErrorType` is not always present, and the body may be empty or not JSON.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final, assert_never

from worker.decisions.backoff import backoff_seconds, given_up
from worker.decisions.endpoint_health import EndpointHealth

YOUNG_SECONDS: Final = 10.0
"""The time for which a `$connect` may still be in progress, so that 410 may mean "not yet"."""
_REJECTED_RETRY_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0


class Outcome(StrEnum):
    """How a delivery ends. Each has exactly one outcome."""

    DELIVERED = "delivered"
    GONE = "gone"
    EXPIRED = "expired"
    REJECTED = "rejected"
    UNDELIVERED = "undelivered"


class StatusClass(Enum):
    """The class of a response, from its status alone."""

    DELIVERED = auto()
    GONE = auto()
    TOO_LARGE = auto()
    THROTTLED = auto()
    REJECTED = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry `after_seconds` from now. `counted`: the attempt counts towards giving up."""

    after_seconds: float
    counted: bool


@dataclass(frozen=True, slots=True)
class History:
    """A delivery's history, including the response to decide on. Times are monotonic seconds."""

    attempts: int
    """All posts, whether they count towards giving up or not."""
    counted_attempts: int
    """Posts that count towards giving up, if this one does."""
    rejections: int
    """Responses that rejected it, such as 403, while others succeeded; including this one."""
    first_attempt_at: float
    age_seconds: float | None
    """The age of the membership; None if there is none, so that no `$connect` can still be in progress."""


def classify(status: int) -> StatusClass:
    """Classify an HTTP status; 0 stands for a failure without a readable response."""
    match status:
        case 410:
            return StatusClass.GONE
        case 413:
            return StatusClass.TOO_LARGE
        case 429:
            return StatusClass.THROTTLED
        case _ if 200 <= status < 300:  # noqa: PLR2004 - success
            return StatusClass.DELIVERED
        case _ if 300 <= status < 500 and status != 408:  # noqa: PLR2004 - a rejection; 408 is a timeout
            return StatusClass.REJECTED
        case _:
            return StatusClass.FAILED


def decide(status: int, history: History, *, endpoint: EndpointHealth, now: float, jitter: float) -> "Outcome | Retry":
    """The outcome, or when to retry. `endpoint` already includes this response. Raises ValueError for 429."""
    status_class = classify(status)
    match status_class:
        case StatusClass.DELIVERED:
            return Outcome.DELIVERED
        case StatusClass.TOO_LARGE:
            return Outcome.REJECTED
        case StatusClass.GONE:
            return _decide_gone(history, now)
        case StatusClass.REJECTED:
            others_succeed = endpoint.others_succeed(history.first_attempt_at, rejected=True)
            if history.rejections > 1 and others_succeed:
                return Outcome.REJECTED
            return Retry(max(_REJECTED_RETRY_SECONDS, backoff_seconds(history.attempts, jitter)), counted=False)
        case StatusClass.FAILED:
            counted = endpoint.others_succeed(history.first_attempt_at, rejected=False)
            if counted and given_up(history.counted_attempts, now - history.first_attempt_at):
                return Outcome.UNDELIVERED
            return Retry(backoff_seconds(history.attempts, jitter), counted)
        case StatusClass.THROTTLED:
            raise ValueError("a 429 is decided across connections, by `slow_clients`")
        case _:
            assert_never(status_class)


def _decide_gone(history: History, now: float) -> Outcome | Retry:
    if history.age_seconds is None:
        return Outcome.GONE
    waited = now - history.first_attempt_at
    # A wrong clock can make a membership look young for ever, so the time since the first attempt counts as well.
    remaining = YOUNG_SECONDS - max(history.age_seconds, waited)
    if remaining <= 0:
        return Outcome.GONE
    return Retry(min(_RETRY_SECONDS, remaining + 0.05), counted=False)
