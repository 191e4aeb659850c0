"""To which addresses a pool opens connections, how many at a time, and the back-off after failures."""

import math
import random
from collections.abc import Sequence
from typing import Final

from worker.decisions.backoff import backoff_seconds
from worker.transport.connection import SocketAddress

MAX_OPENING: Final = 8
_MAX_BACKOFF_SECONDS: Final = 5.0


class Openings:
    """The state of a pool's openings. `addresses`, which the name resolves to, are used in turn."""

    def __init__(self) -> None:
        self.addresses: Sequence[SocketAddress] = ()
        self.failed_in_a_row = 0
        self.failed_at = float("-inf")
        self.failure = ""
        """The reason of the latest failure, in a few words."""
        self.attempts = 0
        self._retry_at = float("-inf")

    def allowed(self, in_progress: int, now: float) -> int:
        """How many more connections may be opened now, beside the `in_progress` ones."""
        if not self.addresses or now < self._retry_at:
            return 0
        return (1 if self.failed_in_a_row else MAX_OPENING) - in_progress

    def next_target(self, in_progress: Sequence[SocketAddress]) -> SocketAddress:
        """The next address below its share of the openings in progress, which an unresponsive one keeps for long."""
        share = math.ceil(MAX_OPENING / len(self.addresses))
        for _ in self.addresses:
            target = self.addresses[self.attempts % len(self.addresses)]
            self.attempts += 1
            if in_progress.count(target) < share:
                break
        return target

    def succeeded(self, now: float) -> None:
        self.failed_in_a_row = 0
        self._retry_at = now

    def failed(self, reason: str, began_at: float, now: float) -> None:
        self.failed_at = now
        self.failure = reason
        # An opening that began before the last success or counted failure is no new evidence: of several that fail
        # together one counts, and an address that always fails does not delay openings to those that work.
        if began_at >= self._retry_at:
            self.failed_in_a_row += 1
            self._retry_at = now + backoff_seconds(
                self.failed_in_a_row, 0.5 + random.random() / 2, max_seconds=_MAX_BACKOFF_SECONDS
            )
