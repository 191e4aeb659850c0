"""The text of /metrics as numbers, and what two of these texts say about the time between them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_START: Final = "process_start_time_seconds"
_HIGHEST: Final = (
    _START,
    "gatecast_build_info",
    "gatecast_draining",
    "gatecast_oldest_broadcast_age_seconds",
    "gatecast_queue_messages",
    "gatecast_dependency_failing",
)
"""Gauges of which several workers together have the highest; of the others they have the sum."""


class NotAWorker(ValueError):  # noqa: N818 - it says what was asked
    """What was read are no worker's metrics."""


class Series(NamedTuple):
    """One line of the text without its value."""

    name: str
    labels: frozenset[tuple[str, str]]

    def label(self, name: str) -> str:
        return dict(self.labels).get(name, "")


@dataclass(frozen=True, slots=True)
class Samples:
    """One text. `counters` never fall while a worker lives: the counters, and the buckets of histograms."""

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
    """One worker, or several together: counts since their start, gauges now, and counts a second if they are known."""

    counts: Mapping[Series, float]
    gauges: Mapping[Series, float]
    rates: Mapping[Series, float] | None

    def count(self, name: str) -> float:
        return sum(value for series, value in self.counts.items() if series.name == name)

    def gauge(self, name: str, **labels: str) -> float | None:
        """None if nobody exports it."""
        found = [value for series, value in self.gauges.items() if _is(series, name, labels)]
        return sum(found) if found else None

    def rate(self, name: str, **labels: str) -> float | None:
        """A series that is not there has not counted anything yet."""
        if self.rates is None:
            return None
        return sum(value for series, value in self.rates.items() if _is(series, name, labels))

    def rates_by(self, name: str, label: str) -> dict[str, float] | None:
        if self.rates is None:
            return None
        return {series.label(label): value for series, value in self.rates.items() if series.name == name}

    def quantile(self, histogram: str, q: float) -> float | None:
        """Of what was observed between the two texts; None if that is nothing, or not known."""
        buckets = self.rates_by(f"{histogram}_bucket", "le") or {}
        return quantile(q, {float(bound): value for bound, value in buckets.items()})


def _is(series: Series, name: str, labels: Mapping[str, str]) -> bool:
    return series.name == name and labels.items() <= series.labels


def parse(text: str) -> Samples:
    """Raises NotAWorker."""
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
        raise NotAWorker("what it serves are no metrics") from error
    if not any(series.name == "gatecast_build_info" for series in gauges):
        raise NotAWorker("what it serves are not a worker's metrics")
    return Samples(counters, gauges)


def compare(before: Samples | None, now: Samples, seconds: float) -> Reading:
    """What happened in the `seconds` between the two. A worker that was restarted in them has counted from zero."""
    if before is None:
        return Reading(now.counters, now.gauges, None)
    base = {} if _restarted(before, now) else before.counters
    rates = {series: (value - base.get(series, 0.0)) / seconds for series, value in now.counters.items()}
    return Reading(now.counters, now.gauges, rates)


def _restarted(before: Samples, now: Samples) -> bool:
    """A new process has another start; where the system does not tell that, its counters have fallen."""
    start = Series(_START, frozenset())
    if before.gauges.get(start) != now.gauges.get(start):
        return True
    return any(now.counters.get(series, 0.0) < value for series, value in before.counters.items())


def together(readings: Iterable[Reading]) -> Reading:
    """Several workers as one. Rates are those of the workers of which they are known, if there is any."""
    counts: dict[Series, float] = {}
    gauges: dict[Series, float] = {}
    rates: dict[Series, float] = {}
    known = False
    for reading in readings:
        _add(counts, reading.counts)
        for series, value in reading.gauges.items():
            highest = series.name in _HIGHEST
            gauges[series] = max(gauges.get(series, value), value) if highest else gauges.get(series, 0.0) + value
        if reading.rates is not None:
            _add(rates, reading.rates)
            known = True
    return Reading(counts, gauges, rates if known else None)


def _add(sums: dict[Series, float], values: Mapping[Series, float]) -> None:
    for series, value in values.items():
        sums[series] = sums.get(series, 0.0) + value


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """What histogram_quantile of Prometheus gives: the observation of rank q, taken as evenly spread in its bucket.

    `buckets` are cumulative, by upper bound, the last of which is infinite: what falls into that one is given as the
    highest other bound. 0 < q < 1. None without observations.
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
