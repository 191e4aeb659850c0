"""The worker's metrics: plain numbers on the hot path, turned into Prometheus families when somebody asks.

No label ever carries a room, a user or a connection: label values are the few that are written here, the parts of
`health`, HTTP statuses, and the operations of SQS and DynamoDB that the worker calls. docs/reference.md says what each
is for; a test holds it against this module.
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
LEASE_OUTCOMES: Final = ("extended", "lost", "failed")
SLOW_CLIENT_OUTCOMES: Final = ("closed", "kept", "failed")
DEAD_LETTER_REASONS: Final = ("poison", "receives", "undelivered", "rejected", "damaged")
DAMAGED_ITEMS: Final[tuple[Kind, ...]] = get_args(Kind)

_CALL_BUCKETS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BROADCAST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_QUEUE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_LOOP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_GAUGES: Final = {
    "gatecast_posts_in_flight": "Posts under way.",
    "gatecast_posts_in_flight_limit": "Posts that may be under way at once.",
    "gatecast_post_rate_limit": "Posts a second allowed now.",
    "gatecast_post_rate_ceiling": "Posts a second allowed at most.",
    "gatecast_http_connections": "Keep-alive connections to @connections that are open.",
    "gatecast_deliveries_waiting": "Deliveries that wait to be tried again.",
    "gatecast_connections_stalled": "Connections that returned 429 and have not taken since what waits for them.",
    "gatecast_broadcasts_in_progress": "Broadcasts that hold a place.",
    "gatecast_broadcasts_in_progress_limit": "Places: broadcasts that may be delivered at once.",
    "gatecast_broadcasts_parked": "Broadcasts that only wait for single connections and hold no place.",
    "gatecast_broadcasts_waiting": "Received broadcasts that wait for a place.",
    "gatecast_oldest_broadcast_age_seconds": "Since published, of the oldest broadcast in hand; 0 without any.",
    "gatecast_unproven_gone": "Connections that answered 410 and are left alone, for nothing else succeeds.",
    "gatecast_draining": "1 from SIGTERM on.",
    "gatecast_credentials_expiry_timestamp_seconds": "When the credentials in use expire, if they do.",
}


class Histogram:
    """Counts by bucket. `buckets` are upper bounds in seconds, ascending."""

    __slots__ = ("buckets", "counts", "total")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.total += seconds

    def observe_all(self, seconds: list[float]) -> None:
        """Cheaper than one by one; sorts the list."""
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
    """Calls to SQS and DynamoDB, by service and operation."""

    def __init__(self) -> None:
        self.durations: dict[tuple[str, str], Histogram] = {}
        self.errors: Counter[tuple[str, str]] = Counter()

    def answered(self, service: str, operation: str, seconds: float, *, error: bool) -> None:
        """An answer came. `error`: it says that the call failed, for another reason than a condition of its own."""
        key = (service, operation)
        histogram = self.durations.get(key)
        if histogram is None:
            histogram = self.durations[key] = Histogram(_CALL_BUCKETS)
            self.errors[key] += 0
        histogram.observe(seconds)
        if error:
            self.errors[key] += 1

    def failed(self, service: str, operation: str) -> None:
        """No answer came, or none that can be read."""
        self.errors[(service, operation)] += 1


class Metrics(Collector):
    """Every number that the worker exports."""

    def __init__(self, health: Health) -> None:
        self.deliveries = dict.fromkeys(Outcome, 0)
        self.posts: dict[int, int] = {200: 0}
        self.posts_without_answer = 0
        self.throttled_posts = {"account": 0, "connection": 0}
        self.rate_cuts: Callable[[], int] = int
        self.broadcasts = dict.fromkeys(BROADCAST_OUTCOMES, 0)
        self.references: Callable[[], int] = int
        self.slow_clients = dict.fromkeys(SLOW_CLIENT_OUTCOMES, 0)
        self.dead_letters = dict.fromkeys(DEAD_LETTER_REASONS, 0)
        self.deferred = 0
        self.damaged_items: dict[str, int] = dict.fromkeys(DAMAGED_ITEMS, 0)
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
        """By queue (main, dead_letter) and state, as SQS counted them when it was last asked."""
        self._health = health
        self._gauges: dict[str, Callable[[], float | None]] = {}
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(self)

    def follow(self, **gauges: Callable[[], float | None]) -> None:
        """Ask these whenever somebody asks for the metrics. What is None then is left out."""
        if unknown := gauges.keys() - _GAUGES.keys():
            raise ValueError(f"no such gauges: {sorted(unknown)}")
        self._gauges.update(gauges)

    def posted(self, status: int, seconds: float) -> None:
        """One attempt that was answered."""
        self.posts[status] = self.posts.get(status, 0) + 1
        self.post_duration.observe(seconds)

    def delivered(self, seconds: list[float]) -> None:
        """Attempts that were answered with 200, as almost all are; what is counted for every post is counted here."""
        self.posts[200] += len(seconds)
        self.post_duration.observe_all(seconds)

    def post_failed(self, seconds: float) -> None:
        """One attempt that got no answer, or none that could be read."""
        self.posts_without_answer += 1
        self.post_duration.observe(seconds)

    def throttled(self, *, account: bool) -> None:
        """One attempt was answered with 429, and it is taken for the account's limit, or else for the connection's."""
        self.throttled_posts["account" if account else "connection"] += 1

    def exposition(self) -> bytes:
        """The text of /metrics, in CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._posts_and_deliveries()
        yield from self._broadcasts_and_queue()
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
        posts["error"] = self.posts_without_answer
        yield _counter("gatecast_posts", "Attempts by HTTP status, or error.", "status", posts)
        yield _histogram("gatecast_post_duration_seconds", "From a post to its answer.", self.post_duration)
        yield _counter(
            "gatecast_throttled_posts", "Posts answered 429, by whose limit it is.", "kind", self.throttled_posts
        )
        yield CounterMetricFamily(
            "gatecast_post_rate_cuts", "Times the account's throttling lowered the limit.", value=self.rate_cuts()
        )
        yield _counter(
            "gatecast_slow_clients", "Connections given up, by what became of them.", "outcome", self.slow_clients
        )
        yield CounterMetricFamily(
            "gatecast_reference_posts",
            "Posts to made-up connections, to find out what a failure means.",
            value=self.references(),
        )
        yield CounterMetricFamily(
            "gatecast_memberships_reaped", "Memberships of gone connections removed.", value=self.memberships_reaped
        )

    def _broadcasts_and_queue(self) -> Iterator[Metric]:
        yield _counter("gatecast_broadcasts", "Queue messages by what became of them.", "outcome", self.broadcasts)
        yield _histogram(
            "gatecast_broadcast_duration_seconds",
            "From published to the last delivery settled.",
            self.broadcast_duration,
        )
        yield CounterMetricFamily(
            "gatecast_broadcasts_deferred", "Queue messages sent back for want of a place.", value=self.deferred
        )
        yield _histogram("gatecast_queue_lag_seconds", "From published to received.", self.queue_lag)
        yield _counter("gatecast_dead_letters", "Dead letters written.", "reason", self.dead_letters)
        yield _counter(
            "gatecast_damaged_items", "Items of the table that could not be read.", "item", self.damaged_items
        )
        yield CounterMetricFamily("gatecast_remainders", "Remainders left for slow members.", value=self.remainders)
        yield CounterMetricFamily("gatecast_checkpoints", "Checkpoints written.", value=self.checkpoints)
        yield _counter("gatecast_lease_extensions", "Lease extensions by outcome.", "outcome", self.lease_extensions)
        messages = GaugeMetricFamily(
            "gatecast_queue_messages", "Messages on the queues, as SQS counts them.", labels=["queue", "state"]
        )
        for labels, count in self.queue_messages.items():
            messages.add_metric(labels, count)
        yield messages

    def _dependencies(self) -> Iterator[Metric]:
        problems = self._health.problems
        yield GaugeMetricFamily("gatecast_ready", "1 while /readyz says so.", value=not problems)
        problem = GaugeMetricFamily(
            "gatecast_dependency_failing", "1 while this component stops deliveries.", labels=["component"]
        )
        for component in COMPONENTS:
            problem.add_metric([component], component in problems)
        yield problem
        yield _counter("gatecast_dependency_failures", "Failed calls by component.", "component", self._health.failures)
        calls = self.service_calls
        labels = ["api", "operation"]  # `service` is what whoever scrapes calls an installation
        durations = HistogramMetricFamily(
            "gatecast_service_call_duration_seconds", "Calls to SQS and DynamoDB that were answered.", labels=labels
        )
        for key, histogram in calls.durations.items():
            histogram.add_to(durations, key)
        yield durations
        errors = CounterMetricFamily(
            "gatecast_service_call_errors", "Calls to SQS and DynamoDB that failed.", labels=labels
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
