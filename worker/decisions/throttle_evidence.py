"""How much the account refuses, judged from responses alone.

A 429 says "the account is over its rate" or "this client does not read", and does not say which. The retry tells them
apart. A client that does not read refuses the retry, too; an account that refuses a share p of all posts lets the retry
pass with probability 1 - p. So a refusal is *confirmed* as the account's when the retry of that connection passes. With
a share s of clients that do not read, of N first posts N(1-s)(1-p) pass and N(1-s)p(1-p) are confirmed, hence

    p = confirmed / first posts that passed,    whatever s is.

A hundred clients that stop reading in one instant confirm nothing. Two rules keep the estimate honest. It is never more
than the share of all first and second posts that were refused, or retries that pass long after the last refusal would
count as refusals of now. And nothing rests on one or two posts: decisions use a lower bound, some standard deviations
below the estimate, and at least three confirmed refusals. What remains wrong: a client that reads again just before the
retry confirms a refusal. Cuts do not help against such, and the controller stops cutting.

If nothing passes, nothing is confirmed: "the account refuses everything" looks like "none of these clients reads". Then
`wants_reference` asks for posts to a connection that does not exist, which a healthy account answers with 410. If they
have been asked for during a second and hardly anything has passed, it is the account.
"""

import math
from dataclasses import dataclass, field
from typing import Final

_NOTABLE_SHARE: Final = 0.05
_DEVIATIONS: Final = 1.5
_LEAST_CONFIRMED: Final = 3.0
_LEAST_FIRSTS: Final = 20.0
_MEMORY_POSTS: Final = 200.0
"""A fast worker judges by so many posts, and so within a fraction of a second."""
_MEMORY_SECONDS: Final = 8.0
"""A slow worker judges by this time."""
_REFUSED_COUNTS: Final = 0.25
"""Of a post in that memory: where nearly all are refused, those that pass must be able to add up."""
_PAUSE_SECONDS: Final = 0.25
"""Longer silence is a lack of demand, not time in which posts could have passed."""
_LASTING_SECONDS: Final = 10.0
_RECENT_SECONDS: Final = 1.0
_ASKING_SECONDS: Final = 1.0
_ANY_REFUSED: Final = 0.5
_ENOUGH_PASSED: Final = 6.0
"""First posts in about a second; then real ones tell enough."""
_HARDLY_ANY: Final = 3.0
_MANY_REFERENCES: Final = 10.0
_MANY_REFERENCES_SHARE: Final = 0.2


@dataclass(slots=True)
class Counts:
    """Posts by outcome. Fractions arise where old counts fade."""

    firsts: float = 0.0
    """First posts that passed."""
    retries: float = 0.0
    """Second posts that passed: each confirms that the account refused the first."""
    others: float = 0.0
    """Later posts that passed. They only show how much gets through."""
    refused_firsts: float = 0.0
    refused_retries: float = 0.0

    @property
    def passed(self) -> float:
        return self.firsts + self.retries + self.others

    @property
    def refused(self) -> float:
        return self.refused_firsts + self.refused_retries

    def account_share(self, deviations: float = 0.0) -> float:
        """The share that the account refuses, or a bound that many standard deviations below it."""
        confirmed = _below(self.retries, deviations)
        return min(confirmed / max(1.0, self.firsts, self.retries), self.refused_share(deviations))

    def refused_share(self, deviations: float = 0.0) -> float:
        """The share of first and second posts that was refused, by the account or by clients, or a bound below it."""
        return _below(self.refused, deviations) / max(1.0, self.firsts + self.retries + self.refused)

    def surely_below(self, share: float) -> bool:
        """Whether the account refuses less than this share, by three standard deviations."""
        return self.retries + 3 * math.sqrt(self.retries + 1) < share * self.firsts

    def fade(self, kept: float) -> None:
        self.firsts *= kept
        self.retries *= kept
        self.others *= kept
        self.refused_firsts *= kept
        self.refused_retries *= kept

    def add(self, more: "Counts") -> None:
        self.firsts += more.firsts
        self.retries += more.retries
        self.others += more.others
        self.refused_firsts += more.refused_firsts
        self.refused_retries += more.refused_retries


