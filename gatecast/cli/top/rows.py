"""Which figures are shown, in which order, and in which format."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from gatecast.cli.top.figures import Figures, Quantiles

UNKNOWN: Final = "–"
NOTHING: Final = frozenset(f"0/ {UNKNOWN}")
"""A cell of these characters alone is dimmed: there is nothing to see."""
_MILLI: Final = 1e-3
_MEBI: Final = 2.0**20
_PERCENT: Final = 1e-2


def short(value: float | None, unit: float = 1.0) -> str:
    """Format a value in multiples of `unit`, with decimals if it is small and not whole."""
    if value is None:
        return UNKNOWN
    value /= unit
    digits = 0 if value >= 10 or value.is_integer() else 1 if value >= 1 else 2  # noqa: PLR2004 - decimal digits
    return f"{value:,.{digits}f}"


def _pair(one: float | None, other: float | None) -> str:
    return f"{short(one)} / {short(other)}"


def _three(quantiles: Quantiles, unit: float = 1.0) -> str:
    return "/".join(short(value, unit) for value in quantiles) if any(quantiles) else UNKNOWN


def _share(value: float | None) -> str:
    """Format a share, rounded down: 100 % means all."""
    return UNKNOWN if value is None else f"{math.floor(value * 10_000) / 100:.2f} %"


def _time(seconds: float | None) -> str:
    """Format seconds since the epoch in the local time zone."""
    return UNKNOWN if seconds is None else f"{datetime.fromtimestamp(seconds, UTC).astimezone():%d %b %H:%M}"


class Row(NamedTuple):
    """A line of figures. A cell is highlighted if one of the figures in `names` is suspect."""

    label: str
    show: Callable[[Figures], str]
    names: tuple[str, ...] = ()


_DELIVERIES: Final = (
    Row("delivered /s", lambda its: short(its.delivered)),
    Row("success share", lambda its: _share(its.success_share), ("success_share",)),
    Row("missed /s", lambda its: short(its.missed), ("missed",)),
    Row("gone / expired /s", lambda its: _pair(its.gone, its.expired)),
    Row("retries / stalled", lambda its: _pair(its.waiting, its.stalled)),
)
_POSTS: Final = (
    Row("2xx / billed /s", lambda its: _pair(its.posts_2xx, its.billed)),
    Row("4xx /s", lambda its: short(its.posts_4xx)),
    Row("  429 account /s", lambda its: short(its.throttled_by_account), ("throttled_by_account",)),
    Row("  429 connection /s", lambda its: short(its.throttled_by_connection)),
    Row("5xx /s", lambda its: short(its.posts_5xx), ("posts_5xx",)),
    Row("no response /s", lambda its: short(its.posts_without_response), ("posts_without_response",)),
    Row("post, ms p50/p95/p99", lambda its: _three(its.post_seconds, _MILLI)),
    Row("limit / ceiling /s", lambda its: _pair(its.rate_limit, its.rate_ceiling), ("rate_limit",)),
    Row("in flight / limit", lambda its: _pair(its.in_flight, its.in_flight_limit), ("in_flight",)),
    Row("connections", lambda its: short(its.connections)),
)
_BROADCASTS: Final = (
    Row("completed /s", lambda its: short(its.completed)),
    Row("done, s p50/p95/p99", lambda its: _three(its.completion_seconds), ("completion_seconds",)),
    Row("lag, s p50/p95/p99", lambda its: _three(its.queue_lag_seconds), ("queue_lag_seconds",)),
    Row("places taken / all", lambda its: _pair(its.places_taken, its.places)),
    Row("parked / waiting", lambda its: _pair(its.parked, its.waiting_for_place)),
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

Sections = Mapping[str, tuple[Row, ...]]
BLOCKS: Final[tuple[Sections, ...]] = (
    {"Deliveries": _DELIVERIES, "Posts": _POSTS},
    {"Broadcasts": _BROADCASTS, "Process": _PROCESS},
)
"""Sections of a block are one below the other, each under its title. Blocks are side by side if the width allows."""
