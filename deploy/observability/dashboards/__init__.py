"""The Grafana dashboards, as code: `python -m deploy.observability.dashboards` writes their JSON.

A dashboard is a title and rows of panels (`overview`, `delivery`, `dependencies`). `panels` makes a panel from a few
PromQL expressions, and `frame` adds the parts that all dashboards share.
"""

from typing import Final

from deploy.observability.dashboards.delivery import DELIVERY
from deploy.observability.dashboards.dependencies import DEPENDENCIES
from deploy.observability.dashboards.frame import Board
from deploy.observability.dashboards.overview import OVERVIEW

BOARDS: Final[tuple[Board, ...]] = (OVERVIEW, DELIVERY, DEPENDENCIES)