def _below(count: float, deviations: float) -> float:
    return max(0.0, count - deviations * math.sqrt(count))


@dataclass(slots=True)
class ThrottleEvidence:
    """Count responses in `new`, and `fold` them in from time to time. Times are monotonic seconds."""

    new: Counts = field(default_factory=Counts)
    lately: Counts = field(default_factory=Counts)
    """The last posts, since `forget`."""
    _lately_seconds: float = 0.0
    """The time that `lately` covers, without pauses."""
    _lasting: Counts = field(default_factory=Counts)
    """About the last ten seconds."""
    _recent: Counts = field(default_factory=Counts)
    """About the last second."""
    _heard_at: float = -math.inf
    _asking_since: float = math.inf
    _refuses_all: bool = False

    def fold(self, elapsed: float, now: float, *, patience: float = 1.0) -> Counts:
        """Return what is new, `elapsed` seconds after the last call. `patience` multiplies the posts to remember."""
        new, self.new = self.new, Counts()
        told = new.firsts + new.retries + _REFUSED_COUNTS * new.refused
        if told or new.others:
            self._heard_at = now
        kept = min(math.exp(-elapsed / _MEMORY_SECONDS), max(0.0, 1 - told / (_MEMORY_POSTS * patience)))
        active_seconds = elapsed if now - self._heard_at < _PAUSE_SECONDS else 0.0
        self._lately_seconds = self._lately_seconds * kept + active_seconds
        self.lately.fade(kept)
        self._lasting.fade(math.exp(-elapsed / _LASTING_SECONDS))
        self._recent.fade(math.exp(-elapsed / _RECENT_SECONDS))
        for counts in (self.lately, self._lasting, self._recent):
            counts.add(new)
        self._look_for_total_refusal(now)
        return new

    def forget(self) -> None:
        """Begin anew, for the limit has changed."""
        self.lately = Counts()
        self._lately_seconds = 0.0

    @property
    def passed_per_second(self) -> float:
        return self.lately.passed / self._lately_seconds if self._lately_seconds else 0.0

    @property
    def refused_share(self) -> float:
        return self.lately.refused_share(_DEVIATIONS)

    def account_share(self) -> tuple[float, float] | None:
        """A lower bound and the likely value, or None while there is too little to tell."""
        if self._refuses_all:
            return self._recent.refused_share(), self._recent.refused_share()
        if self.lately.retries >= _LEAST_CONFIRMED:
            return self.lately.account_share(_DEVIATIONS), self.lately.account_share()
        if self.lately.firsts >= _LEAST_FIRSTS:
            return 0.0, self.lately.account_share()
        return None

    @property
    def account_throttles(self) -> bool:
        """Whether the account refuses a notable share, seen over some seconds."""
        lasting = self._lasting
        notable = lasting.retries >= _LEAST_CONFIRMED and lasting.account_share(_DEVIATIONS) > _NOTABLE_SHARE
        # Of connections each refusal is retried; those that are not, a while later, were of references.
        references = lasting.refused_firsts - self._recent.refused_firsts - lasting.retries - lasting.refused_retries
        many = references >= _MANY_REFERENCES and references > _MANY_REFERENCES_SHARE * (references + lasting.firsts)
        return notable or many or self._refuses_all

    @property
    def wants_reference(self) -> bool:
        """Whether posts were refused while too few passed to judge by."""
        return self._recent.refused >= _ANY_REFUSED and self._recent.firsts < _ENOUGH_PASSED

    def _look_for_total_refusal(self, now: float) -> None:
        if not self.wants_reference:
            self._asking_since = math.inf
            self._refuses_all = False
            return
        self._asking_since = min(self._asking_since, now)
        if now - self._asking_since >= _ASKING_SECONDS and self._recent.firsts < _HARDLY_ANY:
            self._refuses_all |= self._recent.refused_firsts >= _HARDLY_ANY
