"""Read deploy/observability for tests: its rules, its panels' expressions and their metrics; and run Prometheus' tools.

If a tool is missing, tests that need it are skipped, except in CI, where they fail.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

CHECKOUT: Final = Path(__file__).parents[1]
FOLDER: Final = CHECKOUT / "deploy" / "observability"
RULES: Final = sorted((FOLDER / "prometheus" / "rules").glob("*.yml"))
RULE_TESTS: Final = sorted((FOLDER / "prometheus" / "tests").glob("*.yml"))
DASHBOARDS: Final = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
RUNBOOK: Final = CHECKOUT / "docs" / "failure-modes.md"

_TOOLS: Final = CHECKOUT / ".local" / "tools"
_SELECTOR: Final = re.compile(
    r"(?<![\w:$])((?:gatecast|process|python)_\w+|(?:service|instance):[\w:]+|up|ALERTS)(?![\w:(])(?:\{([^}]*)\})?"
)
_MATCHER: Final = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def tool(name: str) -> str:
    """The path of promtool, amtool or prometheus. If it is missing, skips the test, or fails it in CI."""
    found = shutil.which(name) or shutil.which(name, path=_TOOLS)
    if found is None:
        missing = f"{name} is missing: run deploy/observability/fetch_tools.sh, or put it on the PATH"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def run_tool(name: str, *arguments: str | Path) -> None:
    """Fails the test with the tool's output if its exit code is not 0."""
    command = [tool(name), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


class Rule(msgspec.Struct, frozen=True, kw_only=True, rename={"for_": "for"}, forbid_unknown_fields=True):
    """A recording or alerting rule, as its file defines it."""

    expr: str
    record: str = ""
    alert: str = ""
    for_: str = "0s"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    rules: list[Rule]
    interval: str = ""


class RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    groups: list[Group]


def rules() -> list[Rule]:
    files = (msgspec.yaml.decode(path.read_bytes(), type=RuleFile) for path in RULES)
    return [rule for file in files for group in file.groups for rule in group.rules]


class Query(NamedTuple):
    """One expression of a dashboard; `panel` is its panel's title, or the annotation's name."""

    dashboard: str
    panel: str
    expression: str

    def for_all_services(self, *, interval: str = "5m") -> str:
        """The expression for all services and tasks, without Grafana's variables."""
        expression = self.expression.replace("$__rate_interval", interval)
        expression = expression.replace('"$service"', '".*"').replace('"$task"', '".*"')
        assert "$" not in expression, expression
        return expression


def dashboard(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def dashboard_title(path: Path) -> str:
    title: str = dashboard(path)["title"]
    return title.removeprefix("Gatecast: ")


def panels(path: Path) -> list[Any]:
    """The panels of a dashboard without the row headings."""
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """All expressions of the dashboards."""
    found = []
    for path in DASHBOARDS:
        title = dashboard_title(path)
        found += [Query(title, panel["title"], target["expr"]) for panel in panels(path) for target in panel["targets"]]
        found += [Query(title, mark["name"], mark["expr"]) for mark in dashboard(path)["annotations"]["list"]]
    return found


class Matcher(NamedTuple):
    label: str
    operator: str
    value: str


class Selector(NamedTuple):
    """A metric in an expression, and the matchers of its labels."""

    name: str
    matchers: tuple[Matcher, ...]


def selectors(expression: str) -> list[Selector]:
    return [
        Selector(found[1], tuple(Matcher(*matcher) for matcher in _MATCHER.findall(found[2] or "")))
        for found in _SELECTOR.finditer(expression)
    ]


def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
