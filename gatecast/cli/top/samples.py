"""Parses the text of /metrics, and derives rates from two samples of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_START: Final = "process_start_time_seconds"
_MAX_GAUGES: Final = (
    _START,
    "gatecast_build_info",
    "gatecast_draining",
    "gatecast_oldest_broadcast_age_seconds",
    "gatecast_queue_messages",
    "gatecast_dependency_failing",
)
"""Gauges whose total over several workers is the maximum. The total of the others is the sum."""


class NotAWorker(ValueError):
    """The text that was read is not a worker's metrics."""


class Series(NamedTuple):
    """A time series: one line of the text, without its value."""

    name: str
    labels: frozenset[tuple[str, str]]

    def label(self, name: str) -> str:
        return dict(self.labels).get(name, "")


@dataclass(frozen=True, slots=True)
class Samples:
    """The values of one text. `counters` are counters and histogram buckets, which only fall if the worker restarts."""

    counters: Mapping[Series, float]
    gauges: Mapping[Series, float]

    @property
    def ready(self) -> bool:
        return self.gauges.get(Series("gatecast_ready", frozenset())) == 1

    @property
    def failing_components(self) -> list[str]:
        problems = (
            series for series, value in self.gauges.items() if series.name == "gatecast_dependency_failing" and value
        )
        return sorted(series.label("component") for series in problems)


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one worker or several: counts since the start, current gauges, and counts per second (None if unknown)."""

    counts: Mapping[Series, float]
    gauges: Mapping[Series, float]
    rates: Mapping[Series, float] | None

    def count(self, name: str) -> float:
        return sum(value for series, value in self.counts.items() if series.name == name)

    def gauge(self, name: str, **labels: str) -> float | None:
        """The sum over the matching series; None if no worker exports one."""
        found = [value for series, value in self.gauges.items() if _is(series, name, labels)]
        return sum(found) if found else None

    def rate(self, name: str, **labels: str) -> float | None:
        """Per second; None if rates are unknown. A missing series has the rate 0: it has not counted anything yet."""
        if self.rates is None:
            return None
        return sum(value for series, value in self.rates.items() if _is(series, name, labels))

    def rates_by(self, name: str, label: str) -> dict[str, float] | None:
        if self.rates is None:
            return None
        return {series.label(label): value for series, value in self.rates.items() if series.name == name}

    def quantile(self, histogram: str, q: float) -> float | None:
        """Of the observations between the two samples; None if there are none, or if they are unknown."""
        buckets = self.rates_by(f"{histogram}_bucket", "le") or {}
        return quantile(q, {float(bound): value for bound, value in buckets.items()})


def _is(series: Series, name: str, labels: Mapping[str, str]) -> bool:
    return series.name == name and labels.items() <= series.labels


def parse(text: str) -> Samples:
    """Parse the text of /metrics. Raises NotAWorker."""
    counters: dict[Series, float] = {}
    gauges: dict[Series, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series = Series(sample.name, frozenset(sample.labels.items()))
                if not math.isfinite(sample.value):
                    continue
                if family.type == "gauge":
                    gauges[series] = sample.value
                elif sample.name.endswith(("_total", "_bucket")):
                    counters[series] = sample.value
    except ValueError as error:
        raise NotAWorker("the response is not in the Prometheus text format") from error
    if not any(series.name == "gatecast_build_info" for series in gauges):
        raise NotAWorker("the metrics are not those of a worker")
    return Samples(counters, gauges)


def compare(before: Samples | None, now: Samples, seconds: float) -> Reading:
    """Compute rates over the `seconds` between two samples. After a restart, counters have started from zero."""
    if before is None:
        return Reading(now.counters, now.gauges, None)
    base = {} if _restarted(before, now) else before.counters
    rates = {series: (value - base.get(series, 0.0)) / seconds for series, value in now.counters.items()}
    return Reading(now.counters, now.gauges, rates)


def _restarted(before: Samples, now: Samples) -> bool:
    """Whether the process has a new start time or, on systems that do not export one, a counter has fallen."""
    start = Series(_START, frozenset())
    if before.gauges.get(start) != now.gauges.get(start):
        return True
    return any(now.counters.get(series, 0.0) < value for series, value in before.counters.items())


def combine(readings: Iterable[Reading]) -> Reading:
    """Combine several workers. Rates include the workers whose rates are known; None if there are none."""
    counts: dict[Series, float] = {}
    gauges: dict[Series, float] = {}
    rates: dict[Series, float] = {}
    known = False
    for reading in readings:
        _add(counts, reading.counts)
        for series, value in reading.gauges.items():
            highest = series.name in _MAX_GAUGES
            gauges[series] = max(gauges.get(series, value), value) if highest else gauges.get(series, 0.0) + value
        if reading.rates is not None:
            _add(rates, reading.rates)
            known = True
    return Reading(counts, gauges, rates if known else None)


def _add(sums: dict[Series, float], values: Mapping[Series, float]) -> None:
    for series, value in values.items():
        sums[series] = sums.get(series, 0.0) + value


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """Estimate a quantile like histogram_quantile of Prometheus, by linear interpolation within a bucket.

    `buckets` are cumulative counts by upper bound; the last bound is infinite, and the highest other bound is returned
    for observations in that bucket. 0 < q < 1. None without observations.
    """
    bounds = sorted(buckets)
    rank = q * buckets.get(math.inf, 0.0)
    if rank <= 0:
        return None
    lower = below = 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            return lower if bound == math.inf else lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return None
