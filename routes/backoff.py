"""How often, and how long, something that is contended is tried."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Tries with full jitter between them, bounded by a number and by a deadline.

    It is for what the SDK does not repeat: conflicts of transactions and unprocessed items. Throttled requests,
    timeouts and broken connections are the SDK's to repeat, so that no failure is multiplied by two layers.
    """

    tries: int = 10
    deadline_seconds: float = 15.0
    first_delay_seconds: float = 0.05
    longest_delay_seconds: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def start(self) -> Iterator[None]:
        """One value a try, the first at once. The deadline counts from this call; no wait begins that would pass it."""
        return self._tries(self.clock() + self.deadline_seconds)

    def _tries(self, deadline: float) -> Iterator[None]:
        yield
        for exponent in range(self.tries - 1):
            delay = self.random() * min(self.longest_delay_seconds, self.first_delay_seconds * 2**exponent)
            if self.clock() + delay >= deadline:
                return
            self.sleep(delay)
            yield
