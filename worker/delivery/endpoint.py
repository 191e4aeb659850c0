"""Is it this one connection, or does the endpoint fail for all? Pure: decided from the order of answers alone.

A 403 for one connection among many is that connection's; a 403 for every connection is a credential, a policy or a
wrong address, and giving deliveries up for it would dead-letter the whole queue. Two things must hold before a failure
counts against its delivery: another post has succeeded since that delivery was first tried, and the latest first
attempts have not all failed.
"""

from dataclasses import dataclass
from typing import Final

FAILURES_BEFORE_HOLDING: Final = 20
"""First attempts on different connections that fail in a row, without a success, before the engine only probes."""
SUCCESS_MEMORY_SECONDS: Final = 600.0
"""410 for everything, with no success for this long, is a wrong endpoint and not an empty world."""


@dataclass(slots=True)
class EndpointHealth:
    """Times are monotonic seconds; -inf where there was none."""

    last_success_at: float = float("-inf")
    fresh_failures: int = 0
    failing_since: float | None = None
    failure: str = ""

    def succeeded(self, now: float) -> None:
        self.last_success_at = now
        self.fresh_failures = 0
        self.failing_since = None

    def failed(self, failure: str, now: float, *, first_attempt: bool) -> None:
        """`failure` says what an operator should read: a status or the kind of error."""
        self.failure = failure
        if self.failing_since is None:
            self.failing_since = now
        if first_attempt:
            self.fresh_failures += 1

    @property
    def holding(self) -> bool:
        """It fails for all: probe, start nothing else."""
        return self.fresh_failures >= FAILURES_BEFORE_HOLDING

    def others_succeed(self, first_tried_at: float) -> bool:
        """May a failure count against a delivery that was first tried then?"""
        return self.last_success_at >= first_tried_at and not self.holding

    def proves_gone(self, now: float) -> bool:
        """Is a 410 proof? Only of an endpoint that has delivered something lately."""
        return now - self.last_success_at <= SUCCESS_MEMORY_SECONDS
