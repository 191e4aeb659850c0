"""Permits to post: a bucket that fills at the rate controller's limit and holds a few ticks' worth.

A rate that has not been used lately is approached gently, because the account may no longer grant it: permits come at a
sixteenth of the limit at first, and twice as fast after every quarter of a second in which they are used. So the full
limit is reached within a second, less than it takes to open connections for it, and throttling is noticed before much
has been posted.
"""

import math
from dataclasses import dataclass, field
from typing import Final

_DEPTH_SECONDS: Final = 0.05
"""The delay of a tick that is caught up in full. A deeper bucket would allow bursts that the account throttles."""
_START_SHARE: Final = 1 / 16
_START: Final = 50.0
"""Posts per second that are always allowed, if the limit allows them."""
_DOUBLING_SECONDS: Final = 0.25
_MEMORY_SECONDS: Final = 60.0


@dataclass(slots=True)
class TokenBucket:
    _permits: float = field(init=False, default=1.0)
    _filled_at: float | None = field(init=False, default=None)
    _rate: float = field(init=False, default=0.0)
    """The current rate of permits, in posts per second; at most the limit."""

    def permits(self, limit: float, now: float) -> int:
        """The number of posts that may start now, at `limit` per second; `now` is monotonic seconds."""
        elapsed = 0.0 if self._filled_at is None else max(0.0, now - self._filled_at)
        self._filled_at = now
        remembered = self._rate * math.exp(-elapsed / _MEMORY_SECONDS)
        self._rate = min(limit, max(remembered, limit * _START_SHARE, _START))
        self._permits = min(self._permits + elapsed * self._rate, self._depth)
        return int(self._permits)

    def spend(self, posts: int) -> None:
        self._permits -= posts
        if self._permits < max(1.0, self._depth / 2):  # permits are scarce: each post adds its share of a doubling
            self._rate += posts * math.log(2) / _DOUBLING_SECONDS

    @property
    def _depth(self) -> float:
        return max(1.0, self._rate * _DEPTH_SECONDS)
