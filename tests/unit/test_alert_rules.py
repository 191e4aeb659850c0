"""Alerting rules and the configuration around them: valid for Prometheus' own tools, tested, and actionable."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.observability.dashboards.frame import RUNBOOKS
from tests.chaos.fault_visibility import TABLE, Row
from tests.chaos.test_fault_visibility import FAULTS
from tests.observability import (
    CHECKOUT,
    FOLDER,
    RULE_TESTS,
    RULES,
    RUNBOOK,
    Rule,
    anchors,
    queries,
    rules,
    run_tool,
    selectors,
)

ALERTS = [pytest.param(rule, id=rule.alert) for rule in rules() if rule.alert]


def read(path: str) -> Any:
    return msgspec.yaml.decode((FOLDER / path).read_bytes())


def test_promtool_accepts_the_rules() -> None:
    run_tool("promtool", "check", "rules", *RULES)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    run_tool("promtool", "test", "rules", path)


def test_promtool_accepts_the_configuration() -> None:
    run_tool("promtool", "check", "config", FOLDER / "prometheus/prometheus.yml")


def test_amtool_accepts_the_example() -> None:
    run_tool("amtool", "check-config", FOLDER / "alertmanager/alertmanager.yml")


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_the_example_routes_each_severity_to_its_receiver(severity: str) -> None:
    example = f"--config.file={FOLDER / 'alertmanager/alertmanager.yml'}"
    run_tool("amtool", "config", "routes", "test", example, f"--verify.receivers={severity}", f"severity={severity}")


def test_every_alert_is_tested_both_ways() -> None:
    fires: dict[str, set[bool]] = defaultdict(set)
    for path in RULE_TESTS:
        for test in msgspec.yaml.decode(path.read_bytes())["tests"]:
            for case in test.get("alert_rule_test", []):
                fires[case["alertname"]].add(bool(case["exp_alerts"]))
    assert dict(fires) == {rule.alert: {True, False} for rule in rules() if rule.alert}


@pytest.mark.parametrize("rule", ALERTS)
def test_every_alert_has_a_summary_a_description_and_a_runbook(rule: Rule) -> None:
    assert rule.labels.keys() == {"severity"}
    assert rule.labels["severity"] in {"page", "ticket"}
    assert rule.annotations.keys() == {"summary", "description", "runbook_url"}
    assert "$labels.service" in rule.annotations["summary"]
    assert "$labels.service" in rule.annotations["description"]
    assert rule.annotations["runbook_url"] == f"{RUNBOOKS}#{rule.alert.lower()}"
    assert rule.alert.lower() in anchors(RUNBOOK)


def test_the_runbook_has_a_section_for_every_alert_and_for_no_other() -> None:
    sections = re.findall(r"^### (Gatecast\w+)$\n\n(Page|Ticket)\b", RUNBOOK.read_text(), re.MULTILINE)
    assert {name: kind.lower() for name, kind in sections} == {
        rule.alert: rule.labels["severity"] for rule in rules() if rule.alert
    }


def test_the_fault_visibility_matrix_lists_every_fault_and_every_alert() -> None:
    operations = (CHECKOUT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (?:Overview|Delivery|Dependencies): ", operations, re.MULTILINE)
    assert rows == [fault.name for fault in FAULTS]
    assert set(re.findall(r"\bGatecast[A-Z]\w+", operations)) == {rule.alert for rule in rules() if rule.alert}


def test_every_recorded_series_is_used() -> None:
    used = {
        selector.name
        for expression in (*(rule.expr for rule in rules()), *(query.expression for query in queries()))
        for selector in selectors(expression)
    }
    assert {rule.record for rule in rules() if rule.record} <= used


def test_prometheus_alertmanager_and_grafana_are_configured_for_each_other() -> None:
    prometheus = read("prometheus/prometheus.yml")
    [job] = prometheus["scrape_configs"]
    jobs = {
        matcher.value
        for expression in (*(rule.expr for rule in rules()), *(query.expression for query in queries()))
        for selector in selectors(expression)
        for matcher in selector.matchers
        if matcher.label == "job"
    }
    assert jobs == {job["job_name"]}
    assert job["dns_sd_configs"] == [{"names": ["worker"], "type": "A", "port": 9090, "refresh_interval": "10s"}]
    assert job["relabel_configs"] == [{"target_label": "service", "replacement": "gatecast"}]
    [datasource] = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert datasource["isDefault"]
    assert datasource["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_alertmanager_has_a_receiver_per_severity_and_names_only_existing_alerts() -> None:
    alertmanager = read("alertmanager/alertmanager.yml")
    receivers = {receiver["name"] for receiver in alertmanager["receivers"]}
    assert receivers == {rule.labels["severity"] for rule in rules() if rule.alert}
    matchers = [
        matcher
        for inhibition in alertmanager["inhibit_rules"]
        for matcher in (*inhibition["source_matchers"], *inhibition["target_matchers"])
    ]
    assert matchers
    for matcher in matchers:
        pattern = re.fullmatch(r'alertname =~? "?(Gatecast[\w()|]+)"?', matcher)
        assert pattern, matcher
        named = [rule.alert for rule in rules() if re.fullmatch(pattern[1], rule.alert)]
        assert len(named) == pattern[1].count("|") + 1, matcher


def test_a_run_replaces_its_row_and_leaves_the_others(tmp_path: Path) -> None:
    document = "before\n<!-- faults: written by the tests -->\n<!-- faults: end -->\nafter\n"
    runs = tmp_path / "runs"
    for fault, alert in (("one", ""), ("two", "GatecastThrottled, after 9 s"), ("one", "GatecastQueueLag, after 5 s")):
        row = Row(fault=fault, panels=["Overview: Rate: 1 → 2"], alerts=[alert] if alert else [], owner="Nobody")
        runs.write_bytes(msgspec.json.encode(row))
        document = TABLE.merge_into(document, [runs])
    assert document.splitlines() == [
        "before",
        "<!-- faults: written by the tests -->",
        "| fault | panel: before → during | alerts | who must act |",
        "| --- | --- | --- | --- |",
        "| one | Overview: Rate: 1 → 2 | [GatecastQueueLag](failure-modes.md#gatecastqueuelag), after 5 s | Nobody |",
        "| two | Overview: Rate: 1 → 2 | [GatecastThrottled](failure-modes.md#gatecastthrottled), after 9 s | Nobody |",
        "<!-- faults: end -->",
        "after",
    ]
