"""How fast to post: additive increase, multiplicative decrease, driven by the share of posts the account throttles.

A 429 means one of two things: the account's rate is exceeded, or this one client's send buffer is full. They look
alike, yet differ in what happens next. A client that does not read is refused again when it is tried again; an account
over its rate refuses retries no more often than first attempts. So, with

    f  the share of first attempts that were throttled, and
    q  the share of those tried again after a 429 that were throttled again,

a share s of slow clients and a share p of posts refused by the account would give f = s + (1-s)p and
f·q = s + (1-s)p², and therefore p = f(1-q) / (1-f). That p steers the rate, so slow clients do not.
Until retries have been seen q counts as 0: the rate comes down first and recovers when the retries say otherwise.
Where all first attempts are refused the two cannot be told apart by this: many connections at once are the account.

Always: floor ≤ limit ≤ ceiling. Several workers share a quota without a coordinator because all see the same p, add
alike and lose in proportion, which brings their limits together.
"""

from dataclasses import dataclass, field
from typing import Final

INTERVAL_SECONDS: Final = 0.25
_INCREASE_SHARE_OF_CEILING: Final = 0.005
_TOLERATED: Final = 0.02
_DEEPEST_CUT: Final = 0.5
_BELOW_PASSED: Final = 0.9
_MANY_THROTTLED: Final = 10
_MANY_SHARE: Final = 0.5
_SOME: Final = 0.5
_NONE_PASSES: Final = 0.95
_LEAST_MEMORY: Final = 0.8
_MEMORY_POSTS: Final = 50
"""Counts of one interval weigh less in the next: about a second's worth decides, or the last fifty posts."""
_FLOOR: Final = 10.0


@dataclass(slots=True)
class RateController:
    """`limit` is in posts a second. Feed it every answer; ask it again every interval."""

    ceiling: float
    limit: float = field(init=False)
    account_share: float = field(init=False, default=0.0)
    """Share of posts that the account refuses, as now estimated."""
    cuts: int = field(init=False, default=0)
    """How often the limit was lowered."""
    _firsts: float = field(init=False, default=0.0)
    _firsts_throttled: float = field(init=False, default=0.0)
    _again: float = field(init=False, default=0.0)
    _again_throttled: float = field(init=False, default=0.0)
    _throttled_since_adjusting: int = field(init=False, default=0)
    _passed_since_adjusting: int = field(init=False, default=0)
    _heard_since_adjusting: int = field(init=False, default=0)
    _adjusted_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.limit = self.ceiling

    wants_reference: bool = field(init=False, default=False)

    def passed(self, firsts: int, again: int = 0, others: int = 0) -> None:
        """Posts that were not throttled: first attempts, and such that are tried again after a 429."""
        self._heard_since_adjusting += firsts + again
        self._passed_since_adjusting += firsts + again + others
        self._firsts += firsts
        self._again += again

    def throttled(self, *, after_throttle: bool) -> None:
        self._heard_since_adjusting += 1
        self._throttled_since_adjusting += 1
        if after_throttle:
            self._again += 1
            self._again_throttled += 1
        else:
            self._firsts += 1
            self._firsts_throttled += 1

    @property
    def account_throttles(self) -> bool:
        """Is it the account that refuses now, judged across connections?"""
        return self._estimate() > _TOLERATED

    def adjust(self, now: float) -> None:
        """Move the limit, at most once an interval. `now` is monotonic seconds."""
        if now - self._adjusted_at < INTERVAL_SECONDS:
            return
        passed_per_second = self._passed_since_adjusting / (now - self._adjusted_at)
        self._adjusted_at = now
        self._passed_since_adjusting = 0
        self.account_share = self._estimate()
        if self.account_share > _TOLERATED and self._throttled_since_adjusting:
            # What has got through is granted: a cut goes below that by a little, to find room, and not again and again.
            cut = self.limit * max(_DEEPEST_CUT, 1 - self.account_share)
            lowered = max(cut, _BELOW_PASSED * passed_per_second, min(_FLOOR, self.ceiling))
            if lowered < self.limit:
                self.limit = lowered
                self.cuts += 1
        else:
            self.limit = min(self.ceiling, self.limit + self.ceiling * _INCREASE_SHARE_OF_CEILING)
        self._throttled_since_adjusting = 0
        memory = max(_LEAST_MEMORY, 1 - self._heard_since_adjusting / _MEMORY_POSTS)
        self._heard_since_adjusting = 0
        self._firsts *= memory
        self._firsts_throttled *= memory
        self._again *= memory
        self._again_throttled *= memory

    def _estimate(self) -> float:
        again_share = self._again_throttled / self._again if self._again else 0.0
        if self._firsts < _SOME:
            # Only such as were refused before: where some of them pass it is the account, where none does it is they.
            return again_share if again_share < _NONE_PASSES else 0.0
        first_share = self._firsts_throttled / self._firsts
        if first_share >= _MANY_SHARE and self._firsts_throttled >= _MANY_THROTTLED:
            # Half of all connections at once is the account, whatever retries say: nobody has that many slow clients.
            return first_share
        if first_share > _NONE_PASSES:
            return 0.0
        return min(1.0, first_share * (1 - again_share) / (1 - first_share))
