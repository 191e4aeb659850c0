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


_STRETCH_SECONDS: Final = 1.0
_FAILING_SECONDS: Final = 3.0
_SUCCESS_SPEAKS_SECONDS: Final = 60.0
"""Longer than one client that fails is tried."""
_FAILURE_MEMORY_SECONDS: Final = 10.0
"""The longest that a failing delivery waits, and a little: after that nothing fails any more."""


@dataclass(slots=True)
class EndpointHealth:
    """Times are monotonic seconds; -inf where there was none."""

    last_success_at: float = float("-inf")
    all_gone_at: float = float("-inf")
    """When the latest answers were last nothing but 410."""
    _gone_in_a_row: int = 0
    _fresh_failures: int = 0
    _failing_since: float | None = None
    _last_failure_at: float = float("-inf")
    _failure: str = ""

    def succeeded(self, now: float) -> None:
        self.last_success_at = now
        self._gone_in_a_row = 0
        self.answered()

    def gone(self, now: float) -> None:
        """One 410."""
        self._gone_in_a_row += 1
        if self._gone_in_a_row >= FAILURES_BEFORE_HOLDING:
            self.all_gone_at = now

    def answered(self) -> None:
        """With something that an API says to one connection: 410, 413 or 429. It is there, and knows us."""
        self._fresh_failures = 0
        self._failing_since = None

    def failed(self, failure: str, now: float, *, first_attempt: bool) -> None:
        """`failure` says what an operator should read: a status or the kind of error."""
        self._failure = failure
        self._last_failure_at = now
        if self._failing_since is None:
            self._failing_since = now
        if first_attempt:
            self._fresh_failures += 1

    @property
    def holding(self) -> bool:
        """It fails for all: probe, start nothing else."""
        return self._fresh_failures >= FAILURES_BEFORE_HOLDING

    def fails_since(self, since: float, now: float) -> float:
        """For how many seconds, of those from `since` on, posts have failed and none has succeeded."""
        fails = now - self._last_failure_at < _FAILURE_MEMORY_SECONDS
        return now - max(since, self.last_success_at) if fails else 0.0

    def trouble(self, now: float) -> str | None:
        """Does nothing get through? Then what an operator should read.

        One client that fails, soon after a success, is no trouble of the endpoint's.
        """
        since = now if self._failing_since is None else self._failing_since
        fails = now - since > _FAILING_SECONDS and now - self._last_failure_at < _FAILURE_MEMORY_SECONDS
        all_fail = self._fresh_failures > 1 or now - self.last_success_at > _SUCCESS_SPEAKS_SECONDS
        return f"every post fails: {self._failure}" if (fails and all_fail) or self.holding else None

    def others_succeed(self, first_tried_at: float) -> bool:
        """May a failure count against a delivery that was first tried then?"""
        return self.last_success_at >= first_tried_at and not self.holding

    def proves_gone(self, now: float) -> bool:
        """Is a 410 proof? Only of an endpoint that has delivered something lately."""
        return now - self.last_success_at <= SUCCESS_MEMORY_SECONDS

    def proves_since(self, gone_at: float) -> bool:
        """Did a success follow so closely that this 410 was not one of a stretch in which all answered 410?"""
        return self.last_success_at >= gone_at and not self.all_were_gone(gone_at)

    def all_were_gone(self, gone_at: float) -> bool:
        """Is this 410 one of a stretch in which all answered 410?"""
        return gone_at <= self.all_gone_at + _STRETCH_SECONDS
