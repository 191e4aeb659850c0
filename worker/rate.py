"""How fast to post: below what the account grants, and no slower than that.

Theory of operation. `throttle_evidence` estimates p, the share of all posts that the account refuses. Clients that do
not read have no part in it, so nothing they do changes the limit. From p follow three rules.

**Cut.** While p is above what is tolerated, the limit falls to nine tenths of what passes a second. That is what the
account grants now, less a tenth to find room, so one cut is enough. After a cut nothing is judged until the responses
to earlier posts are in. What is tolerated rises as the limit falls, as in TCP, whose rate falls with the square root of
the loss: all workers of an account see the same p, so the larger cuts while the smaller grows, until they are equal.

**Grow.** Without a cut the limit grows in proportion to itself, slowly at first, then twice as fast every three
seconds. So it creeps past what was granted last, and is at a ceiling that has become free within half a minute. It
grows whether it is used or not: `pacing` approaches a rate gently that has not been in use.

**Give up cutting.** Some refusals do not depend on our rate: another application takes the quota whatever happens, or a
share of all posts fails. Then cuts do not help, and would go on until nothing is posted. So if the rate has been halved
by at least three cuts over at least three seconds (others that give way have done so by then), it is held, and p is
measured over many posts. If p is as large as before and clearly more than workers that share an account cause among
themselves, it counts as unavoidable: only what is refused beyond it is a reason to cut. The limit returns to where
it was, may double, and the question is asked again after two minutes.

Always: floor ≤ limit ≤ ceiling. Pure: no clock and no randomness. `bench/rate_model.py` plays it against accounts.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from worker.throttle_evidence import Counts, ThrottleEvidence

INTERVAL_SECONDS: Final = 0.02
_LONGEST_INTERVAL_SECONDS: Final = 1.0
_NOTABLE_SHARE: Final = 0.05
_EVIDENCE_EXPIRES_SECONDS: Final = 10.0
_WITHOUT_EVIDENCE_SECONDS: Final = 0.5

_TOLERATED: Final = 0.018
"""At a limit of a fortieth of the ceiling; it changes with the inverse square root of the limit, within bounds."""
_LEAST_TOLERATED: Final = 0.01
_MOST_TOLERATED: Final = 0.024
_TYPICAL_SHARE: Final = 1 / 40
_CUT_TO_OF_PASSED: Final = 0.9
_DEEP_CUTS: Final = 2
"""So many cuts of a descent may be as deep as it takes; later ones are shallow: they are about no sudden change."""
_SHALLOWEST_CUT: Final = 0.75
_SETTLE_SECONDS: Final = 0.3
"""Longer than a retry waits and its response takes."""
_FLOOR: Final = 10.0
_FLOOR_OF_CEILING: Final = 0.002
_HOPELESS_SHARE: Final = 0.45
"""Where surely more is refused, what passes says little; the limit stays at a small share of the ceiling."""

_GROWTH_PER_SECOND: Final = 0.015
"""At a limit of a fortieth of the ceiling, as `_TOLERATED`."""
_DOUBLING_SECONDS: Final = 3.0
_FASTEST_GROWTH_PER_SECOND: Final = 0.7

_DESCENT_ENDS_SECONDS: Final = 6.0
_TRIAL_AFTER_CUTS: Final = 3
_TRIAL_AFTER_SECONDS: Final = 3.0
_TRIAL_AT_SHARE_OF_RATE: Final = 0.55
_TRIAL_POSTS: Final = 800.0
_TRIAL_SECONDS: Final = 25.0
_LEAST_RATE_OF_CEILING: Final = 0.015
_LEAST_LIMIT_OF_CEILING: Final = 0.005
"""Below these, workers that share a small quota cannot be told from refusals that nobody can avoid."""
_NO_BETTER: Final = 0.7
_CLEARLY: Final = 2.0
_UNAVOIDABLE_SECONDS: Final = 120.0
_MARGIN: Final = 1.2
_PATIENCE: Final = 50.0
"""How many more posts to remember for each share that is unavoidable: small deviations from it take larger samples."""


@dataclass(slots=True)
class _Descent:
    """A stretch of cuts, and whether they help."""

    began_at: float
    rate: float
    """Posts a second when it began."""
    refused_share: float = 0.0
    """The largest share of posts refused, by whomever."""
    cuts: int = 0
    trial_ends_at: float = math.inf
    trial: Counts = field(default_factory=Counts)


@dataclass(slots=True)
class _Unavoidable:
    """Refusals that do not depend on the limit."""

    share: float
    limit: float
    ends_at: float


@dataclass(slots=True)
class RateController:
    """`limit` is in posts per second. Report every response; call `adjust` often. Times are monotonic seconds."""

    ceiling: float
    limit: float = field(init=False)
    account_share: float = field(init=False, default=0.0)
    """The share of posts that the account refuses, as estimated now."""
    cuts: int = field(init=False, default=0)
    """How often the limit was lowered."""
    _evidence: ThrottleEvidence = field(init=False, default_factory=ThrottleEvidence)
    _surely: float = field(init=False, default=0.0)
    """A lower bound of `account_share`."""
    _told_at: float = field(init=False, default=-math.inf)
    """When there was evidence last."""
    _adjusted_at: float = field(init=False, default=-math.inf)
    _settled_at: float = field(init=False, default=-math.inf)
    _too_many_at: float = field(init=False, default=-math.inf)
    """When more than what is tolerated was refused last."""
    _descent: _Descent | None = field(init=False, default=None)
    _unavoidable: _Unavoidable | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.limit = self.ceiling

    def passed(self, firsts: int, retries: int = 0, others: int = 0) -> None:
        """Posts with any response but 429.

        `firsts` are first posts to connections in good standing (and references), `retries` second posts to connections
        whose first was refused, `others` later posts to such connections.
        """
        self._evidence.new.firsts += firsts
        self._evidence.new.retries += retries
        self._evidence.new.others += others

    def throttled(self, *, retry: bool) -> None:
        """A 429 to a first post (or a reference), or to a retry. Later ones to the same connection are not reported."""
        if retry:
            self._evidence.new.refused_retries += 1
        else:
            self._evidence.new.refused_firsts += 1

    @property
    def account_throttles(self) -> bool:
        """Whether the account refuses a notable share now."""
        return self._evidence.throttles

    @property
    def wants_reference(self) -> bool:
        """Whether posts to a connection that nobody has, about ten per second, would tell what real ones do not."""
        silent = self._adjusted_at - self._told_at > _WITHOUT_EVIDENCE_SECONDS
        return self._evidence.wants_reference or (self.account_throttles and silent)

    def adjust(self, now: float) -> None:
        """Move the limit, at most once per interval."""
        elapsed = min(now - self._adjusted_at, _LONGEST_INTERVAL_SECONDS)
        if elapsed < INTERVAL_SECONDS:
            return
        self._adjusted_at = now
        heard = self._evidence.fold(elapsed, now, 1 + _PATIENCE * self._accepted)
        if now < self._settled_at:
            self._evidence.forget()
            return
        self._judge(now)
        descent = self._descent
        if descent is not None:
            self._follow(descent, heard, now)
        if self._told_at == now and self._surely > self._tolerated() + _MARGIN * self._accepted:
            self._too_many_at = now
            self._cut(now)
        elif self._descent is None or self._descent.trial_ends_at == math.inf:
            self._grow(elapsed, now)

    def _judge(self, now: float) -> None:
        share = self._evidence.share()
        if share is not None:
            self._surely, self.account_share = share
            self._told_at = now
        elif now - self._told_at > _EVIDENCE_EXPIRES_SECONDS:
            self._surely = self.account_share = 0.0
        unavoidable = self._unavoidable
        if unavoidable is not None:  # noqa: SIM102 - two questions
            if self._evidence.lately.surely_below(unavoidable.share / 2) or now >= unavoidable.ends_at:
                self._unavoidable = None

    def _follow(self, descent: _Descent, heard: Counts, now: float) -> None:
        if descent.trial_ends_at == math.inf:
            if now - max(self._too_many_at, self._settled_at) > _DESCENT_ENDS_SECONDS:
                self._descent = None  # the cuts have helped
            return
        descent.trial.add(heard)
        if descent.trial.firsts >= _TRIAL_POSTS or now >= descent.trial_ends_at:
            self._conclude(descent, now)

    def _conclude(self, descent: _Descent, now: float) -> None:
        share = descent.trial.account_share()
        threshold = max(_NO_BETTER * descent.refused_share, _CLEARLY * self._tolerated(bounded=False))
        doubt = 2 * math.sqrt(share / max(1.0, descent.trial.firsts))
        if share - doubt >= threshold:
            self._unavoidable = _Unavoidable(share, 2 * descent.rate, now + _UNAVOIDABLE_SECONDS)
            self.limit = max(self.limit, min(self.ceiling, descent.rate))
            self._descent = None
        elif share + doubt < threshold or now >= descent.trial_ends_at:
            self._descent = _Descent(now, self.limit, share, cuts=_DEEP_CUTS)

    def _cut(self, now: float) -> None:
        evidence, descent = self._evidence, self._descent
        if descent is None:
            rate = min(self.limit, evidence.passed_per_second / max(0.05, 1 - self.account_share))
            descent = self._descent = _Descent(now, rate)
        elif descent.trial_ends_at < math.inf:
            return
        elif self._cuts_seem_in_vain(descent, now):
            descent.trial_ends_at = now + _TRIAL_SECONDS
            return
        descent.refused_share = max(descent.refused_share, evidence.lately.refused_share(1.5))
        descent.cuts += 1
        lowered = max(_CUT_TO_OF_PASSED * evidence.passed_per_second, self._floor)
        if descent.cuts > _DEEP_CUTS:
            lowered = max(lowered, _SHALLOWEST_CUT * self.limit)
        if lowered < self.limit:
            self.limit = lowered
            self.cuts += 1
            self._settled_at = now + _SETTLE_SECONDS

    def _cuts_seem_in_vain(self, descent: _Descent, now: float) -> bool:
        return (
            descent.cuts >= _TRIAL_AFTER_CUTS
            and now - descent.began_at >= _TRIAL_AFTER_SECONDS
            and self.limit <= _TRIAL_AT_SHARE_OF_RATE * descent.rate
            and descent.rate >= _LEAST_RATE_OF_CEILING * self.ceiling
            and self.limit >= _LEAST_LIMIT_OF_CEILING * self.ceiling
            and not self._hopeless
        )

    def _grow(self, elapsed: float, now: float) -> None:
        quiet = now - max(self._too_many_at, self._settled_at)
        growth = _GROWTH_PER_SECOND * self._inverse_root() * 2 ** min(quiet / _DOUBLING_SECONDS, 20)
        limit = self.limit * math.exp(min(growth, _FASTEST_GROWTH_PER_SECOND) * elapsed)
        if self._hopeless:
            limit = min(limit, max(self._floor, 4 * self._evidence.passed_per_second))
        if self._unavoidable is not None:
            limit = min(limit, max(self._unavoidable.limit, self.limit))
        self.limit = min(self.ceiling, limit)

    @property
    def _floor(self) -> float:
        return min(self.ceiling, max(_FLOOR, _FLOOR_OF_CEILING * self.ceiling))

    @property
    def _accepted(self) -> float:
        return 0.0 if self._unavoidable is None else self._unavoidable.share

    @property
    def _hopeless(self) -> bool:
        return self._surely > _HOPELESS_SHARE

    def _inverse_root(self) -> float:
        return math.sqrt(_TYPICAL_SHARE * self.ceiling / self.limit)

    def _tolerated(self, *, bounded: bool = True) -> float:
        share = _TOLERATED * self._inverse_root()
        return min(_MOST_TOLERATED, max(_LEAST_TOLERATED, share)) if bounded else share
