"""State and decisions of a fake `@connections` endpoint: who was reached, how often, when. Pure except for its clock.

A call takes a token from the account's bucket first, then passes the fault rules (those of the emulator). A connection
that was closed by DELETE, or that no test has created, is gone (410). A post that no rule rejects is delivered.
Deliveries are counted per posted data, so that tests can tell broadcasts apart.
"""

from collections.abc import Callable
from http import HTTPStatus

import msgspec

from gatecast.emulator.faults import CannedResponse, Delay, Fault, Faults, Reset, Rule, Stall
from gatecast.emulator.limits import TokenBucket
from tests.members import is_client

SLICE_SECONDS = 0.25
"""Responses are also counted per slice of time."""


class Account(msgspec.Struct, frozen=True):
    """The account's quota, shared by all callers. `rate` is in calls per second."""

    rate: float
    burst: int


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How the endpoint behaves from now on. `latency_seconds` is the minimum latency of every response."""

    rules: tuple[Rule, ...] = ()
    seed: int = 0
    latency_seconds: float = 0.0
    account: Account | None = None


class Slice(msgspec.Struct):
    """Responses within one slice of time. `at_seconds` is the start of the slice, by the endpoint's clock."""

    at_seconds: float
    delivered: int = 0
    throttled: int = 0
    other: int = 0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Totals over all connections and data. Times are seconds of the endpoint's clock, None if it has not happened."""

    posts: int
    delivered: int
    reached: int
    """Number of distinct connections, over all data."""
    in_flight: int
    max_in_flight: int
    first_posted_at: float | None
    last_first_delivery_at: float | None
    """When the most recently reached connection received its first delivery."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries of one data, by connection id."""

    delivered: dict[str, int]
    """Posts with a complete 200 response."""
    unacknowledged: dict[str, int]
    """Posts that reached the client but whose response was lost, so that the caller had to retry."""
    first_delivered_at: dict[str, float]
    """When it was first delivered, in seconds of the endpoint's clock."""


class Client(msgspec.Struct):
    """A connection that was throttled or closed at least once. Times are seconds of the endpoint's clock."""

    throttled: int = 0
    """Posts to it that returned 429 because of this connection, not of the account."""
    first_throttled_at: float | None = None
    last_throttled_at: float | None = None
    deletions: int = 0
    """All DELETE calls, whatever the response."""
    closed_at: float | None = None
    """When a DELETE closed it, with a response of 204."""
    posts_after_close: int = 0


class EndpointModel:
    """Decides the response to each call and counts it. Call `post`, `delete` or `get` exactly once per call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._faults = Faults()
        self._bucket: TokenBucket | None = None
        self._has_rules = False
        self.latency_seconds = 0.0
        self.in_flight = 0
        self.max_in_flight = 0
        self.slices: list[Slice] = []
        self._posts = 0
        self._delivered: dict[bytes, dict[str, int]] = {}
        self._unacknowledged: dict[bytes, dict[str, int]] = {}
        self._first_delivered_at: dict[bytes, dict[str, float]] = {}
        self._clients: dict[str, Client] = {}
        self._closed: set[str] = set()
        self._reached: set[str] = set()
        self._first_post_at: float | None = None
        self._last_new_at: float | None = None

    def configure(self, behaviour: Behaviour) -> None:
        self._faults = Faults(behaviour.rules, seed=behaviour.seed)
        self._has_rules = bool(behaviour.rules)
        self.latency_seconds = behaviour.latency_seconds
        account = behaviour.account
        self._bucket = TokenBucket(account.rate, account.burst, self._clock) if account else None

    def post(self, connection_id: str, data: bytes) -> Fault | None:
        """The fault to apply to this post; None if it is delivered."""
        now = self._clock()
        self._posts += 1
        if self._first_post_at is None:
            self._first_post_at = now
        current = self._slice(now)
        fault = self._fault("POST", connection_id)
        if (
            fault is None
            or isinstance(fault, Delay)
            or (isinstance(fault, CannedResponse) and fault.status == HTTPStatus.OK)
        ):
            current.delivered += 1
            self._record_delivery(self._delivered, connection_id, data, now)
            self._first_delivered_at.setdefault(data, {}).setdefault(connection_id, now)
            return fault
        throttled = isinstance(fault, CannedResponse) and fault.status == HTTPStatus.TOO_MANY_REQUESTS
        current.throttled += throttled
        current.other += not throttled
        if throttled and fault is not THROTTLED_ACCOUNT:
            self._record_throttled(connection_id, now)
        if fault is GONE and connection_id in self._closed:
            self._client(connection_id).posts_after_close += 1
        if isinstance(fault, CannedResponse | Reset | Stall) and fault.delivers:
            self._record_delivery(self._unacknowledged, connection_id, data, now)
        return fault

    def delete(self, connection_id: str) -> Fault | None:
        """The fault to apply to this DELETE; None if it closes the connection."""
        fault = self._fault("DELETE", connection_id)
        client = self._client(connection_id)
        client.deletions += 1
        if fault is None or isinstance(fault, Delay):
            client.closed_at = self._clock()
            self._closed.add(connection_id)
        return fault

    def get(self, connection_id: str) -> Fault | None:
        """The fault to apply to this GET; None if the connection exists."""
        return self._fault("GET", connection_id)

    def _fault(self, method: str, connection_id: str) -> Fault | None:
        if self._bucket is not None and not self._bucket.take():
            return THROTTLED_ACCOUNT
        if connection_id in self._closed:
            return GONE
        fault = self._faults.next_fault(method, connection_id) if self._has_rules else None
        if fault is None and not is_client(connection_id):
            return GONE
        return fault

    def _client(self, connection_id: str) -> Client:
        return self._clients.setdefault(connection_id, Client())

    def _record_throttled(self, connection_id: str, now: float) -> None:
        client = self._client(connection_id)
        client.throttled += 1
        client.last_throttled_at = now
        if client.first_throttled_at is None:
            client.first_throttled_at = now

    def _slice(self, now: float) -> Slice:
        if not self.slices or now - self.slices[-1].at_seconds >= SLICE_SECONDS:
            self.slices.append(Slice(now))
        return self.slices[-1]

    def _record_delivery(
        self, counts: dict[bytes, dict[str, int]], connection_id: str, data: bytes, now: float
    ) -> None:
        by_id = counts.setdefault(data, {})
        by_id[connection_id] = by_id.get(connection_id, 0) + 1
        if connection_id not in self._reached:
            self._reached.add(connection_id)
            self._last_new_at = now

    def counts(self, data: bytes) -> Counts:
        return Counts(
            delivered=self._delivered.get(data, {}),
            unacknowledged=self._unacknowledged.get(data, {}),
            first_delivered_at=self._first_delivered_at.get(data, {}),
        )

    def counts_by_data(self, prefix: bytes) -> dict[str, Counts]:
        """The counts of all data with this prefix."""
        found = [data for data in self._delivered | self._unacknowledged if data.startswith(prefix)]
        return {data.decode(): self.counts(data) for data in found}

    def clients(self) -> dict[str, Client]:
        """By connection id."""
        return self._clients

    def summary(self) -> Summary:
        return Summary(
            posts=self._posts,
            delivered=sum(each.delivered for each in self.slices),
            reached=len(self._reached),
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            first_posted_at=self._first_post_at,
            last_first_delivery_at=self._last_new_at,
        )


THROTTLED_ACCOUNT = CannedResponse(
    status=429, error_type="LimitExceededException", body='{"message": "Limit exceeded"}'
)
GONE = CannedResponse(status=410, error_type="GoneException", body='{"message": null}')
