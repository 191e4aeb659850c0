"""The visibility of faults: which dashboard panels show a fault, and which alerts fire.

Each run records one row in the file that GATECAST_FAULTS_RESULTS names, one JSON object per line.
`python -m tests.chaos.fault_visibility DOCUMENT FILE…` merges the rows into the document's table by the fault's name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tests.chaos.tables import Table
from tests.observability import DASHBOARDS, Query, dashboard_title, panels
from tests.prometheus import Prometheus

_RUNBOOK: Final = "failure-modes.md"
_RATE_INTERVAL: Final = "5s"
_SIGNIFICANT_FACTOR: Final = 1.5
"""A series shows a fault if it rises above, or falls below, its previous value by more than this factor."""


class PanelExpectation(NamedTuple):
    """A panel that must show the fault. `series` is the legend of the series; if empty, any of the panel counts."""

    panel: str
    series: str = ""
    decreases: bool = False


class Window(NamedTuple):
    """A time range, in seconds since the epoch."""

    start: float
    end: float


class PanelObservation(NamedTuple):
    """The maximum (the minimum if it decreases) of a series before the fault and during it."""

    expectation: PanelExpectation
    before: float
    during: float
    unit: str

    @property
    def is_significant(self) -> bool:
        if self.expectation.decreases:
            return self.during * _SIGNIFICANT_FACTOR < self.before
        return self.during > self.before * _SIGNIFICANT_FACTOR

    def __str__(self) -> str:
        name = (
            f"{self.expectation.panel} ({self.expectation.series})"
            if self.expectation.series
            else self.expectation.panel
        )
        return f"{name}: {_formatted(self.before, self.unit)} → {_formatted(self.during, self.unit)}"


class Row(msgspec.Struct, kw_only=True):
    """One fault in the table. `alerts` are names, each with the time after which it fired; `owner` is who must act."""

    fault: str
    panels: list[str]
    alerts: list[str]
    owner: str

    def cells(self) -> Sequence[str]:
        linked = [
            re.sub(r"^(\w+)", lambda name: f"[{name[1]}]({_RUNBOOK}#{name[1].lower()})", each) for each in self.alerts
        ]
        return (self.fault, "<br>".join(self.panels), "<br>".join(linked) or "none", self.owner)


def observe(prometheus: Prometheus, expectation: PanelExpectation, before: Window, during: Window) -> PanelObservation:
    """Evaluate the panel's queries over both windows."""
    [panel] = [
        panel
        for path in DASHBOARDS
        for panel in panels(path)
        if f"{dashboard_title(path)}: {panel['title']}" == expectation.panel
    ]
    return PanelObservation(
        expectation,
        _extreme(prometheus, expectation, panel, before),
        _extreme(prometheus, expectation, panel, during),
        panel["fieldConfig"]["defaults"]["unit"],
    )


def fired_alerts(prometheus: Prometheus, window: Window) -> Mapping[str, float]:
    """The alerts that fired in the window, with the seconds since its start, earliest first."""
    fired: dict[str, float] = {}
    for labels, points in prometheus.ask_between('ALERTS{alertstate="firing"}', *window):
        name = labels["alertname"]
        fired[name] = min(points[0][0] - window.start, fired.get(name, math.inf))
    return dict(sorted(fired.items(), key=lambda alert: alert[1]))


def _extreme(prometheus: Prometheus, expectation: PanelExpectation, panel: Any, window: Window) -> float:
    """The maximum (or minimum) of the expected series; 0 if it does not exist, as an empty panel shows nothing."""
    values = [
        value
        for target in panel["targets"]
        for labels, points in prometheus.ask_between(
            Query("", "", target["expr"]).for_all_services(interval=_RATE_INTERVAL), *window
        )
        for _, value in points
        if math.isfinite(value) and expectation.series in ("", _series_name(target["legendFormat"], labels))
    ]
    return (min if expectation.decreases else max)(values, default=0.0)


def _series_name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def _formatted(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{value:.1%}"
        case "s":
            return f"{value:.3g} s"
        case "cps":
            return f"{value:,.3g}/s" if value < 1_000 else f"{value:,.0f}/s"
        case _:
            return f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}"


TABLE: Final = Table("faults", ("fault", "panel: before → during", "alerts", "who must act"), Row)
record: Final = TABLE.record

if __name__ == "__main__":
    TABLE.main()
