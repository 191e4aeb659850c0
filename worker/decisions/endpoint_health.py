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
_FAILURE_MEMORY_SECONDS: Final = 10.0
"""The longest that a failing delivery waits, and a little: after that nothing fails any more."""


@dataclass(slots=True)
class EndpointHealth:
    """Times are monotonic seconds; -inf where there was none."""

    last_success_at: float = float("-inf")
    proved_at: float = float("-inf")
    """When a post to a made-up connection last got its 410: address, credentials and permission are right."""
    last_gone_at: float = float("-inf")
    """When a post was last answered with 410."""
    all_gone_at: float = float("-inf")
    """When the latest answers were last nothing but 410."""
    _gone_in_a_row: int = 0
    _gone_since: float = float("-inf")
    _fresh_failures: int = 0
    _failing_since: float | None = None
    _last_failure_at: float = float("-inf")
    _failure: str = ""
    _only_rejected: bool = True
    """Whether what has failed since the last good response was rejected by status, such as 403 or 400."""

    def succeeded(self, now: float) -> None:
        # What came at one moment came in no order: 410s that began at this very moment are no stretch before it.
        if self._gone_in_a_row >= FAILURES_BEFORE_HOLDING and self._gone_since < now:
            self.all_gone_at = self.last_gone_at
        self.last_success_at = now
        self._gone_in_a_row = 0
        self.answered()

    def gone(self, now: float) -> None:
        """One 410."""
        if not self._gone_in_a_row:
            self._gone_since = now
        self.last_gone_at = now
        self._gone_in_a_row += 1
        if self._gone_in_a_row >= FAILURES_BEFORE_HOLDING and self._gone_since < now:
            self.all_gone_at = now

    def answered(self) -> None:
        """With something that an API says to one connection: 410, 413 or 429. It is there, and knows us."""
        self._fresh_failures = 0
        self._failing_since = None

    def proved(self, now: float) -> None:
        """A post to a made-up connection was answered with 410: what is rejected is rejected for its own sake.

        It says less about server errors: those of several connections may be of the service behind the endpoint.
        """
        self.proved_at = now
        if self._only_rejected or self._fresh_failures <= 1:
            self.answered()

    @property
    def wants_proof(self) -> bool:
        """Whether posts fail and no response since then has said that others do not."""
        return self._failing_since is not None

    def failed(self, failure: str, now: float, *, first_attempt: bool, rejected: bool = False) -> None:
        """`failure` says what an operator should read: a status or the kind of error. `rejected`: by a status."""
        self._failure = failure
        self._last_failure_at = now
        self._only_rejected = rejected and (self._only_rejected or self._failing_since is None)
        if self._failing_since is None:
            self._failing_since = now
        if first_attempt:
            self._fresh_failures += 1

    @property
    def holding(self) -> bool:
        """It fails for all: probe, start nothing else."""
        return self._fresh_failures >= FAILURES_BEFORE_HOLDING

    def problem(self, now: float) -> str | None:
        """Does nothing get through? Then what an operator should read.

        One client that fails is no trouble of the endpoint's; a post to a made-up connection that fails as well is.
        """
        since = now if self._failing_since is None else self._failing_since
        fails = now - since > _FAILING_SECONDS and now - self._last_failure_at < _FAILURE_MEMORY_SECONDS
        all_fail = self._fresh_failures > 1 and now - self.proved_at > _FAILING_SECONDS
        return f"every post fails: {self._failure}" if (fails and all_fail) or self.holding else None

    def others_succeed(self, first_tried_at: float, *, rejected: bool) -> bool:
        """Whether a failure counts against a delivery that was first tried then. `rejected`: by a status."""
        if self.holding:
            return False
        is_proved = self.proved_at >= first_tried_at and (rejected or self._fresh_failures <= 1)
        return is_proved or self.last_success_at >= first_tried_at

    def proves_gone(self, now: float) -> bool:
        """Is a 410 proof? Only of an endpoint that has delivered something lately."""
        return now - self.last_success_at <= SUCCESS_MEMORY_SECONDS

    def proves_since(self, gone_at: float) -> bool:
        """Did a success follow so closely that this 410 was not one of a stretch in which all answered 410?"""
        return self.last_success_at >= gone_at and not self.all_were_gone(gone_at)

    def all_were_gone(self, gone_at: float) -> bool:
        """Is this 410 one of a stretch in which all answered 410?"""
        return gone_at <= self.all_gone_at + _STRETCH_SECONDS
