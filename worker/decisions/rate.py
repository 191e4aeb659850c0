"""How fast to post: just below the rate that the account grants.

Theory of operation. `throttle_evidence` estimates p, the share of all posts that the account throttles. Clients that do
not read do not contribute to p, so they never lower the limit. Three rules follow from p.

**Cut.** If p exceeds the tolerated share, the limit falls to nine tenths of the posts that pass per second: they are
what the account grants now, and a tenth less leaves a margin. No decision is made until the responses to earlier posts
have arrived. The tolerated share rises as the limit falls, just as TCP tolerates more loss at lower rates. All workers
of an account see the same p, so the fastest cut and the slowest grow, until they are equal.

**Grow.** Without cuts the limit grows in proportion to itself, at one or two percent per second at first and twice as
fast every three seconds. So it creeps past the rate that was granted last, and reaches a ceiling that has become
available within half a minute. It grows whether it is used or not, because `token_bucket` ramps up gently to any rate
that is not in use.

**Stop cutting.** Some throttling does not depend on our rate: another application uses the quota regardless, or a share
of all calls fails. Cuts would follow each other until nothing is posted. So if the rate has halved in three cuts and
three seconds (time enough for other workers to slow down), the limit is held while p is measured over many posts. If p
is no better than before, and clearly higher than workers that share a quota cause among themselves, it counts as
unavoidable: the limit returns to the rate at which the cuts began, may double, and only throttling beyond p leads to
cuts. After two minutes this is tested again.

Always: floor ≤ limit ≤ ceiling. Pure: no clock, no randomness. `bench/rate_model.py` runs it against model accounts.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from worker.decisions.throttle_evidence import Counts, ThrottleEvidence

INTERVAL_SECONDS: Final = 0.02
_MAX_INTERVAL_SECONDS: Final = 1.0
_EVIDENCE_EXPIRES_SECONDS: Final = 10.0
_WITHOUT_EVIDENCE_SECONDS: Final = 0.5

_TYPICAL_LIMIT: Final = 1 / 40
"""A share of the ceiling. The tolerated share and the growth are given for this limit; both scale with 1 / √limit."""
_TOLERATED: Final = 0.019
_MIN_TOLERATED: Final = 0.01
_MAX_TOLERATED: Final = 0.024
_CUT_TO: Final = 0.9
"""A share of the posts that pass per second."""
_DEEP_CUTS: Final = 2
"""The first cuts may be of any depth, because the quota may have changed a lot; later ones are shallow."""
_SHALLOW_CUT: Final = 0.75
_SETTLE_SECONDS: Final = 0.3
"""Longer than a first retry's delay and response time together."""
_FLOOR: Final = 10.0
_FLOOR_OF_CEILING: Final = 0.002

_GROWTH_PER_SECOND: Final = 0.015
_DOUBLING_SECONDS: Final = 3.0
_MAX_GROWTH_PER_SECOND: Final = 0.7
_MOSTLY_THROTTLED_SHARE: Final = 0.45
"""If the throttled share is certainly above this, the limit is at most this multiple of the posts that pass:"""
_MOSTLY_THROTTLED_MULTIPLE: Final = 4.0

_DESCENT_ENDS_SECONDS: Final = 6.0
_TRIAL_AFTER_CUTS: Final = 3
_TRIAL_AFTER_SECONDS: Final = 3.0
_TRIAL_AT_RATE: Final = 0.55
"""A share of the rate at which the cuts began."""
_TRIAL_RATE_OF_CEILING: Final = 0.015
_TRIAL_LIMIT_OF_CEILING: Final = 0.005
"""Below these, many workers that share a small quota look like unavoidable throttling."""
_TRIAL_POSTS: Final = 800.0
_TRIAL_SECONDS: Final = 25.0
_UNCHANGED_SHARE: Final = 0.7
_SIGNIFICANT_FACTOR: Final = 2.0
_UNAVOIDABLE_SECONDS: Final = 120.0
_UNAVOIDABLE_MARGIN: Final = 1.2
_MEMORY_FACTOR: Final = 50.0
"""The memory grows by this multiple of the unavoidable share: detecting more than it needs larger samples."""


