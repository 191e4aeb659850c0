"""Quantiles and rates of the live view, for any observations and any sequence of counter values."""

import math
from bisect import bisect_left
from contextlib import suppress
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.cli.top.samples import NotAWorker, Samples, Series, combine, compare, parse, quantile

BOUNDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTER = Series("gatecast_deliveries_total", frozenset({("outcome", "delivered")}))
START = Series("process_start_time_seconds", frozenset())

qs = st.floats(0.001, 0.999)
observations = st.lists(st.floats(0.0, 20.0) | st.sampled_from(BOUNDS), min_size=1, max_size=200)


def buckets_of(observed: list[float]) -> dict[float, float]:
    """Cumulative buckets, as a worker exports them."""
    counts = [0] * (len(BOUNDS) + 1)
    for value in observed:
        counts[bisect_left(BOUNDS, value)] += 1
    return dict(zip((*BOUNDS, math.inf), accumulate(counts), strict=True))


def reference(q: float, observed: list[float]) -> Fraction:
    """Linear interpolation inside the bucket of the q-th observation, with exact arithmetic."""
    left = Fraction(q) * len(observed)
    for low, high in pairwise((0.0, *BOUNDS)):
        inside = sum(low < value <= high or low == value == 0.0 for value in observed)
        if inside >= left:
            return Fraction(low) + (Fraction(high) - Fraction(low)) * left / inside
        left -= inside
    return Fraction(BOUNDS[-1])


@given(qs, observations)
def test_quantiles_match_a_plain_reference(q: float, observed: list[float]) -> None:
    assert quantile(q, buckets_of(observed)) == pytest.approx(float(reference(q, observed)), rel=1e-6)


@given(qs, observations)
def test_a_quantile_lies_in_the_bucket_of_its_observation(q: float, observed: list[float]) -> None:
    estimate = quantile(q, buckets_of(observed))
    truth = sorted(observed)[math.ceil(q * len(observed)) - 1]
    index = bisect_left(BOUNDS, truth)
    assert estimate is not None
    assert (0.0, *BOUNDS)[index] <= estimate <= (*BOUNDS, BOUNDS[-1])[index]


@given(qs, qs, observations)
def test_quantiles_are_monotonic(q: float, other: float, observed: list[float]) -> None:
    low, high = (quantile(each, buckets_of(observed)) for each in sorted((q, other)))
    assert low is not None
    assert high is not None
    assert low <= high


@given(qs, st.lists(observations, min_size=1, max_size=4))
def test_a_quantile_over_several_workers_lies_between_the_individual_ones(
    q: float, observed: list[list[float]]
) -> None:
    def samples(values: list[float]) -> Samples:
        named = ((Series("lag_bucket", frozenset({("le", str(le))})), n) for le, n in buckets_of(values).items())
        return Samples(dict(named), {})

    readings = [compare(samples([]), samples(values), 2.0) for values in observed]
    theirs = [found for reading in readings if (found := reading.quantile("lag", q)) is not None]
    total = combine(readings).quantile("lag", q)
    assert total is not None
    assert len(theirs) == len(observed)
    assert min(theirs) * (1 - 1e-9) <= total <= max(theirs) * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(0, 1_000), st.booleans()), min_size=1), st.booleans())
def test_everything_is_counted_once_across_restarts(steps: list[tuple[int, bool]], exports_start: bool) -> None:
    """The counts observed before and after restarts add up, and no rate is negative."""
    counted, started, before = 0, 0, Samples({}, {})
    seen = expected = 0.0
    for increase, restarts in steps:
        # Without a start time, a restart is undetectable once the counter has passed its old value.
        if restarts and (exports_start or increase < counted):
            counted, started = 0, started + 1
        counted += increase
        now = Samples({COUNTER: float(counted)}, {START: float(started)} if exports_start else {})
        rate = compare(before, now, 0.5).rate(COUNTER.name)
        assert rate is not None
        assert rate >= 0
        seen, expected, before = seen + rate * 0.5, expected + increase, now
    assert seen == expected


@given(st.text() | st.text("gatecast_{}=\"'#\\\n 1.eNTYPE", max_size=200))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    for served in (text, f"# TYPE gatecast_build_info gauge\ngatecast_build_info 1\n{text}"):
        with suppress(NotAWorker):
            assert parse(served).gauges
