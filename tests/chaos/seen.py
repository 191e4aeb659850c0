"""What a fault looks like from outside: the panels that it shows in, and the alerts that fire.

Each run records one row; `python -m tests.chaos.seen DOCUMENT FILE…` puts the rows into the document's table, in the
place of those with the same name. GATECAST_SEEN_RESULTS says which file is written: one JSON object a line.
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
_CLEARLY: Final = 1.5
"""So many times higher, or lower, than before is what nobody overlooks."""


class Sight(NamedTuple):
    """A line of a panel that shows the fault. `line` is how it is called; where it is empty, any line will do."""

    panel: str
    line: str = ""
    falls: bool = False


class Window(NamedTuple):
    """From one moment to another, in seconds since the epoch."""

    start: float
    end: float


class Seen(NamedTuple):
    """The highest (of what falls: the lowest) that a line was before the fault, and while it lasted."""

    sight: Sight
    before: float
    meanwhile: float
    unit: str

    @property
    def clear(self) -> bool:
        if self.sight.falls:
            return self.meanwhile * _CLEARLY < self.before
        return self.meanwhile > self.before * _CLEARLY

    def __str__(self) -> str:
        name = f"{self.sight.panel} ({self.sight.line})" if self.sight.line else self.sight.panel
        return f"{name}: {_shown(self.before, self.unit)} → {_shown(self.meanwhile, self.unit)}"


class Row(msgspec.Struct, kw_only=True):
    """One fault in the table. `alerts` say after how many seconds they fired."""

    fault: str
    panels: list[str]
    alerts: list[str]
    must_act: str

    def cells(self) -> Sequence[str]:
        linked = [
            re.sub(r"^(\w+)", lambda name: f"[{name[1]}]({_RUNBOOK}#{name[1].lower()})", each) for each in self.alerts
        ]
        return (self.fault, "<br>".join(self.panels), "<br>".join(linked) or "none", self.must_act)


def look(prometheus: Prometheus, sight: Sight, before: Window, meanwhile: Window) -> Seen:
    """What somebody sees who looks at the panel of both times."""
    [panel] = [
        panel
        for path in DASHBOARDS
        for panel in panels(path)
        if f"{dashboard_title(path)}: {panel['title']}" == sight.panel
    ]
    return Seen(
        sight,
        _extreme(prometheus, sight, panel, before),
        _extreme(prometheus, sight, panel, meanwhile),
        panel["fieldConfig"]["defaults"]["unit"],
    )


def alerts_in(prometheus: Prometheus, window: Window) -> Mapping[str, float]:
    """The alerts that fired, and after how many seconds."""
    fired: dict[str, float] = {}
    for labels, points in prometheus.ask_between('ALERTS{alertstate="firing"}', *window):
        name = labels["alertname"]
        fired[name] = min(points[0][0] - window.start, fired.get(name, math.inf))
    return dict(sorted(fired.items(), key=lambda alert: alert[1]))


def _extreme(prometheus: Prometheus, sight: Sight, panel: Any, window: Window) -> float:
    """0 where there is no such line: that is what an empty panel looks like."""
    values = [
        value
        for target in panel["targets"]
        for labels, points in prometheus.ask_between(
            Query("", "", target["expr"]).of_everything(interval=_RATE_INTERVAL), *window
        )
        for _, value in points
        if math.isfinite(value) and sight.line in ("", _called(target["legendFormat"], labels))
    ]
    return (min if sight.falls else max)(values, default=0.0)


def _called(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def _shown(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{value:.1%}"
        case "s":
            return f"{value:.3g} s"
        case "cps":
            return f"{value:,.3g}/s" if value < 1_000 else f"{value:,.0f}/s"
        case _:
            return f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}"


TABLE: Final = Table("seen", ("fault", "panel: before → while it lasts", "alerts", "who must act"), Row)
record: Final = TABLE.record

if __name__ == "__main__":
    TABLE.main()
