"""What a stand-in for `@connections` decides and remembers: who was reached, how often, when. Pure but for the clock.

A call passes the account's token bucket first, then the fault rules (those of the emulator). A connection that was
closed by DELETE, or that no test has made, is gone: 410. What nothing refuses is delivered. Deliveries are counted by
the data that was posted, so that several broadcasts can be told apart.
"""

from collections.abc import Callable
from http import HTTPStatus

import msgspec

from local.gateway.faults import Answer, Delay, Fault, Faults, Reset, Rule, Stall
from local.gateway.limits import TokenBucket
from tests.chaos.rooms import is_client

SLICE_SECONDS = 0.25
"""Answers are counted by slices of time, too."""


class Account(msgspec.Struct, frozen=True):
    """The quota of the account that everybody shares."""

    rate: float
    burst: int


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How the stand-in behaves from now on. `latency_seconds` is what every answer takes at least."""

    rules: tuple[Rule, ...] = ()
    seed: int = 0
    latency_seconds: float = 0.0
    account: Account | None = None


class Slice(msgspec.Struct):
    """What was answered within one slice of time. `at_seconds` is when it began, by the stand-in's clock."""

    at_seconds: float
    delivered: int = 0
    throttled: int = 0
    other: int = 0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the connection ids. Times are seconds of the stand-in's clock, None where nothing has happened."""

    posts: int
    delivered: int
    reached: int
    """Different connections, over all data."""
    in_flight: int
    most_in_flight: int
    first_post_at: float | None
    last_new_at: float | None
    """When a connection was reached for the first time, the last time that happened."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """By connection id, for one data."""

    delivered: dict[str, int]
    """Answered with 200, completely."""
    unanswered: dict[str, int]
    """It reached the client, but the answer did not arrive: whoever posted had to post again."""
    first_at: dict[str, float]
    """When it was delivered first, in seconds of the stand-in's clock."""


class Client(msgspec.Struct):
    """What became of a connection that was refused or closed at least once. Times are the stand-in's clock."""

    throttled: int = 0
    """Posts to it that were answered with 429."""
    first_throttled_at: float | None = None
    last_throttled_at: float | None = None
    deletions: int = 0
    """All DELETE calls, whatever the response."""
    closed_at: float | None = None
    """When a DELETE closed it, with a response of 204."""
    posts_after_close: int = 0


class Counting:
    """Asked for every call, once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._faults = Faults()
        self._bucket: TokenBucket | None = None
        self._has_rules = False
        self.latency_seconds = 0.0
        self.in_flight = 0
        self.most_in_flight = 0
        self.slices: list[Slice] = []
        self._posts = 0
        self._delivered: dict[bytes, dict[str, int]] = {}
        self._unanswered: dict[bytes, dict[str, int]] = {}
        self._first_at: dict[bytes, dict[str, float]] = {}
        self._clients: dict[str, Client] = {}
        self._closed: set[str] = set()
        self._reached: set[str] = set()
        self._first_post_at: float | None = None
        self._last_new_at: float | None = None

    def behave(self, behaviour: Behaviour) -> None:
        self._faults = Faults(behaviour.rules, seed=behaviour.seed)
        self._has_rules = bool(behaviour.rules)
        self.latency_seconds = behaviour.latency_seconds
        account = behaviour.account
        self._bucket = TokenBucket(account.rate, account.burst, self._clock) if account else None

    def post(self, connection_id: str, data: bytes) -> Fault | None:
        """The fault that this post suffers; None if it is delivered."""
        now = self._clock()
        self._posts += 1
        if self._first_post_at is None:
            self._first_post_at = now
        moment = self._slice(now)
        fault = self._fault("POST", connection_id)
        if fault is None or isinstance(fault, Delay) or (isinstance(fault, Answer) and fault.status == HTTPStatus.OK):
            moment.delivered += 1
            self._reach(self._delivered, connection_id, data, now)
            self._first_at.setdefault(data, {}).setdefault(connection_id, now)
            return fault
        throttled = isinstance(fault, Answer) and fault.status == HTTPStatus.TOO_MANY_REQUESTS
        moment.throttled += throttled
        moment.other += not throttled
        if throttled and fault is not THROTTLED_ACCOUNT:
            self._throttle(connection_id, now)
        if fault is GONE and connection_id in self._closed:
            self._client(connection_id).posts_after_close += 1
        if isinstance(fault, Answer | Reset | Stall) and fault.delivers:
            self._reach(self._unanswered, connection_id, data, now)
        return fault

    def delete(self, connection_id: str) -> Fault | None:
        """The fault that this DELETE suffers; None if it closes the connection."""
        fault = self._fault("DELETE", connection_id)
        client = self._client(connection_id)
        client.deletions += 1
        if fault is None or isinstance(fault, Delay):
            client.closed_at = self._clock()
            self._closed.add(connection_id)
        return fault

    def get(self, connection_id: str) -> Fault | None:
        """The fault that this GET suffers; None if the connection exists."""
        return self._fault("GET", connection_id)

    def _fault(self, method: str, connection_id: str) -> Fault | None:
        if self._bucket is not None and not self._bucket.take():
            return THROTTLED_ACCOUNT
        if connection_id in self._closed:
            return GONE
        fault = self._faults.strike(method, connection_id) if self._has_rules else None
        if fault is None and not is_client(connection_id):
            return GONE
        return fault

    def _client(self, connection_id: str) -> Client:
        return self._clients.setdefault(connection_id, Client())

    def _throttle(self, connection_id: str, now: float) -> None:
        client = self._client(connection_id)
        client.throttled += 1
        client.last_throttled_at = now
        if client.first_throttled_at is None:
            client.first_throttled_at = now

    def _slice(self, now: float) -> Slice:
        if not self.slices or now - self.slices[-1].at_seconds >= SLICE_SECONDS:
            self.slices.append(Slice(now))
        return self.slices[-1]

    def _reach(self, counts: dict[bytes, dict[str, int]], connection_id: str, data: bytes, now: float) -> None:
        by_id = counts.setdefault(data, {})
        by_id[connection_id] = by_id.get(connection_id, 0) + 1
        if connection_id not in self._reached:
            self._reached.add(connection_id)
            self._last_new_at = now

    def counts(self, data: bytes) -> Counts:
        return Counts(
            delivered=self._delivered.get(data, {}),
            unanswered=self._unanswered.get(data, {}),
            first_at=self._first_at.get(data, {}),
        )

    def counts_by_data(self, prefix: bytes) -> dict[str, Counts]:
        """Of all data that begins like this."""
        found = [data for data in self._delivered | self._unanswered if data.startswith(prefix)]
        return {data.decode(): self.counts(data) for data in found}

    def clients(self) -> dict[str, Client]:
        """By connection id."""
        return self._clients

    def summary(self) -> Summary:
        return Summary(
            posts=self._posts,
            delivered=sum(moment.delivered for moment in self.slices),
            reached=len(self._reached),
            in_flight=self.in_flight,
            most_in_flight=self.most_in_flight,
            first_post_at=self._first_post_at,
            last_new_at=self._last_new_at,
        )


THROTTLED_ACCOUNT = Answer(status=429, error_type="LimitExceededException", body='{"message": "Limit exceeded"}')
GONE = Answer(status=410, error_type="GoneException", body='{"message": null}')
