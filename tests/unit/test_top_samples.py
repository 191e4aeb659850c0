"""Deltas between two scrapes of /metrics."""

import math

import pytest

from gatecast.cli.top.samples import NotAWorker, Samples, Series, combine, compare, parse, quantile

BUILD = '# TYPE gatecast_build_info gauge\ngatecast_build_info{version="1.2.3"} 1.0\n'


def text(*, started: float = 100.0, delivered: int = 0, fast: int = 0, slow: int = 0, age: float = 0.0) -> str:
    """A shortened exposition of a worker. `fast` posts took at most 10 ms, `slow` ones more."""
    return (
        f"{BUILD}# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n"
        f'# TYPE gatecast_deliveries_total counter\ngatecast_deliveries_total{{outcome="delivered"}} {delivered}\n'
        "# TYPE gatecast_post_duration_seconds histogram\n"
        f'gatecast_post_duration_seconds_bucket{{le="0.01"}} {fast}\n'
        f'gatecast_post_duration_seconds_bucket{{le="0.05"}} {fast + slow}\n'
        f'gatecast_post_duration_seconds_bucket{{le="+Inf"}} {fast + slow}\n'
        f"gatecast_post_duration_seconds_count {fast + slow}\ngatecast_post_duration_seconds_sum 1.5\n"
        f"# TYPE gatecast_posts_in_flight gauge\ngatecast_posts_in_flight {fast}\n"
        f"# TYPE gatecast_oldest_broadcast_age_seconds gauge\ngatecast_oldest_broadcast_age_seconds {age}\n"
    )


def test_counters_and_gauges() -> None:
    samples = parse(text(delivered=7, fast=2))
    assert samples.counters[Series("gatecast_deliveries_total", frozenset({("outcome", "delivered")}))] == 7
    assert samples.gauges[Series("gatecast_posts_in_flight", frozenset())] == 2
    assert not any(series.name.endswith(("_sum", "_count")) for series in samples.counters)


@pytest.mark.parametrize("served", ["", "<html>It works!</html>", "up{", "# TYPE up gauge\nup 1\n", "up one\n"])
def test_an_exposition_of_another_process_is_rejected(served: str) -> None:
    with pytest.raises(NotAWorker):
        parse(served)


def test_a_nan_sample_is_omitted() -> None:
    samples = parse(f"{BUILD}# TYPE gatecast_posts_in_flight gauge\ngatecast_posts_in_flight NaN\n")
    assert [series.name for series in samples.gauges] == ["gatecast_build_info"]


def test_readiness_and_failing_components() -> None:
    problem = (
        "# TYPE gatecast_dependency_failing gauge\n"
        'gatecast_dependency_failing{component="table"} 1\ngatecast_dependency_failing{component="queue"} 0\n'
    )
    samples = parse(
        f'{BUILD}{problem}gatecast_dependency_failing{{component="dead letters"}} 1\n# TYPE gatecast_ready gauge\n'
    )
    assert samples.failing_components == ["dead letters", "table"]
    assert not samples.ready
    assert parse(f"{BUILD}# TYPE gatecast_ready gauge\ngatecast_ready 1\n").ready
    assert not parse(f"{BUILD}# TYPE gatecast_ready gauge\ngatecast_ready 0\n").ready


def test_the_first_poll_has_counts_and_gauges_but_no_rates() -> None:
    reading = compare(None, parse(text(delivered=7, fast=3)), 0.0)
    assert reading.rate("gatecast_deliveries_total") is None
    assert reading.rates_by("gatecast_deliveries_total", "outcome") is None
    assert reading.quantile("gatecast_post_duration_seconds", 0.5) is None
    assert (reading.count("gatecast_deliveries_total"), reading.gauge("gatecast_posts_in_flight")) == (7, 3)


def test_rates_are_per_second() -> None:
    reading = compare(parse(text(delivered=10)), parse(text(delivered=30)), 4.0)
    assert reading.rate("gatecast_deliveries_total", outcome="delivered") == 5.0
    assert reading.rates_by("gatecast_deliveries_total", "outcome") == {"delivered": 5.0}


