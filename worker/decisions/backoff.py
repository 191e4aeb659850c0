"""When to retry, and when to give up. Pure: the time and the jitter are passed in."""

from typing import Final

ATTEMPTS_BEFORE_GIVING_UP: Final = 8
SECONDS_BEFORE_GIVING_UP: Final = 30.0
_BASE_SECONDS: Final = 0.1
_MAX_SECONDS: Final = 8.0
_MAX_EXPONENT: Final = 16


def backoff_seconds(attempts: int, jitter: float, *, max_seconds: float = _MAX_SECONDS) -> float:
    """Full jitter: between 0 and a limit that doubles with every attempt. `jitter` is uniform in [0, 1)."""
    return jitter * min(max_seconds, _BASE_SECONDS * (1 << min(attempts, _MAX_EXPONENT)))


def given_up(counted_attempts: int, seconds_since_first: float) -> bool:
    """Whether a delivery has used up both its attempts and its time."""
    return counted_attempts >= ATTEMPTS_BEFORE_GIVING_UP and seconds_since_first >= SECONDS_BEFORE_GIVING_UP
