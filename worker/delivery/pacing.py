"""Permits to post: a bucket that fills at the rate controller's limit and holds a few ticks' worth."""

from dataclasses import dataclass, field
from typing import Final

_DEPTH_SECONDS: Final = 0.05
"""How late a tick may be and still catch up. Deeper would let bursts through that the account throttles."""


@dataclass(slots=True)
class Pacer:
    _permits: float = field(init=False, default=1.0)
    _filled_at: float | None = field(init=False, default=None)

    def permits(self, limit: float, now: float) -> int:
        """Posts that may start now, at `limit` a second; `now` is monotonic seconds."""
        if self._filled_at is not None:
            added = max(0.0, now - self._filled_at) * limit
            self._permits = min(self._permits + added, max(1.0, limit * _DEPTH_SECONDS))
        self._filled_at = now
        return int(self._permits)

    def spend(self, posts: int) -> None:
        self._permits -= posts
