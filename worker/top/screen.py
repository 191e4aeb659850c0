"""Draws a view: what is wrong first, then the figures, then the broadcasts in hand."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.top.figures import Figures, Quantiles
from worker.top.view import Progress, State, View

_LABEL_WIDTH: Final = 21
_VALUE_WIDTH: Final = 15
_GAP: Final = 2
_BETWEEN_BLOCKS: Final = 4
_BAR_WIDTH: Final = 10
_ROOM_FOR_BARS: Final = 92
_MOST_TROUBLES: Final = 8
_FEW_BROADCASTS: Final = 3
"""Shown even where a screen has no room for them."""
_MANY_BROADCASTS: Final = 10
"""Shown where there is no screen."""
_UNKNOWN: Final = "–"
_NOTHING: Final = frozenset("0/ –")
_SUSPECT: Final = "bold yellow"
_TITLE: Final = "bold cyan"
_STYLES: Final = {
    State.READY: "bold green",
    State.DRAINING: "bold yellow",
    State.NOT_READY: "bold red",
    State.UNREACHABLE: "bold red",
}
_MILLI: Final = 1e-3
_MEBI: Final = 2.0**20
_PERCENT: Final = 1e-2


def short(value: float | None, unit: float = 1.0) -> str:
    """In units of `unit`, with decimals where it is small and not whole."""
    if value is None:
        return _UNKNOWN
    value /= unit
    digits = 0 if value >= 10 or value.is_integer() else 1 if value >= 1 else 2  # noqa: PLR2004 - decimal digits
    return f"{value:,.{digits}f}"


def _pair(one: float | None, other: float | None) -> str:
    return f"{short(one)} / {short(other)}"


def _three(quantiles: Quantiles, unit: float = 1.0) -> str:
    return "/".join(short(value, unit) for value in quantiles)


def _share(value: float | None) -> str:
    """Rounded down: 100 % is said only of all."""
    return _UNKNOWN if value is None else f"{math.floor(value * 10_000) / 100:.2f} %"


def _time(seconds: float | None) -> str:
    """Where the reader's clock is."""
    return _UNKNOWN if seconds is None else f"{datetime.fromtimestamp(seconds, UTC).astimezone():%d %b %H:%M}"


class Row(NamedTuple):
    """A line of figures. It stands out where one of the figures of these names is suspect."""

    label: str
    show: Callable[[Figures], str]
    names: tuple[str, ...] = ()


_DELIVERIES: Final = (
    Row("delivered /s", lambda its: short(its.delivered)),
    Row("success share", lambda its: _share(its.success_share), ("success_share",)),
    Row("missed /s", lambda its: short(its.missed), ("missed",)),
    Row("gone /s", lambda its: short(its.gone)),
    Row("waiting for a retry", lambda its: short(its.waiting)),
)
_POSTS: Final = (
    Row("2xx /s", lambda its: short(its.posts_2xx)),
    Row("4xx /s", lambda its: short(its.posts_4xx)),
    Row("  429 account /s", lambda its: short(its.throttled_by_account), ("throttled_by_account",)),
    Row("  429 connection /s", lambda its: short(its.throttled_by_connection)),
    Row("5xx /s", lambda its: short(its.posts_5xx), ("posts_5xx",)),
    Row("no answer /s", lambda its: short(its.posts_without_answer), ("posts_without_answer",)),
    Row("post, ms p50/p95/p99", lambda its: _three(its.post_seconds, _MILLI)),
    Row("limit / ceiling /s", lambda its: _pair(its.rate_limit, its.rate_ceiling), ("rate_limit",)),
    Row("in flight / limit", lambda its: _pair(its.in_flight, its.in_flight_limit), ("in_flight",)),
    Row("connections", lambda its: short(its.connections)),
)
_BROADCASTS: Final = (
    Row("completed /s", lambda its: short(its.completed)),
    Row("done, s p50/p95/p99", lambda its: _three(its.completion_seconds)),
    Row("lag, s p50/p95/p99", lambda its: _three(its.queue_lag_seconds), ("queue_lag_seconds",)),
    Row("in hand / limit", lambda its: _pair(its.in_hand, its.in_hand_limit)),
    Row("oldest, s", lambda its: short(its.oldest_age_seconds), ("oldest_age_seconds",)),
    Row("backlog", lambda its: short(its.backlog)),
    Row("  and delayed", lambda its: short(its.delayed)),
    Row("dead letters queued", lambda its: short(its.dead_letters_queued), ("dead_letters_queued",)),
    Row("  written so far", lambda its: short(its.dead_letters_written)),
)
_PROCESS: Final = (
    Row("loop lag, ms p99", lambda its: short(its.loop_lag_p99_seconds, _MILLI), ("loop_lag_p99_seconds",)),
    Row("CPU, % of a core", lambda its: short(its.cores, _PERCENT), ("cores",)),
    Row("memory, MiB", lambda its: short(its.memory_bytes, _MEBI)),
    Row("started", lambda its: _time(its.started_at)),
    Row("version", lambda its: its.version),
)


class Column(NamedTuple):
    heading: Text
    figures: Figures | None
    suspects: frozenset[str]
    worker: bool = True


