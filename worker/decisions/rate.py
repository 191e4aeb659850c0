"""How fast to post: just below what the account grants.

Theory of operation. `throttle_evidence` estimates p, the share of all posts that the account refuses. Clients that do
not read have no part in p, so nothing that they do lowers the limit. Three rules follow from p.

**Cut.** If p is above what is tolerated, the limit falls to nine tenths of the posts that pass per second: that is what
the account grants now, less a tenth to find room. Then nothing is judged until the responses to earlier posts are in.
What is tolerated rises as the limit falls, as TCP tolerates more loss at lower rates. All workers of an account see the
same p, so the fastest cut and the slowest grow, until they are equal.

**Grow.** Without cuts the limit grows in proportion to itself, at one or two percent per second at first and twice as
fast every three seconds. So it creeps past what was granted last, and reaches a ceiling that has become free within
half a minute. It grows whether it is used or not, for `pacing` approaches gently any rate that is not in use.

**Stop cutting.** Some refusals do not depend on our rate: another application takes the quota whatever happens, or a
share of all calls fails. Cuts would follow each other until nothing is posted. So if the rate has halved in three cuts
and three seconds (time enough for other workers to give way), the limit is held while p is measured over many posts.
If p is no better than before, and clearly more than workers that share a quota cause among themselves, it counts as
unavoidable: the limit returns to the rate where the cuts began, may double, and only refusals beyond p lead to cuts.
After two minutes the question is asked again.

Always: floor ≤ limit ≤ ceiling. Pure: no clock, no randomness. `bench/rate_model.py` plays it against accounts.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from worker.decisions.throttle_evidence import Counts, ThrottleEvidence

INTERVAL_SECONDS: Final = 0.02
_LONGEST_INTERVAL_SECONDS: Final = 1.0
_EVIDENCE_EXPIRES_SECONDS: Final = 10.0
_WITHOUT_EVIDENCE_SECONDS: Final = 0.5

_TYPICAL_LIMIT: Final = 1 / 40
"""Of the ceiling. What is tolerated and the growth are given for it, and change with the limit's inverse root."""
_TOLERATED: Final = 0.019
_LEAST_TOLERATED: Final = 0.01
_MOST_TOLERATED: Final = 0.024
_CUT_TO: Final = 0.9
"""Of the posts that pass per second."""
_DEEP_CUTS: Final = 2
"""The first cuts may be as deep as it takes, for the quota may have changed a lot; later ones are shallow."""
_SHALLOW_CUT: Final = 0.75
_SETTLE_SECONDS: Final = 0.3
"""Longer than a retry waits and its response takes."""
_FLOOR: Final = 10.0
_FLOOR_OF_CEILING: Final = 0.002

_GROWTH_PER_SECOND: Final = 0.015
_DOUBLING_SECONDS: Final = 3.0
_FASTEST_GROWTH_PER_SECOND: Final = 0.7
_HOPELESS_SHARE: Final = 0.45
"""Where certainly more is refused, and so likely most, the limit does not outgrow what passes by more than this:"""
_HOPELESS_MULTIPLE: Final = 4.0

_DESCENT_ENDS_SECONDS: Final = 6.0
_TRIAL_AFTER_CUTS: Final = 3
_TRIAL_AFTER_SECONDS: Final = 3.0
_TRIAL_AT_RATE: Final = 0.55
"""Of the rate where the cuts began."""
_TRIAL_RATE_OF_CEILING: Final = 0.015
_TRIAL_LIMIT_OF_CEILING: Final = 0.005
"""Below these, many workers that share a small quota look like refusals that cannot be avoided."""
_TRIAL_POSTS: Final = 800.0
_TRIAL_SECONDS: Final = 25.0
_NO_BETTER: Final = 0.7
_CLEARLY_MORE: Final = 2.0
_UNAVOIDABLE_SECONDS: Final = 120.0
_UNAVOIDABLE_MARGIN: Final = 1.2
_PATIENCE: Final = 50.0
"""How many times more posts to remember per unavoidable share: it takes larger samples to see what is beyond it."""


