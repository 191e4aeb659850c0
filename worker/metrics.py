"""The worker's metrics: plain numbers on the hot path, turned into Prometheus families when somebody asks.

No label ever carries a room, a user or a connection: label values are the few that are written here.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gatecast import __version__
from worker.delivery.outcome import Outcome

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BROADCAST_OUTCOMES: Final = ("completed", "split", "expired", "duplicate", "poison", "released")
LEASE_OUTCOMES: Final = ("extended", "lost", "failed")

_POST_BUCKETS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BROADCAST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_QUEUE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_LOOP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(slots=True)
class Histogram:
    """Counts by bucket. `buckets` are upper bounds in seconds, ascending."""

    buckets: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.buckets) + 1)

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.total += seconds

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        cumulative = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.buckets), "+Inf"), self.counts, strict=True):
            cumulative += count
            rows.append((bound, cumulative))
        return HistogramMetricFamily(name, documentation, buckets=rows, sum_value=self.total)


class Metrics(Collector):
    """Every number that the worker exports. Gauges that follow live objects are functions, set by the service."""

    def __init__(self) -> None:
        self.deliveries = dict.fromkeys(Outcome, 0)
        self.posts: dict[int, int] = {}
        self.posts_without_answer = 0
        self.broadcasts = dict.fromkeys(BROADCAST_OUTCOMES, 0)
        self.lease_extensions = dict.fromkeys(LEASE_OUTCOMES, 0)
        self.memberships_reaped = 0
        self.post_duration = Histogram(_POST_BUCKETS)
        self.broadcast_duration = Histogram(_BROADCAST_BUCKETS)
        self.queue_lag = Histogram(_QUEUE_BUCKETS)
        self.loop_lag = Histogram(_LOOP_BUCKETS)
        self.posts_in_flight: Callable[[], float] = float
        self.post_rate_limit: Callable[[], float] = float
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(self)

    def posted(self, status: int, seconds: float) -> None:
        """One attempt that was answered."""
        self.posts[status] = self.posts.get(status, 0) + 1
        duration = self.post_duration  # observed here, not by a call: this runs for every post
        duration.counts[bisect_left(_POST_BUCKETS, seconds)] += 1
        duration.total += seconds

    def post_failed(self, seconds: float) -> None:
        """One attempt that got no answer, or none that could be read."""
        self.posts_without_answer += 1
        self.post_duration.observe(seconds)

    def exposition(self) -> bytes:
        """The text of /metrics, in CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield _counter(
            "gatecast_deliveries",
            "Deliveries by outcome.",
            "outcome",
            {str(outcome): count for outcome, count in self.deliveries.items()},
        )
        posts = {str(status): count for status, count in self.posts.items()}
        posts = {"200": 0, **posts, "error": self.posts_without_answer}
        yield _counter("gatecast_posts", "Attempts by HTTP status, or error.", "status", posts)
        yield self.post_duration.family("gatecast_post_duration_seconds", "From a post to its answer.")
        yield GaugeMetricFamily("gatecast_posts_in_flight", "Posts under way.", value=self.posts_in_flight())
        yield GaugeMetricFamily("gatecast_post_rate_limit", "Posts a second allowed now.", value=self.post_rate_limit())
        yield _counter("gatecast_broadcasts", "Queue messages by what became of them.", "outcome", self.broadcasts)
        yield self.broadcast_duration.family(
            "gatecast_broadcast_duration_seconds", "From published to the last delivery settled."
        )
        yield self.queue_lag.family("gatecast_queue_lag_seconds", "From published to received.")
        reaped = CounterMetricFamily("gatecast_memberships_reaped", "Memberships of gone connections removed.")
        reaped.add_metric([], self.memberships_reaped)
        yield reaped
        yield _counter("gatecast_lease_extensions", "Lease extensions by outcome.", "outcome", self.lease_extensions)
        yield self.loop_lag.family("gatecast_event_loop_lag_seconds", "How late the event loop ran a timer.")
        build = GaugeMetricFamily("gatecast_build_info", "1, with the version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _counter(name: str, documentation: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
