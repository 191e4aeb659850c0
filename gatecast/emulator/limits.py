"""The limits of a WebSocket API, with the account's token bucket and the response latency.

Pure: clocks and randomness are passed in, durations are monotonic seconds.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_POST_BYTES: Final = 131_072
"""`@connections` rejects a larger body with 413."""
MIN_SEND_BUFFER_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The emulated API's limits. The defaults are AWS's documented ones, if any; `None` disables a throttle.

    `send_buffer_bytes` bounds the data buffered for one client that does not read: a post that would exceed it gets a
    429, for that client alone. AWS does not document its size. The kernel's own buffers hold additional data.
    Control frames do not count as activity, which AWS does not document either: `control_frames_are_activity` makes
    them count. `max_concurrent_messages` bounds how many messages of
    one client are handled concurrently; AWS guarantees no order.
    `latency_seconds` is the minimum latency of every `@connections` response: a number, or the bounds of a uniform
    distribution.
    """

    message_bytes: int = 131_072
    frame_bytes: int = 32_768
    url_bytes: int = 4_096
    idle_seconds: float = 600.0
    control_frames_are_activity: bool = False
    lifetime_seconds: float = 7_200.0
    integration_timeout_seconds: float = 29.0
    close_seconds: float = 5.0
    send_buffer_bytes: int = 262_144
    max_concurrent_messages: int = 4
    requests_per_second: float | None = 10_000.0
    request_burst: int = 5_000
    latency_seconds: float | tuple[float, float] = 0.0

    def __post_init__(self) -> None:
        if self.send_buffer_bytes < MIN_SEND_BUFFER_BYTES:
            raise ValueError(f"send_buffer_bytes must be at least {MIN_SEND_BUFFER_BYTES}")
        if self.max_concurrent_messages < 1:
            raise ValueError("max_concurrent_messages must be at least 1")

    def latency(self, rng: random.Random) -> float:
        """The latency of one response, in seconds."""
        if isinstance(self.latency_seconds, tuple):
            return rng.uniform(*self.latency_seconds)
        return self.latency_seconds

    def token_bucket(self, clock: Callable[[], float]) -> "TokenBucket | None":
        if self.requests_per_second is None:
            return None
        return TokenBucket(self.requests_per_second, self.request_burst, clock)


class TokenBucket:
    """Admits `rate` calls per second on average and bursts of `burst` calls. It starts full.

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
        """Takes a token. Whether there was one; rejected calls cost nothing."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
