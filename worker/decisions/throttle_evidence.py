"""The share of posts that the account throttles, estimated from responses alone.

A 429 means either "the account exceeds its rate" or "this client does not read", without saying which. The retry tells
them apart. If the client does not read, the retry returns 429 too; if the account throttles a share p of all posts, the
retry passes with probability 1 - p. So a 429 is *confirmed* as the account's when the retry to that connection passes.
With a share s of clients that do not read, of N first posts N(1-s)(1-p) pass and N(1-s)p(1-p) are confirmed, hence

    p = confirmed / first posts that passed,    for any s.

A hundred clients that stop reading in one instant confirm nothing. Two rules keep the estimate honest. First, it never
exceeds the share of all first and second posts that were throttled; otherwise retries that pass long after the last 429
would count as current throttling. Second, no decision rests on one or two posts: decisions use a lower bound, some
standard deviations below the estimate, and at least three confirmed 429s. One error remains: a client that resumes
reading just before the retry confirms a 429. Cuts do not help against these, and the controller stops cutting.

If nothing passes, nothing is confirmed: "the account throttles everything" looks like "none of these clients reads".
Then `needs_reference` requests posts to a made-up connection, for which a healthy account returns 410. If these have
been requested for a second and hardly anything has passed, the account is throttling.
"""

import math
from dataclasses import dataclass, field
from typing import Final

_NOTABLE_SHARE: Final = 0.05
_DEVIATIONS: Final = 1.5
_MIN_CONFIRMED: Final = 3.0
_MIN_FIRST_ATTEMPTS: Final = 20.0
_MEMORY_POSTS: Final = 200.0
"""A fast worker's sample: it covers this many posts, and so a fraction of a second."""
_MEMORY_SECONDS: Final = 8.0
"""A slow worker's sample: it covers this time."""
_REJECTED_WEIGHT: Final = 0.25
"""The weight of a rejected post in that sample: low, so that the few that pass add up if nearly all are rejected."""
_PAUSE_SECONDS: Final = 0.25
"""A longer pause means a lack of demand; it is not time in which posts could have passed."""
_LONG_TERM_SECONDS: Final = 10.0
_RECENT_SECONDS: Final = 1.0
_REFERENCE_SECONDS: Final = 1.0
_ANY_REJECTED: Final = 0.5
_ENOUGH_PASSED: Final = 6.0
"""First posts in about a second, from which on real posts are enough evidence."""
_HARDLY_ANY: Final = 3.0
_MANY_REFERENCES: Final = 10.0
_MANY_REFERENCES_SHARE: Final = 0.2


@dataclass(slots=True)
class Counts:
    """Posts by result. Counts are fractional because old ones fade."""

    first_attempts: float = 0.0
    """First posts that passed."""
    retries: float = 0.0
    """Second posts that passed: each confirms that the account throttled the first."""
    others: float = 0.0
    """Later posts that passed. They count only towards the rate of posts that pass."""
    rejected_first_attempts: float = 0.0
    rejected_retries: float = 0.0

    @property
    def passed(self) -> float:
        return self.first_attempts + self.retries + self.others

    @property
    def rejected(self) -> float:
        return self.rejected_first_attempts + self.rejected_retries

    def account_share(self, deviations: float = 0.0) -> float:
        """The share that the account throttles, or a bound that is `deviations` standard deviations below it."""
        confirmed = _below(self.retries, deviations)
        return min(confirmed / max(1.0, self.first_attempts, self.retries), self.rejected_share(deviations))

    def rejected_share(self, deviations: float = 0.0) -> float:
        """The share of first and second posts that returned 429, for either reason, or a bound below it."""
        return _below(self.rejected, deviations) / max(1.0, self.first_attempts + self.retries + self.rejected)

    def is_surely_below(self, share: float) -> bool:
        """Whether the account throttles less than this share, by three standard deviations."""
        return self.retries + 3 * math.sqrt(self.retries + 1) < share * self.first_attempts

    def fade(self, kept: float) -> None:
        self.first_attempts *= kept
        self.retries *= kept
        self.others *= kept
        self.rejected_first_attempts *= kept
        self.rejected_retries *= kept

    def add(self, more: "Counts") -> None:
        self.first_attempts += more.first_attempts
        self.retries += more.retries
        self.others += more.others
        self.rejected_first_attempts += more.rejected_first_attempts
        self.rejected_retries += more.rejected_retries


