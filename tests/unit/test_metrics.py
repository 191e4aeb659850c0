"""The metrics table in docs/reference-operators.md matches the code; histograms match a plain count."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from worker.observe.health import COMPONENTS, Health
from worker.observe.metrics import _GAUGES, Histogram, Metrics

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "deploy" / "observability"
SECTION = (CHECKOUT / "docs" / "reference-operators.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
BOARDS = {"O": "overview", "D": "delivery", "S": "dependencies"}
OPEN_ENDED = {"status", "version", "operation"}
"""Labels whose values cannot be listed; the code that sets them documents their bounds."""


def documented() -> Iterator[tuple[str, str, dict[str, set[str]]]]:
    """(name, type, values by label) of each row."""
    for row in SECTION.splitlines():
        if not row.startswith("| `gatecast_"):
            continue
        name, kind, labels = (cell.strip() for cell in row.strip("|").split("|")[:3])
        values: dict[str, set[str]] = {}
        for label in filter(None, labels.replace("`, `", "`; `").split("; ")):
            label_name, _, listed = label.partition(":")
            values[label_name.strip(" `")] = set(filter(None, re.split(r",\s*", listed.strip())))
        yield name.strip("`"), kind, values


@pytest.fixture
def exported() -> dict[str, Metric]:
    metrics = Metrics(Health())
    metrics.register_gauges(**dict.fromkeys(_GAUGES, lambda: 1.0))
    for queue in ("main", "dead_letter"):
        for state in ("visible", "in_flight", "delayed"):
            metrics.queue_messages[queue, state] = 1
    for api in ("sqs", "dynamodb", "s3"):
        metrics.service_calls.record_response(api, "Query", 0.1, error=True)
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in families
        if family.name.startswith("gatecast_")
    }


def test_the_table_lists_exactly_what_is_exported(exported: dict[str, Metric]) -> None:
    assert {name: kind for name, kind, _ in documented()} == {name: family.type for name, family in exported.items()}


@pytest.mark.parametrize(("name", "kind", "labels"), list(documented()))
def test_labels_and_their_values_match_the_table(
    exported: dict[str, Metric], name: str, kind: str, labels: dict[str, set[str]]
) -> None:
    del kind
    samples = [sample for sample in exported[name].samples if not sample.name.endswith("_created")]
    assert samples
    found: dict[str, set[str]] = {}
    for sample in samples:
        for label, value in sample.labels.items():
            if label != "le":
                found.setdefault(label, set()).add(value)
    assert found.keys() == labels.keys()
    for label, values in found.items():
        if label == "component":
            assert values == set(COMPONENTS)
        elif label not in OPEN_ENDED and labels[label]:
            assert values == labels[label]


def test_an_unknown_gauge_raises() -> None:
    with pytest.raises(ValueError, match="gatecast_nonsense"):
        Metrics(Health()).register_gauges(gatecast_nonsense=lambda: 1.0)


def test_a_gauge_without_a_value_is_left_out() -> None:
    metrics = Metrics(Health())
    metrics.register_gauges(gatecast_credentials_expiry_timestamp_seconds=lambda: None)
    assert b"gatecast_credentials" not in metrics.exposition()


def test_the_histogram_of_posts_counts_each_post_once() -> None:
    metrics = Metrics(Health())
    seconds = [0.0, 0.0025, 0.0026, 0.3, 9.9, 10.0, 10.1, 60.0]
    metrics.delivered(seconds[4:1:-1])
    for each in (*seconds[:2], *seconds[5:-1]):
        metrics.posted(200, each)
    metrics.post_failed(seconds[-1])
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["gatecast_post_duration_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert buckets == {bound: sum(each <= float(bound) for each in seconds) for bound in buckets}
    statuses = {sample.labels["status"]: sample.value for sample in families["gatecast_posts"].samples}
    assert statuses == {"200": 7, "error": 1}


@given(st.lists(st.lists(st.floats(0, 3) | st.sampled_from([0.5, 1.0, 2.0]))))
def test_observing_a_batch_equals_observing_each(batches: list[list[float]]) -> None:
    single, batched = Histogram((0.5, 1.0, 2.0)), Histogram((0.5, 1.0, 2.0))
    for batch in batches:
        for seconds in batch:
            single.observe(seconds)
        batched.observe_all(batch)
    assert batched.counts == single.counts
    assert batched.total == pytest.approx(single.total)


def test_the_table_says_where_each_metric_is_used() -> None:
    sources = {
        **{letter: [FOLDER / "grafana" / "dashboards" / f"{name}.json"] for letter, name in BOARDS.items()},
        "A": list((FOLDER / "prometheus" / "rules").glob("*.yml")),
        "T": list((CHECKOUT / "gatecast" / "cli" / "top").glob("*.py")),
    }
    named = {
        letter: {name for path in paths for name in re.findall(r"gatecast_[a-z_]+", path.read_text())}
        for letter, paths in sources.items()
    }
    found = {}
    for name, kind, _ in documented():
        series = {name, *(f"{name}_{part}" for part in ("bucket", "sum", "count") if kind == "histogram")}
        found[name] = " ".join(letter for letter, names in named.items() if names & series)
    assert dict(re.findall(r"^\| `(gatecast_\w+)` .*\| ([ODSAT ]*\w) \|$", SECTION, re.MULTILINE)) == found
    assert all(found.values()), "a metric that is not used anywhere"
