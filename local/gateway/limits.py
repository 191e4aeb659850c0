"""The limits of a WebSocket API, and the two that need arithmetic: the account's token bucket and answer times.

Pure: clocks and randomness are passed in, durations are monotonic seconds.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_POST_BYTES: Final = 131_072
"""`@connections` refuses a larger body with 413."""
MIN_SEND_BUFFER_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the emulated API allows. The defaults are AWS's where AWS documents one; `None` switches a throttle off.

    `send_buffer_bytes` bounds what waits for one client that does not read: a post that would exceed it is a 429 for
    that client alone. AWS does not document its size. The kernel's own buffers hold some more on top of it.
    Pings count as activity, which AWS does not document either. `messages_at_once` bounds how many messages of one
    client are handled at the same time; AWS promises no order.
    `latency_seconds` is what every `@connections` answer takes at least: a number, or a range to choose from evenly.
    """

    message_bytes: int = 131_072
    frame_bytes: int = 32_768
    idle_seconds: float = 600.0
    lifetime_seconds: float = 7_200.0
    integration_timeout_seconds: float = 29.0
    close_seconds: float = 5.0
    send_buffer_bytes: int = 262_144
    messages_at_once: int = 4
    requests_per_second: float | None = 10_000.0
    request_burst: int = 5_000
    latency_seconds: float | tuple[float, float] = 0.0

    def __post_init__(self) -> None:
        if self.send_buffer_bytes < MIN_SEND_BUFFER_BYTES:
            raise ValueError(f"send_buffer_bytes must be at least {MIN_SEND_BUFFER_BYTES}")
        if self.messages_at_once < 1:
            raise ValueError("messages_at_once must be at least 1")

    def latency(self, rng: random.Random) -> float:
        """How long one answer takes, in seconds."""
        if isinstance(self.latency_seconds, tuple):
            return rng.uniform(*self.latency_seconds)
        return self.latency_seconds

    def token_bucket(self, clock: Callable[[], float]) -> "TokenBucket | None":
        if self.requests_per_second is None:
            return None
        return TokenBucket(self.requests_per_second, self.request_burst, clock)


class TokenBucket:
    """Admits `rate` calls a second in the long run and `burst` at once. It starts full.

    >>> bucket = TokenBucket(rate=10, burst=1, clock=lambda: 0.0)
    >>> bucket.take(), bucket.take()
    (True, False)
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("rate must be positive and burst at least 1")
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = self._burst
        self._filled_at = clock()

    def take(self) -> bool:
        """Whether there was a token. Refused calls cost nothing."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
