"""Where a pool opens its next connections, how many at once, and how long it waits after failures."""

import math
import random
from collections.abc import Sequence
from typing import Final

from worker.decisions.backoff import backoff_seconds
from worker.transport.connection import SocketAddress

OPENING_AT_ONCE: Final = 8
_LONGEST_BACKOFF_SECONDS: Final = 5.0


class Openings:
    """`addresses` are what the name resolves to; they are taken in turn."""

    def __init__(self) -> None:
        self.addresses: Sequence[SocketAddress] = ()
        self.failed_in_a_row = 0
        self.failed_at = float("-inf")
        self.failure = ""
        """Why the latest that failed did, in a few words."""
        self.attempts = 0
        self._again_at = float("-inf")

    def allowed(self, under_way: int, now: float) -> int:
        """How many more may be opened now, beside those under way."""
        if not self.addresses or now < self._again_at:
            return 0
        return (1 if self.failed_in_a_row else OPENING_AT_ONCE) - under_way

    def next_target(self, under_way: Sequence[SocketAddress]) -> SocketAddress:
        """The next address that has not its share of the openings under way: where nobody answers, they hang."""
        share = math.ceil(OPENING_AT_ONCE / len(self.addresses))
        for _ in self.addresses:
            target = self.addresses[self.attempts % len(self.addresses)]
            self.attempts += 1
            if under_way.count(target) < share:
                break
        return target

    def succeeded(self, now: float) -> None:
        self.failed_in_a_row = 0
        self._again_at = now

    def failed(self, reason: str, began_at: float, now: float) -> None:
        self.failed_at = now
        self.failure = reason
        # What was begun before the last success or the last failure that counted tells nothing new: of several openings
        # that fail together one counts, and an address that always fails does not hold up those that answer.
        if began_at >= self._again_at:
            self.failed_in_a_row += 1
            self._again_at = now + backoff_seconds(
                self.failed_in_a_row, 0.5 + random.random() / 2, longest=_LONGEST_BACKOFF_SECONDS
            )
