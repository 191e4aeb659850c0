"""How much the account refuses, judged from responses alone.

A 429 says "the account is over its rate" or "this one client does not read", and does not say which. What tells them
apart is the retry: a client that does not read refuses it as well, an account that refuses a share p of all posts lets
it pass with probability 1 - p. So a refusal is *confirmed* as the account's when the retry of that connection passes.
With s the share of clients that do not read, of N first posts N(1-s)(1-p) pass and N(1-s)p(1-p) are confirmed, hence

    p = confirmed / first posts that passed,    whatever s is.

A hundred clients that stop reading in one instant confirm nothing. Two limits keep the estimate honest. p is never more
than the share of all first and second posts that are refused, so retries that still pass long after the last refusal
count for nothing. And it is never believed on one or two posts: decisions use a lower bound, some standard deviations
below the estimate, and at least three confirmed refusals.

Where nothing passes nothing is confirmed, and "the account refuses everything" looks like "all of these clients do not
read". Then `wants_reference` asks for posts to a connection that nobody has: a healthy account lets these pass. If they
have been asked for during a second and still nothing passes, it is the account.
"""

import math
from dataclasses import dataclass, field
from typing import Final

_MEMORY_POSTS: Final = 200.0
"""The evidence of a fast worker is this many posts old at most, so that it reacts within a fraction of a second."""
_MEMORY_SECONDS: Final = 8.0
"""The evidence of a slow worker is this old at most."""
_WEIGHT_OF_REFUSED: Final = 0.25
"""Of a refused post against one that passes, as memory goes: where nearly all are refused, what passes must add up."""
_PAUSE_SECONDS: Final = 0.25
"""A longer silence is a lack of demand, and does not count as time in which posts could have passed."""
_LEAST_CONFIRMED: Final = 3.0
_LEAST_FIRSTS: Final = 20.0
_DEVIATIONS: Final = 1.5
_RECENT_SECONDS: Final = 1.0
_LASTING_SECONDS: Final = 10.0
_ASKING_SECONDS: Final = 1.0
_HARDLY_ANY: Final = 3.0
"""First posts that passed within about a second; of ten references a healthy account lets more pass."""
_SOME: Final = 6.0
_NOTABLE_SHARE: Final = 0.05


@dataclass(slots=True)
class Counts:
    """Posts by what became of them. Fractions arise where old counts fade."""

    firsts: float = 0.0
    """First posts that passed."""
    retries: float = 0.0
    """Second posts that passed: each confirms a refusal as the account's."""
    others: float = 0.0
    """Later posts that passed. They show how much gets through, and nothing else."""
    refused_firsts: float = 0.0
    refused_retries: float = 0.0

    @property
    def refused(self) -> float:
        return self.refused_firsts + self.refused_retries

    @property
    def passed(self) -> float:
        return self.firsts + self.retries + self.others

    def account_share(self, deviations: float = 0.0) -> float:
        """The share that the account refuses, or a bound so many standard deviations below it."""
        confirmed = max(0.0, self.retries - deviations * math.sqrt(self.retries))
        return min(confirmed / max(1.0, self.firsts, self.retries), self.refused_share(deviations))

    def refused_share(self, deviations: float = 0.0) -> float:
        """The share of first and second posts that were refused by whomever, or a bound below it."""
        refused = max(0.0, self.refused - deviations * math.sqrt(self.refused))
        return refused / max(1.0, self.firsts + self.retries + self.refused)

    def surely_below(self, share: float) -> bool:
        """Whether the account refuses less than this, by three standard deviations."""
        return self.retries + 3 * math.sqrt(self.retries + 1) < share * self.firsts

    def keep(self, share: float) -> None:
        """Forget all but this share."""
        self.firsts *= share
        self.retries *= share
        self.others *= share
        self.refused_firsts *= share
        self.refused_retries *= share

    def add(self, more: "Counts") -> None:
        self.firsts += more.firsts
        self.retries += more.retries
        self.others += more.others
        self.refused_firsts += more.refused_firsts
        self.refused_retries += more.refused_retries


@dataclass(slots=True)
class ThrottleEvidence:
    """Count into `new`, and `fold` it in from time to time. Times are monotonic seconds."""

    new: Counts = field(default_factory=Counts)
    lately: Counts = field(default_factory=Counts)
    """The last two hundred posts or four seconds; it begins anew after `forget`."""
    refuses_all: bool = False
    """Whether nothing passes, references included."""
    _seconds: float = 0.0
    """What `lately` covers, without pauses."""
    _recently: Counts = field(default_factory=Counts)
    """The last second, whatever was forgotten."""
    _lasting: Counts = field(default_factory=Counts)
    """The last ten seconds, whatever was forgotten."""
    _heard_at: float = -math.inf
    _asking_since: float = math.inf

    def fold(self, elapsed: float, now: float, patience: float) -> Counts:
        """What is new, `elapsed` seconds after the last time. `patience` multiplies the posts that are remembered."""
        new, lately = self.new, self.lately
        self.new = Counts()
        told = new.firsts + new.retries + _WEIGHT_OF_REFUSED * new.refused
        if told or new.others:
            self._heard_at = now
        kept = min(math.exp(-elapsed / _MEMORY_SECONDS), max(0.0, 1 - told / (_MEMORY_POSTS * patience)))
        lately.keep(kept)
        lately.add(new)
        self._seconds = self._seconds * kept + (elapsed if now - self._heard_at < _PAUSE_SECONDS else 0.0)
        self._recently.keep(math.exp(-elapsed / _RECENT_SECONDS))
        self._recently.add(new)
        self._lasting.keep(math.exp(-elapsed / _LASTING_SECONDS))
        self._lasting.add(new)
        self._look_for_total_refusal(now)
        return new

    def forget(self) -> None:
        self.lately = Counts()
        self._seconds = 0.0

    @property
    def passed_per_second(self) -> float:
        return self.lately.passed / self._seconds if self._seconds else 0.0

    @property
    def wants_reference(self) -> bool:
        """Whether posts were refused and hardly any has passed lately."""
        return self._recently.refused >= 0.5 and self._recently.firsts < _SOME  # noqa: PLR2004 - half of one: it fades

    @property
    def throttles(self) -> bool:
        if self.refuses_all:
            return True
        return self._lasting.retries >= _LEAST_CONFIRMED and self._lasting.account_share(_DEVIATIONS) > _NOTABLE_SHARE

    def share(self) -> tuple[float, float] | None:
        """What the account refuses: a lower bound and the likely share. None while there is too little to tell."""
        if self.refuses_all:
            share = self._recently.refused_share()
            return share, share
        if self.lately.retries >= _LEAST_CONFIRMED:
            return self.lately.account_share(_DEVIATIONS), self.lately.account_share()
        if self.lately.firsts >= _LEAST_FIRSTS:
            return 0.0, self.lately.account_share()
        return None

    def _look_for_total_refusal(self, now: float) -> None:
        if not self.wants_reference:
            self._asking_since = math.inf
            self.refuses_all = False
            return
        self._asking_since = min(self._asking_since, now)
        asked = now - self._asking_since >= _ASKING_SECONDS
        if asked and self._recently.firsts < _HARDLY_ANY <= self._recently.refused_firsts:
            self.refuses_all = True
