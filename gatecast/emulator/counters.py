"""The emulator's counters, for tests: calls, response statuses, and calls in flight."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since the start, and current values.

    `posts`, `gets` and `deletes` are by response status; 0 counts calls without a complete response. `throttled` is by
    cause: "account" or "client". `connects` is by the status of the upgrade (101: accepted), `closes` by close code
    (1006 without a closing handshake). `routes` (invocations of handlers), `route_errors` and `mocks` (responses
    without one) are by route key, `faults` by kind.
    """

    posts: Counter[int] = field(default_factory=Counter)
    gets: Counter[int] = field(default_factory=Counter)
    deletes: Counter[int] = field(default_factory=Counter)
    throttled: Counter[str] = field(default_factory=Counter)
    connects: Counter[int] = field(default_factory=Counter)
    closes: Counter[int] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    route_errors: Counter[str] = field(default_factory=Counter)
    mocks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    responses_dropped: int = 0
    disconnects_lost: int = 0
    connections_open: int = 0
    calls_in_flight: int = 0
    calls_in_flight_peak: int = 0

    def call_started(self) -> None:
        self.calls_in_flight += 1
        self.calls_in_flight_peak = max(self.calls_in_flight_peak, self.calls_in_flight)

    def call_ended(self, method: str, status: int) -> None:
        self.calls_in_flight -= 1
        by_method = {"POST": self.posts, "GET": self.gets, "DELETE": self.deletes}.get(method)
        if by_method is not None:
            by_method[status] += 1

    def snapshot(self) -> dict[str, Any]:
        """A copy that JSON can represent: dicts and numbers, with strings as keys."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {
            name: {str(key): count for key, count in value.items()} if isinstance(value, Counter) else value
            for name, value in values
        }
