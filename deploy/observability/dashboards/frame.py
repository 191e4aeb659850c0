"""The parts that all dashboards share: variables, annotations for starts and rate cuts, links, the output folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from deploy.observability.dashboards.panels import DATASOURCE, Panel, filtered

RUNBOOKS: Final = "https://github.com/gatecast/gatecast/blob/main/docs/failure-modes.md"
"""The document that the links of panels and alerts point to."""
FOLDER: Final = Path(__file__).parents[1] / "grafana" / "dashboards"

_TAG: Final = "gatecast"
_EVERYTHING: Final = ".*"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A dashboard. `rows` maps titles to panels; the first row may have the title "", and then has no heading."""

    name: str
    title: str
    about: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def path(self) -> Path:
        """The path of its JSON file."""
        return FOLDER / f"{self.name}.json"

    def to_json(self) -> str:
        """The dashboard in Grafana's format. Deterministic."""
        board = (
            builders.Dashboard(f"Gatecast: {self.title}")
            .uid(f"gatecast-{self.name}")
            .description(self.about)
            .tags([_TAG])
            .editable()
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .variables(_variables())
            .annotations(_marks())
            .links(_links())
        )
        for title, panels in self.rows.items():
            if title:
                board.with_row(builders.Row(title))
            for panel in panels:
                board.with_panel(panel)
        built = board.build()
        for number, panel_or_row in enumerate(built.panels or [], 1):
            panel_or_row.id_val = number
        return json.dumps(built, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _variables() -> list[Builder[models.VariableModel]]:
    service, task = (
        builders.QueryVariable(name)
        .label(label)
        .description(about)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(_EVERYTHING)
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
        for name, label, about, query in (
            ("service", "Service", "The installation of Gatecast.", "label_values(gatecast_build_info, service)"),
            ("task", "Task", "The worker's task.", 'label_values(gatecast_build_info{service=~"$service"}, instance)'),
        )
    )
    return [
        builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        service,
        task,
        builders.ConstantVariable("runbooks").label("Runbooks").value(RUNBOOKS),
    ]


class _Mark(models.AnnotationQuery, Builder[models.AnnotationQuery]):
    """An annotation with the fields of Grafana's Prometheus data source that the SDK lacks."""

    def __init__(self, name: str, expression: str, *, text: str, colour: str, at_value: bool = False) -> None:
        super().__init__(name=name, datasource=DATASOURCE, icon_color=colour, expr=filtered(expression))
        self._more = {"step": "60s", "titleFormat": name, "textFormat": text, "useValueForTime": at_value}

    def build(self) -> models.AnnotationQuery:
        return self

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), **self._more}


def _marks() -> list[Builder[models.AnnotationQuery]]:
    started_ms = "1000 * process_start_time_seconds * on (service, instance) group_left (version) gatecast_build_info"
    cuts = "sum by (service) (increase(gatecast_post_rate_cuts_total[2m])) > 0"
    return [
        _Mark("Worker started", started_ms, text="{{instance}}, version {{version}}", colour="blue", at_value=True),
        _Mark("Rate cut", cuts, text="the account throttles {{service}}", colour="orange"),
    ]


def _links() -> list[Builder[models.DashboardLink]]:
    return [
        builders.DashboardLink("Gatecast")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .include_vars(True)
        .keep_time(True),
        builders.DashboardLink("Runbook").url("${runbooks}").icon("doc").target_blank(True),
    ]
