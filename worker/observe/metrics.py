"""The worker's metrics: plain numbers on the hot path, converted to Prometheus families on each scrape.

No label ever holds a room, a user or a connection. Label values are the few listed here, the components of `health`,
HTTP statuses, and the operations of AWS's services that the worker calls. docs/reference-operators.md describes each
metric; a test compares it with this module.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar, get_args

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gatecast import __version__
from worker.decisions.outcome import Outcome
from worker.observe.damaged_items import Kind
from worker.observe.health import COMPONENTS, Health

L = TypeVar("L", bound=str)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BROADCAST_OUTCOMES: Final = ("completed", "split", "expired", "duplicate", "poison", "released", "given_up")
HISTORY_OUTCOMES: Final = ("appended", "without_payload", "rejected")
LEASE_OUTCOMES: Final = ("extended", "lost", "failed")
SLOW_CLIENT_OUTCOMES: Final = ("closed", "kept", "failed")
EXPIRED_CONNECTION_OUTCOMES: Final = ("closed", "gone", "failed")
DEAD_LETTER_REASONS: Final = (
    *("poison", "receives", "undelivered", "rejected", "damaged", "too_large"),
    *("missing_object", "foreign_bucket", "no_bucket"),
)
DAMAGED_ITEMS: Final[tuple[Kind, ...]] = get_args(Kind)

_CALL_BUCKETS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BROADCAST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_QUEUE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_LOOP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_GAUGES: Final = {
    "gatecast_posts_in_flight": "Posts in flight.",
    "gatecast_posts_in_flight_limit": "Maximum of posts in flight.",
    "gatecast_post_rate_limit": "Posts per second that are allowed now.",
    "gatecast_post_rate_ceiling": "Ceiling of the posts per second.",
    "gatecast_http_connections": "Open keep-alive connections to @connections.",
    "gatecast_deliveries_waiting": "Deliveries that wait for a retry or in a stalled connection's line.",
    "gatecast_connections_stalled": "Connections that returned 429 and have not yet accepted what waits for them.",
    "gatecast_broadcasts_in_progress": "Broadcasts that hold a place.",
    "gatecast_broadcasts_in_progress_limit": "Places: maximum of broadcasts delivered at once.",
    "gatecast_broadcasts_parked": "Broadcasts that wait only for single connections and hold no place.",
    "gatecast_broadcasts_waiting": "Received broadcasts that wait for a place.",
    "gatecast_oldest_broadcast_age_seconds": "Age of the oldest broadcast in progress, since publication; 0 if none.",
    "gatecast_unproven_gone": "Connections that returned 410 but are not removed because no other post has succeeded.",
    "gatecast_draining": "1 from SIGTERM on.",
    "gatecast_credentials_expiry_timestamp_seconds": "When the credentials in use expire, in seconds since the epoch.",
}


class Histogram:
    """Counts per bucket. `buckets` are upper bounds in seconds, ascending."""

    __slots__ = ("buckets", "counts", "total")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.total += seconds

    def observe_all(self, seconds: list[float]) -> None:
        """Observe several values, more cheaply than one by one. Sorts the list in place."""
        seconds.sort()
        below = 0
        for bucket, bound in enumerate(self.buckets):
            up_to = bisect_right(seconds, bound, below)
            self.counts[bucket] += up_to - below
            below = up_to
            if below == len(seconds):
                break
        else:
            self.counts[-1] += len(seconds) - below
        self.total += sum(seconds)

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...] = ()) -> None:
        cumulative = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.buckets), "+Inf"), self.counts, strict=True):
            cumulative += count
            rows.append((bound, cumulative))
        family.add_metric(labels, rows, self.total)


class ServiceCalls:
    """Calls to SQS, DynamoDB and S3, by service and operation."""

    def __init__(self) -> None:
        self.durations: dict[tuple[str, str], Histogram] = {}
        self.errors: Counter[tuple[str, str]] = Counter()

    def record_response(self, service: str, operation: str, seconds: float, *, error: bool) -> None:
        """Count a call that got a response. `error`: it failed, and not because of an unmet condition of its own."""
        key = (service, operation)
        histogram = self.durations.get(key)
        if histogram is None:
            histogram = self.durations[key] = Histogram(_CALL_BUCKETS)
            self.errors[key] += 0
        histogram.observe(seconds)
        if error:
            self.errors[key] += 1

    def record_failure(self, service: str, operation: str) -> None:
        """Count a call without a response, or with an unreadable one."""
        self.errors[(service, operation)] += 1


class Metrics(Collector):
    """All metrics that the worker exports."""

    def __init__(self, health: Health) -> None:
        self.deliveries = dict.fromkeys(Outcome, 0)
        self.posts: dict[int, int] = {200: 0}
        self.posts_without_response = 0
        self.throttled_posts = {"account": 0, "connection": 0}
        self.rate_cuts: Callable[[], int] = int
        self.broadcasts = dict.fromkeys(BROADCAST_OUTCOMES, 0)
        self.references: Callable[[], int] = int
        self.billed_messages: Callable[[], int] = int
        self.receipts = 0
        self.slow_clients = dict.fromkeys(SLOW_CLIENT_OUTCOMES, 0)
        self.expired_connections: dict[str, int] = dict.fromkeys(EXPIRED_CONNECTION_OUTCOMES, 0)
        self.dead_letters = dict.fromkeys(DEAD_LETTER_REASONS, 0)
        self.deferred = 0
        self.damaged_items: dict[str, int] = dict.fromkeys(DAMAGED_ITEMS, 0)
        self.history_messages = dict.fromkeys(HISTORY_OUTCOMES, 0)
        self.history_transactions = 0
        self.history_conflicts = 0
        self.history_append_duration = Histogram(_CALL_BUCKETS)
        self.remainders = 0
        self.checkpoints = 0
        self.lease_extensions = dict.fromkeys(LEASE_OUTCOMES, 0)
        self.memberships_reaped = 0
        self.post_duration = Histogram(_CALL_BUCKETS)
        self.broadcast_duration = Histogram(_BROADCAST_BUCKETS)
        self.queue_lag = Histogram(_QUEUE_BUCKETS)
        self.loop_lag = Histogram(_LOOP_BUCKETS)
        self.service_calls = ServiceCalls()
        self.queue_messages: dict[tuple[str, str], int] = {}
        """By queue (main, dead_letter) and state, as SQS counted them at the last poll."""
        self._health = health
        self._gauges: dict[str, Callable[[], float | None]] = {}
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(self)

    def register_gauges(self, **gauges: Callable[[], float | None]) -> None:
        """Read these gauges on each scrape. A gauge that is None is left out. Raises ValueError for an unknown name."""
        if unknown := gauges.keys() - _GAUGES.keys():
            raise ValueError(f"no such gauges: {sorted(unknown)}")
        self._gauges.update(gauges)

    def posted(self, status: int, seconds: float) -> None:
        """Count an attempt that got a response."""
        self.posts[status] = self.posts.get(status, 0) + 1
        self.post_duration.observe(seconds)

    def delivered(self, seconds: list[float]) -> None:
        """Count attempts that returned 200, as almost all do, in one call; `seconds` has their durations."""
        self.posts[200] += len(seconds)
        self.post_duration.observe_all(seconds)

    def post_failed(self, seconds: float) -> None:
        """Count an attempt that got no response, or an unreadable one."""
        self.posts_without_response += 1
        self.post_duration.observe(seconds)

    def throttled(self, *, account: bool) -> None:
        """Count an attempt that returned 429 because of the account's limit, or else the connection's."""
        self.throttled_posts["account" if account else "connection"] += 1

    def exposition(self) -> bytes:
        """The text of /metrics, in CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._posts_and_deliveries()
        yield from self._broadcasts_and_queue()
        yield from self._history()
        yield from self._dependencies()
        for name, value in self._gauges.items():
            if (number := value()) is not None:
                yield GaugeMetricFamily(name, _GAUGES[name], value=number)
        yield _histogram("gatecast_event_loop_lag_seconds", "How late the event loop ran a timer.", self.loop_lag)
        build = GaugeMetricFamily("gatecast_build_info", "1, with the version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _posts_and_deliveries(self) -> Iterator[Metric]:
        yield _counter("gatecast_deliveries", "Deliveries by outcome.", "outcome", self.deliveries)
        posts = {str(status): count for status, count in self.posts.items()}
        posts["error"] = self.posts_without_response
        yield _counter("gatecast_posts", "Attempts by HTTP status, or error.", "status", posts)
        yield _histogram("gatecast_post_duration_seconds", "Time from a post to its response.", self.post_duration)
        yield _counter(
            "gatecast_throttled_posts",
            "Posts that returned 429, by the limit that is held responsible.",
            "kind",
            self.throttled_posts,
        )
        yield CounterMetricFamily(
            "gatecast_post_rate_cuts",
            "Times the limit was lowered because the account throttles.",
            value=self.rate_cuts(),
        )
        yield _counter(
            "gatecast_slow_clients",
            "Connections given up because they do not read, by what was done.",
            "outcome",
            self.slow_clients,
        )
        yield _counter(
            "gatecast_expired_connections",
            "Connections whose token has expired, by what became of them.",
            "outcome",
            self.expired_connections,
        )
        yield CounterMetricFamily(
            "gatecast_reference_posts",
            "Posts to made-up connections, which show what a failure means.",
            value=self.references(),
        )
        yield CounterMetricFamily(
            "gatecast_billed_messages",
            "Units of 32 KB of the posts that returned 200, for which API Gateway bills.",
            value=self.billed_messages(),
        )
        yield CounterMetricFamily(
            "gatecast_memberships_reaped", "Memberships of gone connections removed.", value=self.memberships_reaped
        )

    def _broadcasts_and_queue(self) -> Iterator[Metric]:
        yield _counter(
            "gatecast_broadcasts", "Queue messages by how their processing ended.", "outcome", self.broadcasts
        )
        yield _histogram(
            "gatecast_broadcast_duration_seconds",
            "Time from publication to the last settled delivery.",
            self.broadcast_duration,
        )
        yield CounterMetricFamily(
            "gatecast_broadcasts_deferred", "Queue messages returned to the queue with a delay.", value=self.deferred
        )
        yield _histogram(
            "gatecast_queue_lag_seconds", "Time from publication until a worker starts the broadcast.", self.queue_lag
        )
        yield _counter("gatecast_dead_letters", "Dead letters written.", "reason", self.dead_letters)
        yield _counter(
            "gatecast_damaged_items", "Malformed items of the table, each time one is read.", "item", self.damaged_items
        )
        yield CounterMetricFamily(
            "gatecast_remainders", "Remainders published for slow members.", value=self.remainders
        )
        yield CounterMetricFamily("gatecast_receipts", "Receipts sent.", value=self.receipts)
        yield CounterMetricFamily("gatecast_checkpoints", "Checkpoints written.", value=self.checkpoints)
        yield _counter("gatecast_lease_extensions", "Lease extensions by outcome.", "outcome", self.lease_extensions)
        messages = GaugeMetricFamily(
            "gatecast_queue_messages", "Messages on the queues, as SQS counts them.", labels=["queue", "state"]
        )
        for labels, count in self.queue_messages.items():
            messages.add_metric(labels, count)
        yield messages

    def _history(self) -> Iterator[Metric]:
        yield _counter(
            "gatecast_history_messages",
            "Messages of rooms with history, by what was written.",
            "outcome",
            self.history_messages,
        )
        yield CounterMetricFamily(
            "gatecast_history_transactions",
            "Transactions that append to rooms' histories.",
            value=self.history_transactions,
        )
        yield CounterMetricFamily(
            "gatecast_history_conflicts",
            "Transactions that were repeated because another worker was faster.",
            value=self.history_conflicts,
        )
        yield _histogram(
            "gatecast_history_append_duration_seconds",
            "Time until a message has its offset, from when it could get one.",
            self.history_append_duration,
        )

    def _dependencies(self) -> Iterator[Metric]:
        problems = self._health.problems
        yield GaugeMetricFamily("gatecast_ready", "1 while /readyz returns 200.", value=not problems)
        problem = GaugeMetricFamily(
            "gatecast_dependency_failing", "1 while this component stops deliveries.", labels=["component"]
        )
        for component in COMPONENTS:
            problem.add_metric([component], component in problems)
        yield problem
        yield _counter("gatecast_dependency_failures", "Failed calls by component.", "component", self._health.failures)
        calls = self.service_calls
        labels = ["api", "operation"]  # not `service`: Prometheus sets that to the installation's name
        durations = HistogramMetricFamily(
            "gatecast_service_call_duration_seconds", "Calls to AWS's services that got a response.", labels=labels
        )
        for key, histogram in calls.durations.items():
            histogram.add_to(durations, key)
        yield durations
        errors = CounterMetricFamily(
            "gatecast_service_call_errors", "Calls to AWS's services that failed or got no response.", labels=labels
        )
        for key, count in calls.errors.items():
            errors.add_metric(key, count)
        yield errors


def _counter(name: str, documentation: str, label: str, counts: Mapping[L, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([str(value)], count)
    return family


def _histogram(name: str, documentation: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, documentation)
    histogram.add_to(family)
    return family
