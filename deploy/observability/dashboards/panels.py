"""Panels: PromQL expressions with a title, a unit and a description of what they show and what is normal.

Expressions are written without the dashboard's variables. `filtered` adds them to every metric, so that none is
forgotten: the service everywhere, and the task for every series that belongs to one.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimeline
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Graph
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT: Final = 8

Panel = Builder[models.Panel]
Queries = Mapping[str, str]
"""From a line's legend (with {{labels}}) to its expression."""
Steps = Mapping[float, str]
"""From a lower bound to the colour from there on, ascending."""

GOOD: Final = "green"
SUSPECT: Final = "orange"
BAD: Final = "red"

_JOB: Final = "gatecast-worker"
_SELECTOR: Final = re.compile(
    r"""(?<![\w:$])
        ((?:gatecast|process|python)_\w+ | (?:service|instance):[\w:]+ | up | ALERTS)
        (?![\w:(])
        (?:\{([^}]*)\})?  # its own matchers""",
    re.VERBOSE,
)
_WITHOUT_TASK: Final = ("service:", "ALERTS")
_OF_EVERY_JOB: Final = ("process_", "python_", "up")

P = TypeVar("P", Graph, Stat, Heatmap, StateTimeline, Table)


def filtered(expression: str) -> str:
    """The expression, filtered by the dashboard's variables."""

    def narrow(selector: re.Match[str]) -> str:
        name, own = selector[1], selector[2]
        matchers = [own] if own else []
        if name.startswith(_OF_EVERY_JOB):
            matchers.append(f'job="{_JOB}"')
        matchers.append('service=~"$service"')
        if not name.startswith(_WITHOUT_TASK):
            matchers.append('instance=~"$task"')
        return f"{name}{{{', '.join(matchers)}}}"

    return _SELECTOR.sub(narrow, expression)


def graph(
    title: str,
    about: str,
    queries: Queries,
    *,
    unit: str,
    runbook: str,
    width: int = 8,
    stacked: bool = False,
    maximum: float | None = None,
    limits: Steps | None = None,
) -> Panel:
    """Lines over time. `limits` are drawn as dashed lines; `maximum` is the top of the axis, if it is fixed."""
    panel = _described(Graph(), title, about, queries, unit=unit, runbook=runbook, width=width)
    panel.min(0).show_points(common.VisibilityMode.NEVER).line_width(1).fill_opacity(50 if stacked else 5)
    panel.legend(
        options.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
    )
    panel.tooltip(options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    if stacked:
        panel.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL))
    if maximum is not None:
        panel.max(maximum)
    if limits:
        panel.thresholds(_thresholds(GOOD, limits))
        dashed = common.GraphThresholdsStyleMode.DASHED
        panel.thresholds_style(options.GraphThresholdsStyleConfig().mode(dashed))
    return panel


def stat(
    title: str, about: str, expression: str, *, unit: str, runbook: str, below: str = GOOD, steps: Steps | None = None
) -> Panel:
    """One number, from an instant query: the last value of a series that has ended would be shown for ever.

    `below` is the colour below the first of `steps`.
    """
    panel = _described(Stat(), title, about, {"": expression}, unit=unit, runbook=runbook, width=3, height=4, now=True)
    panel.thresholds(_thresholds(below, steps or {}))
    panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    panel.reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.color_mode(common.BigValueColorMode.BACKGROUND_SOLID).graph_mode(common.BigValueGraphMode.NONE)
    return panel.no_value("none")


def distribution(title: str, about: str, histogram: str, *, runbook: str, width: int = 8) -> Panel:
    """A heatmap of a histogram in seconds: the darker, the more observations."""
    query = {"{{le}}": f"sum by (le) (rate({histogram}_bucket[$__rate_interval]))"}
    panel = _described(
        Heatmap(), title, about, query, unit="none", runbook=runbook, width=width, form=PromQueryFormat.HEATMAP
    )
    panel.color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").exponent(0.5).steps(64))
    return panel.y_axis(YAxisConfig().unit(units.Seconds))


def states(
    title: str, about: str, queries: Queries, *, runbook: str, width: int, names: tuple[str, str], good: int
) -> Panel:
    """Values of 0 or 1 as bars over time. `names` are the texts for 0 and 1, `good` is the value shown in green."""
    panel = _described(StateTimeline(), title, about, queries, unit="none", runbook=runbook, width=width)
    shown = {
        str(value): models.ValueMappingResult(text=name, color=GOOD if value == good else BAD)
        for value, name in enumerate(names)
    }
    return panel.mappings([models.ValueMap(options=shown)]).merge_values(True)


def table(title: str, about: str, expression: str, *, runbook: str, width: int, hidden: Sequence[str]) -> Panel:
    """The labels of the current series, except the hidden ones."""
    panel = _described(
        Table(),
        title,
        about,
        {"": expression},
        unit="none",
        runbook=runbook,
        width=width,
        now=True,
        form=PromQueryFormat.TABLE,
    )
    exclude = dict.fromkeys(["Time", "Value", "__name__", *hidden], True)
    organize = models.DataTransformerConfig(id_val="organize", options={"excludeByName": exclude})
    return panel.with_transformation(organize).no_value("none")


def quantiles(histogram: str, by: str = "") -> Queries:
    """The 50th, 95th and 99th percentiles of a histogram in seconds, optionally by the label `by`."""
    labels = f"le, {by}" if by else "le"
    rate = f"sum by ({labels}) (rate({histogram}_bucket[$__rate_interval]))"
    name = f" {{{{{by}}}}}" if by else ""
    return {f"p{share}{name}": f"histogram_quantile(0.{share}, {rate})" for share in (50, 95, 99)}


def _described(
    panel: P,
    title: str,
    about: str,
    queries: Queries,
    *,
    unit: str,
    runbook: str,
    width: int,
    height: int = HEIGHT,
    now: bool = False,
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> P:
    """Set the options that all panels share. `now` makes the queries instant."""
    panel.title(title).description(about).datasource(DATASOURCE).unit(unit).span(width).height(height)
    panel.links([builders.DashboardLink("Runbook").url(f"${{runbooks}}#{runbook}").target_blank(True)])
    for letter, (legend, expression) in zip(ascii_uppercase, queries.items(), strict=False):
        query = Dataquery().ref_id(letter).expr(filtered(expression)).legend_format(legend).format(form)
        query.datasource(DATASOURCE)
        panel.with_target(query.instant() if now else query.range())
    return panel


def _thresholds(first: str, steps: Steps) -> builders.ThresholdsConfig:
    colours = [models.Threshold(None, first), *(models.Threshold(value, colour) for value, colour in steps.items())]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(colours)