@dataclass(slots=True)
class _Descent:
    """A series of cuts, and the trial that shows whether they help."""

    began_at: float
    rate: float
    """Posts per second at its start."""
    rejected_share: float = 0.0
    """The largest share of posts that was throttled, for the account or for the connection."""
    cuts: int = 0
    trial_ends_at: float = math.inf
    trial: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class _Unavoidable:
    """Throttling that does not depend on the limit."""

    share: float
    limit: float
    """The limit does not grow beyond this until `ends_at`."""
    ends_at: float


@dataclass(slots=True)
class RateController:
    """The rate limit of one worker, in posts per second. Report all responses and call `adjust` often.

    Times are monotonic seconds.
    """

    ceiling: float
    limit: float = field(init=False)
    account_share: float = field(init=False, default=0.0)
    """The current estimate of the share of posts that the account throttles."""
    cuts: int = field(init=False, default=0)
    """The number of times the limit was lowered."""
    _evidence: ThrottleEvidence = field(init=False, default_factory=ThrottleEvidence)
    _lower_bound: float = field(init=False, default=0.0)
    """A lower bound of `account_share`."""
    _evidence_at: float = field(init=False, default=-math.inf)
    """The last time there was evidence."""
    _adjusted_at: float = field(init=False, default=-math.inf)
    _settled_at: float = field(init=False, default=-math.inf)
    _exceeded_at: float = field(init=False, default=-math.inf)
    """The last time that the throttled share exceeded the tolerated one."""
    _descent: _Descent | None = field(init=False, default=None)
    _unavoidable: _Unavoidable | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.limit = self.ceiling

    def passed(self, first_attempts: int, retries: int = 0, others: int = 0) -> None:
        """Count posts with any response except 429.

        `first_attempts`: posts to connections without an open 429, and reference posts. `retries`: second posts to
        connections whose first returned 429. `others`: later posts to such connections.
        """
        self._evidence.new.first_attempts += first_attempts
        self._evidence.new.retries += retries
        self._evidence.new.others += others

    def throttled(self, *, retry: bool) -> None:
        """Count a 429 for a first or reference post, or for a retry. Later ones for the connection do not count."""
        if retry:
            self._evidence.new.rejected_retries += 1
        else:
            self._evidence.new.rejected_first_attempts += 1

    @property
    def account_throttles(self) -> bool:
        """Whether the account currently throttles a notable share of posts."""
        return self._evidence.account_throttles

    @property
    def needs_reference(self) -> bool:
        """Whether to post to a made-up connection ten times per second, because real posts give too little evidence."""
        silent = self._adjusted_at - self._evidence_at > _WITHOUT_EVIDENCE_SECONDS
        return self._evidence.needs_reference or (self.account_throttles and silent)

    def adjust(self, now: float) -> None:
        """Move the limit, at most once per interval."""
        elapsed = min(now - self._adjusted_at, _MAX_INTERVAL_SECONDS)
        if elapsed < INTERVAL_SECONDS:
            return
        self._adjusted_at = now
        new = self._evidence.fold(elapsed, now, memory_factor=1 + _MEMORY_FACTOR * self._unavoidable_share)
        if now < self._settled_at:
            self._evidence.reset()
            return
        self._update_estimate(now)
        self._update_descent(new, now)
        if (
            self._evidence_at == now
            and self._lower_bound > self._tolerated + _UNAVOIDABLE_MARGIN * self._unavoidable_share
        ):
            self._exceeded_at = now
            self._cut(now)
        elif self._descent is None or self._descent.trial_ends_at == math.inf:
            self._grow(elapsed, now)

    def _update_estimate(self, now: float) -> None:
        estimate = self._evidence.account_share()
        if estimate is not None:
            self._lower_bound, self.account_share = estimate
            self._evidence_at = now
        elif now - self._evidence_at > _EVIDENCE_EXPIRES_SECONDS:
            self._lower_bound = self.account_share = 0.0
        unavoidable = self._unavoidable
        if unavoidable is not None and (
            now >= unavoidable.ends_at or self._evidence.sample.is_surely_below(unavoidable.share / 2)
        ):
            self._unavoidable = None

    def _cut(self, now: float) -> None:
        evidence, descent = self._evidence, self._descent
        if descent is None:
            rate = min(self.limit, evidence.passed_per_second / max(0.05, 1 - self.account_share))
            descent = self._descent = _Descent(now, rate)
        if descent.trial_ends_at < math.inf:
            return
        if self._cuts_seem_futile(descent):
            if now - descent.began_at >= _TRIAL_AFTER_SECONDS:
                descent.trial_ends_at = now + _TRIAL_SECONDS
            return
        descent.rejected_share = max(descent.rejected_share, evidence.rejected_share)
        descent.cuts += 1
        lowered = max(_CUT_TO * evidence.passed_per_second, self._floor)
        if descent.cuts > _DEEP_CUTS:
            lowered = max(lowered, _SHALLOW_CUT * self.limit)
        if lowered < self.limit:
            self.limit = lowered
            self.cuts += 1
            self._settled_at = now + _SETTLE_SECONDS

    def _cuts_seem_futile(self, descent: _Descent) -> bool:
        return (
            descent.cuts >= _TRIAL_AFTER_CUTS
            and self.limit <= _TRIAL_AT_RATE * descent.rate
            and descent.rate >= _TRIAL_RATE_OF_CEILING * self.ceiling
            and self.limit >= _TRIAL_LIMIT_OF_CEILING * self.ceiling
            and not self._mostly_throttled
        )

    def _update_descent(self, new: Counts, now: float) -> None:
        descent = self._descent
        if descent is None:
            return
        if descent.trial_ends_at == math.inf:
            if now - max(self._exceeded_at, self._settled_at) > _DESCENT_ENDS_SECONDS:
                self._descent = None  # the cuts helped
            return
        descent.trial.add(new)
        ended = now >= descent.trial_ends_at
        if not ended and descent.trial.first_attempts < _TRIAL_POSTS:
            return
        share = descent.trial.account_share()
        doubt = 2 * math.sqrt(share / max(1.0, descent.trial.first_attempts))
        unavoidable_from = max(
            _UNCHANGED_SHARE * descent.rejected_share, _SIGNIFICANT_FACTOR * _TOLERATED * self._inverse_root
        )
        if share - doubt >= unavoidable_from:
            self._unavoidable = _Unavoidable(share, 2 * descent.rate, now + _UNAVOIDABLE_SECONDS)
            self.limit = max(self.limit, descent.rate)
            self._descent = None
        elif ended or share + doubt < unavoidable_from:
            self._descent = _Descent(now, self.limit, share, cuts=_DEEP_CUTS)

    def _grow(self, elapsed: float, now: float) -> None:
        quiet_seconds = now - max(self._exceeded_at, self._settled_at)
        doublings = min(quiet_seconds / _DOUBLING_SECONDS, 20.0)
        growth = min(_MAX_GROWTH_PER_SECOND, _GROWTH_PER_SECOND * self._inverse_root * 2**doublings)
        limit = min(self.ceiling, self.limit * math.exp(growth * elapsed))
        if self._mostly_throttled:
            limit = min(limit, max(self._floor, _MOSTLY_THROTTLED_MULTIPLE * self._evidence.passed_per_second))
        if self._unavoidable is not None:
            limit = min(limit, max(self._unavoidable.limit, self.limit))
        self.limit = limit

    @property
    def _floor(self) -> float:
        return min(self.ceiling, max(_FLOOR, _FLOOR_OF_CEILING * self.ceiling))

    @property
    def _tolerated(self) -> float:
        return min(_MAX_TOLERATED, max(_MIN_TOLERATED, _TOLERATED * self._inverse_root))

    @property
    def _inverse_root(self) -> float:
        return math.sqrt(_TYPICAL_LIMIT * self.ceiling / self.limit)

    @property
    def _mostly_throttled(self) -> bool:
        return self._lower_bound > _MOSTLY_THROTTLED_SHARE

    @property
    def _unavoidable_share(self) -> float:
        return 0.0 if self._unavoidable is None else self._unavoidable.share
