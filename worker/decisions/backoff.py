"""When to try again, and when to give up. Pure: the clock and the dice are passed in."""

from typing import Final

ATTEMPTS_BEFORE_GIVING_UP: Final = 8
SECONDS_BEFORE_GIVING_UP: Final = 30.0
_BASE_SECONDS: Final = 0.1
_LONGEST_SECONDS: Final = 8.0
_LARGEST_EXPONENT: Final = 16


def backoff_seconds(tries: int, jitter: float, *, longest: float = _LONGEST_SECONDS) -> float:
    """Full jitter: anything from nothing to a limit that doubles with every try. `jitter` is uniform in [0, 1)."""
    return jitter * min(longest, _BASE_SECONDS * (1 << min(tries, _LARGEST_EXPONENT)))


def given_up(attempts: int, seconds_since_first: float) -> bool:
    """A delivery has had both its attempts and its time."""
    return attempts >= ATTEMPTS_BEFORE_GIVING_UP and seconds_since_first >= SECONDS_BEFORE_GIVING_UP