@dataclass(slots=True)
class _Descent:
    """A run of cuts, and whether they help."""

    began_at: float
    rate: float
    """Posts per second when it began."""
    refused_share: float = 0.0
    """The largest share of posts that was refused, by the account or by clients."""
    cuts: int = 0
    trial_ends_at: float = math.inf
    trial: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class _Unavoidable:
    """Refusals that do not depend on the limit."""

    share: float
    limit: float
    """The limit does not grow beyond this meanwhile."""
    ends_at: float


@dataclass(slots=True)
class RateController:
    """`limit` is in posts per second. Report all responses and call `adjust` often. Times are monotonic seconds."""

    ceiling: float
    limit: float = field(init=False)
    account_share: float = field(init=False, default=0.0)
    """The share of posts that the account refuses, as estimated now."""
    cuts: int = field(init=False, default=0)
    """How often the limit was lowered."""
    _evidence: ThrottleEvidence = field(init=False, default_factory=ThrottleEvidence)
    _at_least: float = field(init=False, default=0.0)
    """A lower bound of `account_share`."""
    _told_at: float = field(init=False, default=-math.inf)
    """When there was evidence last."""
    _adjusted_at: float = field(init=False, default=-math.inf)
    _settled_at: float = field(init=False, default=-math.inf)
    _over_at: float = field(init=False, default=-math.inf)
    """When more than what is tolerated was refused last."""
    _descent: _Descent | None = field(init=False, default=None)
    _unavoidable: _Unavoidable | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.limit = self.ceiling

    def passed(self, firsts: int, retries: int = 0, others: int = 0) -> None:
        """Posts with any response but 429.

        `firsts`: first posts to connections in good standing, and references. `retries`: second posts to connections
        whose first was answered 429. `others`: later posts to such connections.
        """
        self._evidence.new.firsts += firsts
        self._evidence.new.retries += retries
        self._evidence.new.others += others

    def throttled(self, *, retry: bool) -> None:
        """A 429 to a first post or a reference, or to a retry. Later ones to the same connection are not reported."""
        if retry:
            self._evidence.new.refused_retries += 1
        else:
            self._evidence.new.refused_firsts += 1

    @property
    def account_throttles(self) -> bool:
        """Whether the account refuses a notable share of posts now."""
        return self._evidence.account_throttles

    @property
    def wants_reference(self) -> bool:
        """Whether to post to a connection that does not exist, ten times per second: real ones tell too little."""
        silent = self._adjusted_at - self._told_at > _WITHOUT_EVIDENCE_SECONDS
        return self._evidence.wants_reference or (self.account_throttles and silent)

    def adjust(self, now: float) -> None:
        """Move the limit, at most once per interval."""
        elapsed = min(now - self._adjusted_at, _LONGEST_INTERVAL_SECONDS)
        if elapsed < INTERVAL_SECONDS:
            return
        self._adjusted_at = now
        heard = self._evidence.fold(elapsed, now, patience=1 + _PATIENCE * self._unavoidable_share)
        if now < self._settled_at:
            self._evidence.forget()
            return
        self._judge(now)
        self._follow_descent(heard, now)
        if self._told_at == now and self._at_least > self._tolerated + _UNAVOIDABLE_MARGIN * self._unavoidable_share:
            self._over_at = now
            self._cut(now)
        elif self._descent is None or self._descent.trial_ends_at == math.inf:
            self._grow(elapsed, now)

    def _judge(self, now: float) -> None:
        estimate = self._evidence.account_share()
        if estimate is not None:
            self._at_least, self.account_share = estimate
            self._told_at = now
        elif now - self._told_at > _EVIDENCE_EXPIRES_SECONDS:
            self._at_least = self.account_share = 0.0
        unavoidable = self._unavoidable
        if unavoidable is not None and (
            now >= unavoidable.ends_at or self._evidence.lately.surely_below(unavoidable.share / 2)
        ):
            self._unavoidable = None

    def _cut(self, now: float) -> None:
        evidence, descent = self._evidence, self._descent
        if descent is None:
            rate = min(self.limit, evidence.passed_per_second / max(0.05, 1 - self.account_share))
            descent = self._descent = _Descent(now, rate)
        if descent.trial_ends_at < math.inf:
            return
        if self._seems_in_vain(descent):
            if now - descent.began_at >= _TRIAL_AFTER_SECONDS:
                descent.trial_ends_at = now + _TRIAL_SECONDS
            return
        descent.refused_share = max(descent.refused_share, evidence.refused_share)
        descent.cuts += 1
        lowered = max(_CUT_TO * evidence.passed_per_second, self._floor)
        if descent.cuts > _DEEP_CUTS:
            lowered = max(lowered, _SHALLOW_CUT * self.limit)
        if lowered < self.limit:
            self.limit = lowered
            self.cuts += 1
            self._settled_at = now + _SETTLE_SECONDS

    def _seems_in_vain(self, descent: _Descent) -> bool:
        return (
            descent.cuts >= _TRIAL_AFTER_CUTS
            and self.limit <= _TRIAL_AT_RATE * descent.rate
            and descent.rate >= _TRIAL_RATE_OF_CEILING * self.ceiling
            and self.limit >= _TRIAL_LIMIT_OF_CEILING * self.ceiling
            and not self._hopeless
        )

    def _follow_descent(self, heard: Counts, now: float) -> None:
        descent = self._descent
        if descent is None:
            return
        if descent.trial_ends_at == math.inf:
            if now - max(self._over_at, self._settled_at) > _DESCENT_ENDS_SECONDS:
                self._descent = None  # the cuts have helped
            return
        descent.trial.add(heard)
        ended = now >= descent.trial_ends_at
        if not ended and descent.trial.firsts < _TRIAL_POSTS:
            return
        share = descent.trial.account_share()
        doubt = 2 * math.sqrt(share / max(1.0, descent.trial.firsts))
        in_vain = max(_NO_BETTER * descent.refused_share, _CLEARLY_MORE * _TOLERATED * self._inverse_root)
        if share - doubt >= in_vain:
            self._unavoidable = _Unavoidable(share, 2 * descent.rate, now + _UNAVOIDABLE_SECONDS)
            self.limit = max(self.limit, descent.rate)
            self._descent = None
        elif ended or share + doubt < in_vain:
            self._descent = _Descent(now, self.limit, share, cuts=_DEEP_CUTS)

    def _grow(self, elapsed: float, now: float) -> None:
        quiet_seconds = now - max(self._over_at, self._settled_at)
        doublings = min(quiet_seconds / _DOUBLING_SECONDS, 20.0)
        growth = min(_FASTEST_GROWTH_PER_SECOND, _GROWTH_PER_SECOND * self._inverse_root * 2**doublings)
        limit = min(self.ceiling, self.limit * math.exp(growth * elapsed))
        if self._hopeless:
            limit = min(limit, max(self._floor, _HOPELESS_MULTIPLE * self._evidence.passed_per_second))
        if self._unavoidable is not None:
            limit = min(limit, max(self._unavoidable.limit, self.limit))
        self.limit = limit

    @property
    def _floor(self) -> float:
        return min(self.ceiling, max(_FLOOR, _FLOOR_OF_CEILING * self.ceiling))

    @property
    def _tolerated(self) -> float:
        return min(_MOST_TOLERATED, max(_LEAST_TOLERATED, _TOLERATED * self._inverse_root))

    @property
    def _inverse_root(self) -> float:
        return math.sqrt(_TYPICAL_LIMIT * self.ceiling / self.limit)

    @property
    def _hopeless(self) -> bool:
        return self._at_least > _HOPELESS_SHARE

    @property
    def _unavoidable_share(self) -> float:
        return 0.0 if self._unavoidable is None else self._unavoidable.share