def _below(count: float, deviations: float) -> float:
    return max(0.0, count - deviations * math.sqrt(count))


@dataclass(slots=True)
class ThrottleEvidence:
    """Count responses in `new`, and call `fold` regularly to include them. Times are monotonic seconds."""

    new: Counts = field(default_factory=Counts)
    sample: Counts = field(default_factory=Counts)
    """The last posts, since `reset`."""
    _sample_seconds: float = 0.0
    """The time that `sample` covers, without pauses."""
    _long_term: Counts = field(default_factory=Counts)
    """Counts of about the last ten seconds."""
    _recent: Counts = field(default_factory=Counts)
    """Counts of about the last second."""
    _response_at: float = -math.inf
    _needed_since: float = math.inf
    _rejects_all: bool = False

    def fold(self, elapsed: float, now: float, *, memory_factor: float = 1.0) -> Counts:
        """Include the new counts, `elapsed` seconds after the last call, and return them.

        `memory_factor` multiplies the number of posts that the sample covers.
        """
        new, self.new = self.new, Counts()
        weight = new.first_attempts + new.retries + _REJECTED_WEIGHT * new.rejected
        if weight or new.others:
            self._response_at = now
        kept = min(math.exp(-elapsed / _MEMORY_SECONDS), max(0.0, 1 - weight / (_MEMORY_POSTS * memory_factor)))
        active_seconds = elapsed if now - self._response_at < _PAUSE_SECONDS else 0.0
        self._sample_seconds = self._sample_seconds * kept + active_seconds
        self.sample.fade(kept)
        self._long_term.fade(math.exp(-elapsed / _LONG_TERM_SECONDS))
        self._recent.fade(math.exp(-elapsed / _RECENT_SECONDS))
        for counts in (self.sample, self._long_term, self._recent):
            counts.add(new)
        self._detect_total_rejection(now)
        return new

    def reset(self) -> None:
        """Discard the sample, because the limit has changed."""
        self.sample = Counts()
        self._sample_seconds = 0.0

    @property
    def passed_per_second(self) -> float:
        return self.sample.passed / self._sample_seconds if self._sample_seconds else 0.0

    @property
    def rejected_share(self) -> float:
        return self.sample.rejected_share(_DEVIATIONS)

    def account_share(self) -> tuple[float, float] | None:
        """A lower bound and the likely value, or None while there is too little evidence."""
        if self._rejects_all:
            return self._recent.rejected_share(), self._recent.rejected_share()
        if self.sample.retries >= _MIN_CONFIRMED:
            return self.sample.account_share(_DEVIATIONS), self.sample.account_share()
        if self.sample.first_attempts >= _MIN_FIRST_ATTEMPTS:
            return 0.0, self.sample.account_share()
        return None

    @property
    def account_throttles(self) -> bool:
        """Whether the account has throttled a notable share over some seconds."""
        long_term = self._long_term
        notable = long_term.retries >= _MIN_CONFIRMED and long_term.account_share(_DEVIATIONS) > _NOTABLE_SHARE
        # A 429 of a connection is retried; those not retried after a while were of reference posts.
        references = (
            long_term.rejected_first_attempts
            - self._recent.rejected_first_attempts
            - long_term.retries
            - long_term.rejected_retries
        )
        many = references >= _MANY_REFERENCES and references > _MANY_REFERENCES_SHARE * (
            references + long_term.first_attempts
        )
        return notable or many or self._rejects_all

    @property
    def needs_reference(self) -> bool:
        """Whether posts were throttled while too few passed for an estimate."""
        return self._recent.rejected >= _ANY_REJECTED and self._recent.first_attempts < _ENOUGH_PASSED

    def _detect_total_rejection(self, now: float) -> None:
        if not self.needs_reference:
            self._needed_since = math.inf
            self._rejects_all = False
            return
        self._needed_since = min(self._needed_since, now)
        if now - self._needed_since >= _REFERENCE_SECONDS and self._recent.first_attempts < _HARDLY_ANY:
            self._rejects_all |= self._recent.rejected_first_attempts >= _HARDLY_ANY
