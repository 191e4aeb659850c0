"""Retries of contended calls: bounded in number and time, with jittered delays."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gatecast.rooms.errors import Code, RequestRejected


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter, bounded by a number of attempts and by a deadline.

    It covers what the SDK does not retry: transaction conflicts and unprocessed items. The SDK retries throttled
    requests, timeouts and broken connections, so retries of two layers never multiply.
    """

    max_attempts: int = 10
    deadline_seconds: float = 15.0
    first_delay_seconds: float = 0.05
    max_delay_seconds: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def start(self, ends_at_seconds: float = math.inf) -> Iterator[None]:
        """Yields once per attempt, the first time without delay; waits before each further attempt.

        The deadline counts from this call, unless `ends_at_seconds` on the same clock is earlier. It stops instead of
        starting a wait that would pass the deadline.
        """
        return self._attempts(min(self.clock() + self.deadline_seconds, ends_at_seconds))

    def _attempts(self, deadline: float) -> Iterator[None]:
        yield
        for exponent in range(self.max_attempts - 1):
            delay = self.random() * min(self.max_delay_seconds, self.first_delay_seconds * 2**exponent)
            if self.clock() + delay >= deadline:
                return
            self.sleep(delay)
            yield


def busy() -> RequestRejected:
    """The rejection of a request whose calls are contended, or left undone, for longer than a client may wait."""
    return RequestRejected(Code.UNAVAILABLE, "busy: retry")
