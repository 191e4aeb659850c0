"""A view as values for JSON. Unknown values are null."""

import dataclasses
from typing import Any

import msgspec

from gatecast.cli.top.figures import Figures, Quantiles
from gatecast.cli.top.view import View


def as_json(view: View) -> dict[str, Any]:
    """The fields of the view, its workers and its figures; quantiles are objects."""
    return {
        "ready": view.ready,
        "workers": [
            {
                "name": worker.name,
                "state": worker.state.lower(),
                "problems": dict(worker.problems),
                "figures": _figures(worker.figures),
                "suspects": sorted(worker.suspects),
            }
            for worker in view.workers
        ],
        "total": _figures(view.total),
        "in_progress": view.in_progress,
        "broadcasts": [
            {"worker": one.worker, "per_second": one.per_second, **msgspec.structs.asdict(one.broadcast)}
            for one in view.broadcasts
        ],
        "dearest_rooms": [msgspec.structs.asdict(one) for one in view.dearest_rooms],
    }


def _figures(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    values = {field.name: getattr(figures, field.name) for field in dataclasses.fields(figures)}
    return {name: value._asdict() if isinstance(value, Quantiles) else value for name, value in values.items()}
