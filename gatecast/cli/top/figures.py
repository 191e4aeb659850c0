"""The figures that the view shows, for one worker or for several together."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from gatecast.cli.top.samples import Reading

_LOW_SUCCESS_SHARE: Final = 0.99
_LATE_SECONDS: Final = 10.0
"""The objective is to complete a broadcast within this time."""
_SLOW_LOOP_SECONDS: Final = 0.1
_BUSY_SHARE: Final = 0.9
"""A share of one core, because an event loop cannot use more."""


class Quantiles(NamedTuple):
    """In seconds; None if nothing was observed."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Values that are unknown are None: rates at the first poll, shares and quantiles of nothing, missing metrics.

    Rates are per second; `*_seconds` are seconds; `cores` is the number of cores that the processes keep busy.
    """

    delivered: float | None
    gone: float | None
    expired: float | None
    missed: float | None
    """The sum of rejected and undelivered."""
    success_share: float | None
    """delivered / (delivered + missed). Deliveries that ended as gone or expired do not count."""
    waiting: float | None
    stalled: float | None
    """Connections that return 429."""
    posts_2xx: float | None
    posts_4xx: float | None
    posts_5xx: float | None
    posts_without_response: float | None
    throttled_by_account: float | None
    throttled_by_connection: float | None
    billed: float | None
    """Units of 32 KB of the posts that returned 200."""
    post_seconds: Quantiles
    rate_limit: float | None
    rate_ceiling: float | None
    in_flight: float | None
    in_flight_limit: float | None
    connections: float | None
    completed: float | None
    completion_seconds: Quantiles
    queue_lag_seconds: Quantiles
    places_taken: float | None
    places: float | None
    parked: float | None
    waiting_for_place: float | None
    oldest_age_seconds: float | None
    backlog: float | None
    delayed: float | None
    dead_letters_queued: float | None
    dead_letters_written: float
    """Since the start of the workers."""
    version: str
    started_at: float | None
    """Seconds since the epoch; of several workers, the latest."""
    loop_lag_p99_seconds: float | None
    memory_bytes: float | None
    cores: float | None


def figures(reading: Reading) -> Figures:
    delivered, gone, expired, rejected, undelivered = (
        reading.rate("gatecast_deliveries_total", outcome=outcome)
        for outcome in ("delivered", "gone", "expired", "rejected", "undelivered")
    )
    missed = None if rejected is None or undelivered is None else rejected + undelivered
    posts = _by_class(reading.rates_by("gatecast_posts_total", "status"))
    versions = {series.label("version") for series in reading.gauges if series.name == "gatecast_build_info"}
    return Figures(
        delivered=delivered,
        gone=gone,
        expired=expired,
        missed=missed,
        success_share=_share(delivered, missed),
        waiting=reading.gauge("gatecast_deliveries_waiting"),
        stalled=reading.gauge("gatecast_connections_stalled"),
        posts_2xx=posts.get("2"),
        posts_4xx=posts.get("4"),
        posts_5xx=posts.get("5"),
        posts_without_response=posts.get("e"),
        throttled_by_account=reading.rate("gatecast_throttled_posts_total", kind="account"),
        throttled_by_connection=reading.rate("gatecast_throttled_posts_total", kind="connection"),
        billed=reading.rate("gatecast_billed_messages_total"),
        post_seconds=_quantiles(reading, "gatecast_post_duration_seconds"),
        rate_limit=reading.gauge("gatecast_post_rate_limit"),
        rate_ceiling=reading.gauge("gatecast_post_rate_ceiling"),
        in_flight=reading.gauge("gatecast_posts_in_flight"),
        in_flight_limit=reading.gauge("gatecast_posts_in_flight_limit"),
        connections=reading.gauge("gatecast_http_connections"),
        completed=reading.rate("gatecast_broadcasts_total", outcome="completed"),
        completion_seconds=_quantiles(reading, "gatecast_broadcast_duration_seconds"),
        queue_lag_seconds=_quantiles(reading, "gatecast_queue_lag_seconds"),
        places_taken=reading.gauge("gatecast_broadcasts_in_progress"),
        places=reading.gauge("gatecast_broadcasts_in_progress_limit"),
        parked=reading.gauge("gatecast_broadcasts_parked"),
        waiting_for_place=reading.gauge("gatecast_broadcasts_waiting"),
        oldest_age_seconds=reading.gauge("gatecast_oldest_broadcast_age_seconds"),
        backlog=reading.gauge("gatecast_queue_messages", queue="main", state="visible"),
        delayed=reading.gauge("gatecast_queue_messages", queue="main", state="delayed"),
        dead_letters_queued=reading.gauge("gatecast_queue_messages", queue="dead_letter", state="visible"),
        dead_letters_written=reading.count("gatecast_dead_letters_total"),
        version=", ".join(sorted(versions)),
        started_at=reading.gauge("process_start_time_seconds"),
        loop_lag_p99_seconds=reading.quantile("gatecast_event_loop_lag_seconds", 0.99),
        memory_bytes=reading.gauge("process_resident_memory_bytes"),
        cores=reading.rate("process_cpu_seconds_total"),
    )


def _by_class(by_status: dict[str, float] | None) -> dict[str, float]:
    """Rates by the first character of the status: 2, 4, 5, or e for an error. Empty if they are unknown."""
    if by_status is None:
        return {}
    sums = dict.fromkeys("245e", 0.0)
    for status, rate in by_status.items():
        sums[status[:1]] = sums.get(status[:1], 0.0) + rate
    return sums


def _share(good: float | None, bad: float | None) -> float | None:
    if good is None or bad is None or good + bad == 0:
        return None
    return good / (good + bad)


def _quantiles(reading: Reading, histogram: str) -> Quantiles:
    return Quantiles(*(reading.quantile(histogram, q) for q in (0.5, 0.95, 0.99)))


def suspects(shown: Figures) -> frozenset[str]:
    """Return the names of the figures to look at first, which are highlighted."""
    found = {
        "missed": _above(shown.missed, 0),
        "success_share": shown.success_share is not None and shown.success_share < _LOW_SUCCESS_SHARE,
        "posts_5xx": _above(shown.posts_5xx, 0),
        "posts_without_response": _above(shown.posts_without_response, 0),
        "throttled_by_account": _above(shown.throttled_by_account, 0),
        "rate_limit": _above(shown.rate_ceiling, shown.rate_limit),
        "in_flight": shown.in_flight_limit is not None and _above(shown.in_flight, shown.in_flight_limit - 1),
        "completion_seconds": _above(shown.completion_seconds.p99, _LATE_SECONDS),
        "queue_lag_seconds": _above(shown.queue_lag_seconds.p99, _LATE_SECONDS),
        "oldest_age_seconds": _above(shown.oldest_age_seconds, _LATE_SECONDS),
        "dead_letters_queued": _above(shown.dead_letters_queued, 0),
        "loop_lag_p99_seconds": _above(shown.loop_lag_p99_seconds, _SLOW_LOOP_SECONDS),
        "cores": _above(shown.cores, _BUSY_SHARE),
    }
    return frozenset(name for name, suspect in found.items() if suspect)


def _above(value: float | None, limit: float | None) -> bool:
    """Whether `value` exceeds `limit`; False if either is unknown."""
    return value is not None and limit is not None and value > limit
