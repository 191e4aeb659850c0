"""The client's times and limits, and how they are spread by randomness. Pure: random numbers are passed in."""

import dataclasses
from typing import Final

LIFETIME_SECONDS: Final = 2 * 3600.0
"""API Gateway closes each connection after this time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Everything is a positive number; times are seconds."""

    gap_seconds: float = 10
    """How long a missing offset is waited for before the history is read; up to a quarter more at random."""
    ping_seconds: float = 300
    """After this time without a request a ping is sent; up to a fifth earlier at random. API Gateway: 10 minutes."""
    response_seconds: float = 30
    """A request without a response for this time ends the connection. A route takes at most 29 s."""
    open_seconds: float = 30
    """How long one attempt to connect, and the token's callable, may take."""
    first_connection_seconds: float = 30
    """How long `connect` retries before it raises an error. Later the client retries for ever."""
    backoff_seconds: float = 1
    max_backoff_seconds: float = 30
    """Before the n-th attempt in a row the client waits from 0 to `backoff_seconds` · 2ⁿ, at most this, at random."""
    stable_seconds: float = 10
    """A connection that lasted this long was a good one: the next attempt counts as the first."""
    min_lifetime_seconds: float = 30
    """However short a token's remaining life seems (clocks differ), connections are renewed no more often."""
    overlap_seconds: float = 2
    """How long the old connection stays open after a renewal, for what is on its way to it."""
    max_buffered: int = 1_000
    """Events of one room that wait for the program. From here on the socket is not read, except for responses."""
    max_held: int = 1_000
    """Messages of one room that wait for earlier ones."""
    max_ids: int = 1_000
    """The latest ids of a room among which repeats are found."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}: must be more than 0")

    def gap_delay(self, chance: float) -> float:
        """`chance` is a random number from 0 to 1, here and below."""
        return self.gap_seconds * (1 + chance / 4)

    def ping_delay(self, chance: float) -> float:
        return self.ping_seconds * (1 - chance / 5)

    def backoff(self, failures: int, chance: float) -> float:
        """Full jitter; `failures` is the number of attempts that have failed in a row, from 0."""
        return chance * min(self.max_backoff_seconds, self.backoff_seconds * 2.0 ** min(failures, 30))

    def renewal_delay(self, lifetime_seconds: float, chance: float) -> float:
        """After which part of a connection's life the next one is opened: 70% to 90%."""
        lifetime = max(self.min_lifetime_seconds, min(lifetime_seconds, LIFETIME_SECONDS))
        return lifetime * (0.7 + 0.2 * chance)