def test_a_counter_that_does_not_exist_has_a_rate_of_zero() -> None:
    reading = compare(parse(text()), parse(text()), 1.0)
    assert reading.rate("gatecast_deliveries_total", outcome="rejected") == 0.0
    assert reading.rate("gatecast_throttled_posts_total") == 0.0
    assert reading.gauge("gatecast_http_connections") is None


def test_a_new_series_counts_from_zero() -> None:
    more = 'gatecast_deliveries_total{outcome="gone"} 4\n'
    reading = compare(parse(text()), parse(text() + "# TYPE gatecast_deliveries_total counter\n" + more), 2.0)
    assert reading.rate("gatecast_deliveries_total", outcome="gone") == 2.0


@pytest.mark.parametrize("delivered", [3, 500], ids=["lower than before", "higher than before"])
def test_a_restarted_worker_counts_from_zero(delivered: int) -> None:
    before = parse(text(started=100.0, delivered=50, fast=40, slow=10))
    reading = compare(before, parse(text(started=200.0, delivered=delivered, slow=2)), 1.0)
    assert reading.rate("gatecast_deliveries_total") == delivered
    assert reading.quantile("gatecast_post_duration_seconds", 0.5) == pytest.approx(0.03)


def test_a_restart_is_detected_by_any_lower_counter_if_the_start_time_is_unchanged() -> None:
    before = parse(text(delivered=50, fast=40))
    reading = compare(before, parse(text(delivered=60, fast=4)), 1.0)
    assert reading.rate("gatecast_deliveries_total") == 60


def test_quantiles_cover_the_observations_between_two_scrapes() -> None:
    reading = compare(parse(text(fast=1_000)), parse(text(fast=1_000, slow=4)), 1.0)
    assert reading.quantile("gatecast_post_duration_seconds", 0.5) == pytest.approx(0.03)
    idle = compare(parse(text(fast=1_000)), parse(text(fast=1_000)), 1.0)
    assert idle.quantile("gatecast_post_duration_seconds", 0.5) is None
    assert idle.quantile("gatecast_queue_lag_seconds", 0.5) is None


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, {0.1: 0, 0.5: 10, math.inf: 10}, 0.3),  # halfway through the bucket
        (0.5, {0.1: 10, 0.5: 10, math.inf: 10}, 0.05),  # the first bucket begins at zero
        (0.9, {0.1: 50, 0.5: 90, math.inf: 100}, 0.5),  # exactly at a bound
        (0.99, {0.1: 50, 0.5: 90, math.inf: 100}, 0.5),  # above the last finite bound
        (0.95, {0.1: 0, 0.5: 0, math.inf: 3}, 0.5),
        (0.5, {0.1: 2, 0.5: 2, 1.0: 2, 2.0: 4, math.inf: 4}, 0.1),  # empty buckets are skipped
        (0.5, {0.1: 0, math.inf: 0}, None),
        (0.5, {}, None),
    ],
)
def test_quantiles_match_histogram_quantile(q: float, buckets: dict[float, float], expected: float | None) -> None:
    assert quantile(q, buckets) == (None if expected is None else pytest.approx(expected))


def test_several_workers_are_aggregated() -> None:
    one = compare(parse(text(delivered=10)), parse(text(delivered=30, fast=2, age=7.0)), 2.0)
    other = compare(parse(text(delivered=10)), parse(text(delivered=15, fast=3, age=4.0)), 1.0)
    new = compare(None, parse(text(delivered=100, started=300.0)), 0.0)
    total = combine([one, other, new])
    assert total.rate("gatecast_deliveries_total") == 15.0
    assert total.count("gatecast_deliveries_total") == 145
    assert total.gauge("gatecast_posts_in_flight") == 5
    assert total.gauge("gatecast_oldest_broadcast_age_seconds") == 7.0
    assert total.gauge("process_start_time_seconds") == 300.0
    assert combine([new]).rate("gatecast_deliveries_total") is None


def test_queue_depth_is_not_summed_over_workers() -> None:
    series = Series("gatecast_queue_messages", frozenset({("queue", "main"), ("state", "visible")}))
    readings = [compare(None, Samples({}, {series: value}), 0.0) for value in (5.0, 6.0)]
    assert combine(readings).gauge("gatecast_queue_messages", queue="main", state="visible") == 6.0
