"""Whether a failure concerns one connection or the whole endpoint. Pure: decided from the order of responses alone.

A 403 for one connection among many concerns that connection; a 403 for every connection means a wrong credential,
policy or address, and giving up deliveries for it would dead-letter the whole queue. A failure counts against its
delivery only on two conditions: another post has succeeded since that delivery's first attempt, and the latest first
attempts have not all failed.
"""

from dataclasses import dataclass
from typing import Final

FAILURES_BEFORE_HOLDING: Final = 20
"""First attempts on different connections that fail in a row before the engine only probes."""
SUCCESS_MEMORY_SECONDS: Final = 600.0
"""If all posts return 410 and none has succeeded for this long, the endpoint is wrong, not every connection gone."""
_STREAK_GRACE_SECONDS: Final = 1.0
_FAILING_SECONDS: Final = 3.0
_FAILURE_MEMORY_SECONDS: Final = 10.0
"""A little more than the longest wait between retries: without a failure for this long, nothing fails any more."""


@dataclass(slots=True)
class EndpointHealth:
    """Successes and failures of all posts. Times are monotonic seconds; -inf if there was none."""

    last_success_at: float = float("-inf")
    proved_at: float = float("-inf")
    """When a reference post last returned 410, which proves that address, credentials and permission are right."""
    last_gone_at: float = float("-inf")
    """When a post last returned 410."""
    all_gone_at: float = float("-inf")
    """When the latest responses were last all 410."""
    _gone_in_a_row: int = 0
    _gone_since: float = float("-inf")
    _failed_first_attempts: int = 0
    _failing_since: float | None = None
    _last_failure_at: float = float("-inf")
    _failure: object = ""
    _only_rejected: bool = True
    """Whether all failures since the last good response were rejections by status, such as 403 or 400."""

    def succeeded(self, now: float) -> None:
        # Responses that arrive at the same moment have no order: a streak of 410 that began just now is not earlier.
        if self._gone_in_a_row >= FAILURES_BEFORE_HOLDING and self._gone_since < now:
            self.all_gone_at = self.last_gone_at
        self.last_success_at = now
        self._gone_in_a_row = 0
        self.responded()

    def gone(self, now: float) -> None:
        """Record a 410."""
        if not self._gone_in_a_row:
            self._gone_since = now
        self.last_gone_at = now
        self._gone_in_a_row += 1
        if self._gone_in_a_row >= FAILURES_BEFORE_HOLDING and self._gone_since < now:
            self.all_gone_at = now

    def responded(self) -> None:
        """Record a response about one connection (410, 413 or 429): the API responds and accepts our credentials."""
        self._failed_first_attempts = 0
        self._failing_since = None

    def proved(self, now: float) -> None:
        """Record a reference post that returned 410: rejections concern single connections.

        It proves less about server errors: those of several connections may come from the service behind the endpoint.
        """
        self.proved_at = now
        if self._only_rejected or self._failed_first_attempts <= 1:
            self.responded()

    @property
    def needs_proof(self) -> bool:
        """Whether posts fail and no response since then has shown that others succeed."""
        return self._failing_since is not None

    def failed(self, failure: object, now: float, *, first_attempt: bool, rejected: bool = False) -> None:
        """Record a failure. `rejected`: by a status.

        `failure` is for operators: a text, or a FailedResponse, which is converted to text only when it is reported.
        """
        self._failure = failure
        self._last_failure_at = now
        self._only_rejected = rejected and (self._only_rejected or self._failing_since is None)
        if self._failing_since is None:
            self._failing_since = now
        if first_attempt:
            self._failed_first_attempts += 1

    @property
    def holding(self) -> bool:
        """Whether the endpoint fails for all, so that the engine only probes."""
        return self._failed_first_attempts >= FAILURES_BEFORE_HOLDING

    def problem(self, now: float) -> str | None:
        """A description for operators if every post fails; otherwise None.

        One failing client is no problem of the endpoint, but a reference post that fails as well is.
        """
        since = now if self._failing_since is None else self._failing_since
        fails = now - since > _FAILING_SECONDS and now - self._last_failure_at < _FAILURE_MEMORY_SECONDS
        all_fail = self._failed_first_attempts > 1 and now - self.proved_at > _FAILING_SECONDS
        return f"every post fails: {self._failure}" if (fails and all_fail) or self.holding else None

    def others_succeed(self, first_attempt_at: float, *, rejected: bool) -> bool:
        """Whether a failure counts against a delivery with this time of its first attempt. `rejected`: by a status."""
        if self.holding:
            return False
        is_proved = self.proved_at >= first_attempt_at and (rejected or self._failed_first_attempts <= 1)
        return is_proved or self.last_success_at >= first_attempt_at

    def recently_delivered(self, now: float) -> bool:
        """Whether the endpoint has delivered something within SUCCESS_MEMORY_SECONDS, so that a 410 is proof."""
        return now - self.last_success_at <= SUCCESS_MEMORY_SECONDS

    def succeeded_after(self, gone_at: float) -> bool:
        """Whether a success followed this 410, and it was not part of a streak in which all posts returned 410."""
        return self.last_success_at >= gone_at and not self.in_gone_streak(gone_at)

    def in_gone_streak(self, gone_at: float) -> bool:
        """Whether this 410 is part of a streak in which all posts returned 410."""
        return gone_at <= self.all_gone_at + _STREAK_GRACE_SECONDS
