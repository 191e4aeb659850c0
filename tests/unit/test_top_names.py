"""The live view uses the names, labels and label values that the worker exports."""

import re
from pathlib import Path

from gatecast.cli.top.figures import Figures, figures
from gatecast.cli.top.samples import Samples, compare, parse
from worker.decisions.outcome import Outcome
from worker.observe.health import Health
from worker.observe.metrics import _GAUGES, Metrics

TOP = Path(__file__).parents[2] / "gatecast" / "cli" / "top"


def exported(delivered: int) -> Samples:
    """The exposition of a worker, with a value for every metric that is shown."""
    metrics = Metrics(Health())
    metrics.register_gauges(**dict.fromkeys(_GAUGES, lambda: 7.0))
    metrics.deliveries[Outcome.DELIVERED] = delivered
    metrics.delivered([0.02] * delivered)
    metrics.posted(503, 0.02)
    metrics.post_failed(1.0)
    metrics.throttled(account=True)
    metrics.throttled(account=False)
    metrics.broadcasts["completed"] = delivered
    metrics.dead_letters["poison"] = delivered
    for histogram in (metrics.broadcast_duration, metrics.queue_lag, metrics.loop_lag):
        histogram.observe_all([0.02] * delivered)
    for queue, state in (("main", "visible"), ("main", "delayed"), ("dead_letter", "visible")):
        metrics.queue_messages[(queue, state)] = 7
    return parse(metrics.exposition().decode())


def test_every_name_that_is_read_is_exported() -> None:
    samples = exported(1)
    known = {series.name.removesuffix("_bucket") for series in (*samples.counters, *samples.gauges)}
    read = {name for path in TOP.glob("*.py") for name in re.findall(r'"(gatecast_\w+)"', path.read_text())}
    assert len(read) > 20
    assert read <= known


def test_no_exported_metric_is_shown_as_unknown() -> None:
    its = figures(compare(exported(5), exported(25), 2.0))
    assert (its.delivered, its.posts_2xx, its.completed, its.dead_letters_written) == (10, 10, 10, 25)
    assert (its.waiting, its.stalled) == (7, 7)
    assert (its.places_taken, its.places, its.parked, its.waiting_for_place) == (7, 7, 7, 7)
    for quantiles in (its.post_seconds, its.completion_seconds, its.queue_lag_seconds):
        assert all(quantiles)
    unknown = {name for name in Figures.__dataclass_fields__ if getattr(its, name) is None}
    assert unknown <= {"memory_bytes", "started_at"}  # available on Linux only


def test_kinds_outcomes_and_states_are_spelt_alike() -> None:
    its = figures(compare(Samples({}, {}), exported(5), 1.0))
    assert (its.throttled_by_account, its.throttled_by_connection) == (1, 1)
    assert (its.posts_5xx, its.posts_without_response) == (1, 1)
    assert (its.backlog, its.delayed, its.dead_letters_queued) == (7, 7, 7)
