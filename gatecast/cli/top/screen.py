"""Draws a view: problems first, then the figures, then the broadcasts in progress."""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gatecast.cli.top.figures import Figures
from gatecast.cli.top.rows import BLOCKS, NOTHING, UNKNOWN, Row, Sections, short
from gatecast.cli.top.view import Progress, State, View
from gatecast.printable import printable

_LABEL_WIDTH: Final = 21
_VALUE_WIDTH: Final = 15
_GAP: Final = 2
_BETWEEN_BLOCKS: Final = 4
_BAR_WIDTH: Final = 10
_COUNT_WIDTH: Final = 6
"""The minimum, so that a column does not move when a count gets another digit."""
_MIN_WIDTH_WITH_BARS: Final = 92
_MAX_PROBLEMS: Final = 8
_MIN_BROADCASTS: Final = 3
"""The number shown even if the screen has no room for them."""
_MAX_DEAREST: Final = 5
_DEFAULT_BROADCASTS: Final = 10
"""The number shown without a terminal."""
_SUSPECT: Final = "bold black on yellow"
_TITLE: Final = "bold cyan"
_STYLES: Final = {
    State.READY: "bold green",
    State.DRAINING: "bold yellow",
    State.NOT_READY: "bold red",
    State.UNREACHABLE: "bold red",
}


class Column(NamedTuple):
    heading: Text
    figures: Figures | None
    suspects: frozenset[str]
    worker: bool = True


def draw(view: View, console: Console, *, at: datetime) -> RenderableType:
    """Render a view. It is no wider than necessary and, on a terminal, no higher than the screen if possible."""
    columns = list(_columns(view, console.width))
    left_out = len(view.workers) - sum(column.worker for column in columns)
    top = Group(
        _headline(view, at, left_out),
        *_problems(view),
        Text(),
        Columns(
            [_block(columns, sections) for sections in BLOCKS],
            padding=(0, _BETWEEN_BLOCKS),
        ),
        Text(),
    )
    dearest = Group(*_dearest(view))
    room = _DEFAULT_BROADCASTS
    if console.is_terminal:
        used = len(console.render_lines(top)) + len(console.render_lines(dearest))
        room = max(_MIN_BROADCASTS, console.height - used - 1)
    return Group(top, *_in_progress(view, room, console.width), dearest)


def _headline(view: View, at: datetime, left_out: int) -> Text:
    every = len(view.workers)
    if every == 1:
        (worker,) = view.workers
        verdict, subject = worker.state.upper(), printable(worker.name)
    else:
        verdict, subject = f"{view.ready} OF {every} READY", f"{every} workers"
        if left_out:
            subject += f", {left_out} of them only in the total"
    style = "bold black on green" if view.ready == every else "bold white on red"
    return Text.assemble((f" {verdict} ", style), f"  {subject}  ", (f"{at:%d %b %H:%M:%S %Z}", "dim"))


def _problems(view: View) -> Iterator[RenderableType]:
    """One line per problem."""
    lines = [
        (worker, component, reason)
        for worker in view.workers
        if worker.state is not State.READY
        for component, reason in (worker.problems or {"": ""}).items()
    ]
    if not lines:
        return
    table = Table.grid(padding=(0, _GAP))
    for worker, component, reason in lines[:_MAX_PROBLEMS]:
        state = Text(worker.state, style=_STYLES[worker.state])
        table.add_row(
            Text(printable(worker.name)), state, Text(printable(": ".join(filter(None, (component, reason)))))
        )
    yield table
    if len(lines) > _MAX_PROBLEMS:
        yield Text(f"and {len(lines) - _MAX_PROBLEMS} more")


def _columns(view: View, width: int) -> Iterator[Column]:
    """With several workers, the total and as many workers as fit, those with problems first; otherwise the worker."""
    workers = list(view.workers)
    if len(workers) > 1:
        yield Column(Text("total", style="bold"), view.total, view.suspects, worker=False)
        fitting = max(1, (width - _LABEL_WIDTH) // (_VALUE_WIDTH + _GAP) - 1)
        if len(workers) > fitting:
            workers.sort(key=lambda worker: (worker.state is State.READY, not worker.suspects))
            del workers[fitting:]
    for worker in workers:
        heading = Text(printable(worker.name), style=_STYLES[worker.state])
        yield Column(heading if len(view.workers) > 1 else Text(), worker.figures, worker.suspects)


def _block(columns: list[Column], sections: Sections) -> Table:
    """Draw sections one below the other. The headings of the columns are in the row of the first title."""
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(width=_LABEL_WIDTH)
    for _ in columns:
        table.add_column(width=_VALUE_WIDTH, justify="right", overflow="fold")
    headings = [column.heading for column in columns]
    for title, rows in sections.items():
        table.add_row(Text(title, style=_TITLE), *headings)
        headings = []
        for row in rows:
            table.add_row(f" {row.label}", *(_cell(row, column) for column in columns))
    return table


def _cell(row: Row, column: Column) -> Text:
    shown = UNKNOWN if column.figures is None else row.show(column.figures)
    if len(shown) > _VALUE_WIDTH:
        shown = shown.replace(" / ", "/")
    suspect = not column.suspects.isdisjoint(row.names)
    return Text.assemble((shown, _SUSPECT if suspect else "dim" if set(shown) <= NOTHING else "bold"))


def _in_progress(view: View, room: int, width: int) -> Iterator[RenderableType]:
    if not view.broadcasts:
        yield Text(
            "Broadcasts in progress: unknown." if view.in_progress is None else "No broadcasts in progress.",
            style="dim",
        )
        return
    several = len(view.workers) > 1
    bars = width >= _MIN_WIDTH_WITH_BARS + several * (_VALUE_WIDTH + _GAP)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(Text(f"Oldest of {view.in_progress:,} in progress", style=_TITLE), overflow="ellipsis")
    if several:
        table.add_column("worker", max_width=_VALUE_WIDTH, no_wrap=True)
    if bars:
        table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for heading in ("settled", "delivered", "/s", "in flight", "waiting", "age, s"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=_COUNT_WIDTH)
    for one in view.broadcasts[:room]:
        table.add_row(*_progress(one, worker=several, bar=bars))
    yield table


def _dearest(view: View) -> Iterator[RenderableType]:
    if not view.dearest_rooms:
        return
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(Text("Dearest rooms in ten minutes", style=_TITLE), overflow="ellipsis", no_wrap=True)
    table.add_column("billed units", justify="right", no_wrap=True)
    for one in view.dearest_rooms[:_MAX_DEAREST]:
        table.add_row(Text(printable(f" {one.room}")), short(one.billed_units))
    yield Text()
    yield table


def _progress(one: Progress, *, worker: bool, bar: bool) -> Iterator[RenderableType]:
    broadcast = one.broadcast
    share = broadcast.share_settled
    yield Text(printable(f" {broadcast.id}" + (f"~{broadcast.part}" if broadcast.part else "")))
    if worker:
        yield Text(printable(one.worker))
    if bar:
        yield ProgressBar(1.0, share or 0.0, width=_BAR_WIDTH, complete_style="cyan", finished_style="cyan")
    yield Text("reading", style="dim") if share is None else f"{math.floor(share * 100)} %"
    for value in (broadcast.delivered, one.per_second, broadcast.in_flight, broadcast.waiting, broadcast.age_seconds):
        yield short(value)


def save_picture(console: Console, path: Path) -> None:
    """Save the output of a recording console as SVG with local fonts: the image fetches nothing. Raises OSError."""
    svg = console.export_svg(title="gatecast top")
    path.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))
