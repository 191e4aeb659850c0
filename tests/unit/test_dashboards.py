"""The dashboards: written by the code beside them, of metrics that the worker exports, each panel explained."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.observability.dashboards import BOARDS
from deploy.observability.dashboards.frame import RUNBOOKS
from deploy.observability.dashboards.panels import filtered
from tests.observability import (
    DASHBOARDS,
    RUNBOOK,
    Query,
    Selector,
    anchors,
    dashboard,
    panels,
    queries,
    rules,
    run_tool,
    selectors,
)
from worker.observe.health import Health
from worker.observe.metrics import _GAUGES, Metrics

PANELS = [pytest.param(panel, id=f"{path.stem}: {panel['title']}") for path in DASHBOARDS for panel in panels(path)]
EXPRESSIONS = sorted({query.of_everything() for query in queries()} | {rule.expr for rule in rules()})
SCRAPED = {"job", "instance", "service"}
"""Labels that come with the scrape."""
OPEN = {"status": r"[1-5][0-9x.]{2}|error", "operation": r"[A-Z]\w+", "version": r".+"}
"""Labels whose values come up as they are met, and what they look like."""
NOT_SHOWN = {
    "python_gc_objects_collected_total",
    "python_gc_objects_uncollectable_total",
    "python_info",
    "process_virtual_memory_bytes",
}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_the_json_is_what_the_code_writes(board: Any) -> None:
    assert board.path.read_text(encoding="utf-8") == board.to_json(), "run make dashboards"


def test_there_are_no_other_dashboards() -> None:
    assert sorted(board.path for board in BOARDS) == DASHBOARDS


def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    recorded = [{"record": f"expression:{number}", "expr": each} for number, each in enumerate(EXPRESSIONS)]
    file = tmp_path / "expressions.yml"
    file.write_bytes(msgspec.yaml.encode({"groups": [{"name": "expressions", "rules": recorded}]}))
    run_tool("promtool", "check", "rules", file)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_is_explained(panel: Any) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert all(references)
    assert len(set(references)) == len(references)
    [link] = panel["links"]
    page, anchor = link["url"].split("#")
    assert page == "${runbooks}"
    assert anchor in anchors(RUNBOOK)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_fill_the_width_and_do_not_overlap(path: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard(path)["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies upon {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len(taken) == 24 * (max(y for _, y in taken) + 1)
    assert len({panel["id"] for panel in dashboard(path)["panels"]}) == len(dashboard(path)["panels"])


def test_runbooks_are_found_in_one_place() -> None:
    for path in DASHBOARDS:
        assert {
            variable["name"]: variable["query"]
            for variable in dashboard(path)["templating"]["list"]
            if variable["type"] == "constant"
        } == {"runbooks": RUNBOOKS}


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_every_metric_is_of_the_chosen_service_and_task(query: Query) -> None:
    found = selectors(query.expression)
    assert found
    for selector in found:
        asked = {(matcher.label, matcher.operator, matcher.value) for matcher in selector.matchers}
        assert ("service", "=~", "$service") in asked
        if not selector.name.startswith(("service:", "ALERTS")):
            assert ("instance", "=~", "$task") in asked
        if selector.name.startswith(("process_", "python_", "up")):
            assert ("job", "=", "gatecast-worker") in asked


@pytest.mark.parametrize(
    ("expression", "with_variables"),
    [
        ("sum(gatecast_ready)", 'sum(gatecast_ready{service=~"$service", instance=~"$task"})'),
        (
            'rate(gatecast_posts_total{status="200"}[5m])',
            'rate(gatecast_posts_total{status="200", service=~"$service", instance=~"$task"}[5m])',
        ),
        ("up", 'up{job="gatecast-worker", service=~"$service", instance=~"$task"}'),
        ("service:gatecast_slo_burn:ratio", 'service:gatecast_slo_burn:ratio{service=~"$service"}'),
        ("time() - vector(0)", "time() - vector(0)"),
    ],
)
def test_variables_are_added_to_metrics_and_to_nothing_else(expression: str, with_variables: str) -> None:
    assert filtered(expression) == with_variables


def exported() -> dict[str, dict[str, set[str]]]:
    """Every sample that Prometheus has of a worker, with the values of its labels; and what rules record."""
    metrics = Metrics(Health())
    metrics.follow(**dict.fromkeys(_GAUGES, lambda: 1.0))
    metrics.queue_messages = {
        (queue, state): 1 for queue in ("main", "dead_letter") for state in ("visible", "in_flight", "delayed")
    }
    metrics.service_calls.answered("sqs", "ReceiveMessage", 0.1, error=True)
    known: dict[str, dict[str, set[str]]] = {"up": {}, "ALERTS": {"alertname": set(), "alertstate": {"firing"}}}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels = known.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    for rule in rules():
        if rule.alert:
            known["ALERTS"]["alertname"].add(rule.alert)
        else:
            labels = known.setdefault(rule.record, {})
            for label, value in rule.labels.items():
                labels.setdefault(label, set()).add(value)
    return known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_uses_only_what_the_worker_exports(expression: str) -> None:
    known = exported()
    labels: set[str] = set(SCRAPED)
    for selector in selectors(expression):
        assert selector.name in known, selector.name
        labels |= known[selector.name].keys()
        _check_values(selector, known[selector.name])
    for grouping in re.findall(r"\b(?:by|on|ignoring|group_left|without) \(([\w, ]*)\)", expression):
        assert {label for label in grouping.split(", ") if label} <= labels


def _check_values(selector: Selector, known: dict[str, set[str]]) -> None:
    for label, operator, asked in selector.matchers:
        if label in SCRAPED:
            continue
        assert label in known, f"{selector.name} has no {label}"
        for value in asked.split("|") if "~" in operator else [asked]:
            fits = re.compile(value) if "~" in operator else re.compile(re.escape(value))
            possible = re.fullmatch(OPEN[label], value) if label in OPEN else None
            assert possible or any(map(fits.fullmatch, known[label])), f"{selector.name} has no {label} like {value}"


def test_everything_that_the_worker_exports_is_shown() -> None:
    shown = {selector.name for query in queries() for selector in selectors(query.expression)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    known = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported()}
    kept = {name for name in known if name.startswith(("gatecast_", "process_", "python_"))}
    assert kept - families == NOT_SHOWN
