"""How many deliveries of one broadcast ended in each outcome, and how many posts they took.

Those that were delivered are counted by their bodies, so that counting costs an ordinary delivery one addition.
"""

from worker.decisions.outcome import Outcome
from worker.decisions.receipts import Sums
from worker.delivery.bodies import Bodies


class OutcomeCounts:
    """The counts of one broadcast on this worker. `before` is what earlier workers have counted for its receipt.

    `totals` are this worker's deliveries by outcome. The engine adds those that were delivered.
    """

    def __init__(self, bodies: Bodies, totals: dict[Outcome, int], before: Sums) -> None:
        self.failed_posts = 0
        """Attempts that were not accepted."""
        self._bodies = bodies
        self._totals = totals
        self._before = before
        self._others = dict.fromkeys(Outcome, 0)
        """Of all outcomes but delivered."""
        self._excluded = dict.fromkeys(Outcome, 0)
        """Those of `_others` that were for members that the broadcast excludes."""

    def add(self, outcome: Outcome, deliveries: int = 1, *, excluded: int = 0) -> None:
        """Count deliveries with an outcome other than delivered; `excluded` of them were for excluded members."""
        self._others[outcome] += deliveries
        self._excluded[outcome] += excluded
        self._totals[outcome] += deliveries

    def not_delivered_yet(self) -> None:
        """Undo what the engine has counted for a request that succeeded but is not the last one of its delivery."""
        self._totals[Outcome.DELIVERED] -= 1

    @property
    def by_outcome(self) -> dict[Outcome, int]:
        """The deliveries that ended on this worker."""
        return {**self._others, Outcome.DELIVERED: self._bodies.delivered}

    @property
    def billed_units(self) -> int:
        """The units for which API Gateway bills what this worker has posted."""
        return self._bodies.billed_units

    @property
    def sums(self) -> Sums:
        """What became of members on all workers, for a receipt: without those that the broadcast excludes."""
        bodies = self._bodies
        here = {str(outcome): count - self._excluded[outcome] for outcome, count in self._others.items()}
        here["delivered"] = bodies.delivered - bodies.delivered_to_excluded
        posts = bodies.accepted_posts + self.failed_posts
        return self._before.plus(Sums(**here, posts=posts, billed_units=bodies.billed_units))