def draw(view: View, console: Console, *, at: datetime) -> RenderableType:
    """As wide as it needs to be, and on a screen as high as that."""
    columns = list(_columns(view, console.width))
    left_out = len(view.workers) - sum(column.worker for column in columns)
    top = Group(
        _headline(view, at, left_out),
        *_troubles(view),
        Text(),
        Columns(
            [
                _block(columns, {"Deliveries": _DELIVERIES, "Posts": _POSTS}),
                _block(columns, {"Broadcasts": _BROADCASTS, "Process": _PROCESS}),
            ],
            padding=(0, _BETWEEN_BLOCKS),
        ),
        Text(),
    )
    room = _MANY_BROADCASTS
    if console.is_terminal:
        room = max(_FEW_BROADCASTS, console.height - len(console.render_lines(top)) - 2)
    return Group(top, *_in_hand(view, room, console.width))


def _headline(view: View, at: datetime, left_out: int) -> Text:
    every = len(view.workers)
    if every == 1:
        (worker,) = view.workers
        verdict, who = worker.state.upper(), _plain(worker.name)
    else:
        verdict, who = f"{view.ready} OF {every} READY", f"{every} workers"
        if left_out:
            who += f", {left_out} of them only in the total"
    style = "bold white on green" if view.ready == every else "bold white on red"
    return Text.assemble((f" {verdict} ", style), f"  {who}  ", (f"{at:%d %b %H:%M:%S %Z}", "dim"))


def _troubles(view: View) -> Iterator[RenderableType]:
    """A line for everything that is wrong."""
    lines = [
        (worker, part, reason)
        for worker in view.workers
        if worker.state is not State.READY
        for part, reason in (worker.troubles or {"": ""}).items()
    ]
    if not lines:
        return
    table = Table.grid(padding=(0, _GAP))
    for worker, part, reason in lines[:_MOST_TROUBLES]:
        state = Text(worker.state, style=_STYLES[worker.state])
        table.add_row(Text(_plain(worker.name)), state, Text(_plain(": ".join(filter(None, (part, reason))))))
    yield table
    if len(lines) > _MOST_TROUBLES:
        yield Text(f"and {len(lines) - _MOST_TROUBLES} more")


def _columns(view: View, width: int) -> Iterator[Column]:
    """The total where there are several workers, and as many of these as fit, those in trouble first."""
    workers = list(view.workers)
    if len(workers) > 1:
        yield Column(Text("total", style="bold"), view.total, view.suspects, worker=False)
        fitting = max(1, (width - _LABEL_WIDTH) // (_VALUE_WIDTH + _GAP) - 1)
        if len(workers) > fitting:
            workers.sort(key=lambda worker: (worker.state is State.READY, not worker.suspects))
            del workers[fitting:]
    for worker in workers:
        heading = Text(_plain(worker.name), style=_STYLES[worker.state])
        yield Column(heading if len(view.workers) > 1 else Text(), worker.figures, worker.suspects)


def _block(columns: list[Column], sections: Mapping[str, tuple[Row, ...]]) -> Table:
    """Sections one below the other; the columns' headings are beside the first one's title."""
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
    shown = _UNKNOWN if column.figures is None else row.show(column.figures)
    if len(shown) > _VALUE_WIDTH:
        shown = shown.replace(" / ", "/")
    suspect = not column.suspects.isdisjoint(row.names)
    return Text(shown, style=_SUSPECT if suspect else "dim" if set(shown) <= _NOTHING else "")


def _in_hand(view: View, room: int, width: int) -> Iterator[RenderableType]:
    if not view.broadcasts:
        yield Text("No broadcast in hand.", style="dim")
        return
    several = len(view.workers) > 1
    bars = width >= _ROOM_FOR_BARS + several * (_VALUE_WIDTH + _GAP)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(Text("Oldest in hand", style=_TITLE), overflow="ellipsis")
    if several:
        table.add_column("worker", max_width=_VALUE_WIDTH, no_wrap=True)
    if bars:
        table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for heading in ("settled", "delivered", "/s", "in flight", "waiting", "age, s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in view.broadcasts[:room]:
        table.add_row(*_progress(one, worker=several, bar=bars))
    yield table
    if view.in_hand > room:
        yield Text(f" and {view.in_hand - min(room, len(view.broadcasts)):,} more", style="dim")


def _progress(one: Progress, *, worker: bool, bar: bool) -> Iterator[RenderableType]:
    broadcast = one.broadcast
    share = broadcast.share_settled
    yield Text(_plain(f" {broadcast.id}" + (f"~{broadcast.part}" if broadcast.part else "")))
    if worker:
        yield Text(_plain(one.worker))
    if bar:
        yield ProgressBar(1.0, share or 0.0, width=_BAR_WIDTH, complete_style="cyan", finished_style="cyan")
    yield Text("reading", style="dim") if share is None else f"{math.floor(share * 100)} %"
    for value in (broadcast.delivered, one.per_second, broadcast.in_flight, broadcast.waiting, broadcast.age_seconds):
        yield short(value)


def save_picture(console: Console, path: Path) -> None:
    """What a recording console has printed, as SVG. Raises OSError. The fonts are the viewer's: it fetches nothing."""
    svg = console.export_svg(title="python -m worker.top")
    path.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))


def _plain(text: str) -> str:
    """What others wrote is printed, never obeyed by the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
