"""The rendered screen of the live view."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from gatecast.cli.top.figures import Figures, figures
from gatecast.cli.top.rows import short
from gatecast.cli.top.samples import Samples, Series, compare
from gatecast.cli.top.screen import draw, save_picture
from gatecast.cli.top.view import Broadcast, Progress, RoomCost, State, View, Worker

AT = datetime(2026, 11, 24, 3, 12, 45, tzinfo=UTC)
BUILD = Series("gatecast_build_info", frozenset({("version", "1.2.3")}))
EMPTY = figures(compare(None, Samples({}, {BUILD: 1.0}), 0.0))
BUSY = replace(EMPTY, delivered=8412.0, missed=0.0, rate_limit=1240.0, rate_ceiling=10_000.0, in_flight=5.0)


def worker(
    name: str = "10.0.0.1:9090",
    state: State = State.READY,
    its: Figures | None = BUSY,
    suspects: tuple[str, ...] = (),
    problems: Mapping[str, str] | None = None,
) -> Worker:
    return Worker(name, state, problems or {}, its, frozenset(suspects))


def shown(*workers: Worker, broadcasts: tuple[Progress, ...] = (), in_progress: int | None = None) -> View:
    return View(
        workers=workers,
        total=BUSY,
        suspects=frozenset().union(*(one.suspects for one in workers)),
        broadcasts=broadcasts,
        in_progress=len(broadcasts) if in_progress is None else in_progress,
    )


def broadcast(name: str = "b", *, worker: str = "w", part: str = "", all_read: bool = True) -> Progress:
    one = Broadcast(
        id=name, part=part, age_seconds=61.4, delivered=1500, gone=0, expired=0, rejected=0, undelivered=0,
        in_flight=200, waiting=0, read_ahead=300, all_read=all_read,
    )  # fmt: skip
    return Progress(worker, one, 750.0)


def text(view: View, *, width: int = 100, height: int | None = None) -> str:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=height is not None, color_system=None
    )
    console.print(draw(view, console, at=AT))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(label: str, view: View, **size: int) -> list[str]:
    """The words of the only line with this label."""
    (found,) = (one for one in text(view, **size).splitlines() if label in one)
    return found.split()


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, 1.0, "–"),
        (0.0, 1.0, "0"),
        (5.0, 1.0, "5"),
        (0.034, 1.0, "0.03"),
        (2.34, 1.0, "2.3"),
        (23.4, 1.0, "23"),
        (12_345.6, 1.0, "12,346"),
        (0.0234, 1e-3, "23"),
        (3 * 2.0**20, 2.0**20, "3"),
    ],
)
def test_numbers(value: float | None, unit: float, expected: str) -> None:
    assert short(value, unit) == expected


def test_one_worker() -> None:
    printed = text(shown(worker()))
    assert re.match(r" READY +10\.0\.0\.1:9090 +24 Nov 03:12:45 UTC", printed)
    assert "total" not in printed
    assert "No broadcasts in progress." in printed
    assert re.search(r"delivered /s +8,412 +completed /s +–", printed)
    assert re.search(r"limit / ceiling /s +1,240 / 10,000 ", printed)
    assert re.search(r"in flight / limit +5 / – ", printed)


def test_an_unknown_number_of_broadcasts_is_shown_as_unknown() -> None:
    assert "in progress: unknown" in text(replace(shown(worker()), in_progress=None))


def test_success_is_not_rounded_up_to_all() -> None:
    for share, expected in ((1.0, "100.00"), (0.999_999, "99.99"), (0.5, "50.00")):
        assert line("success share", shown(worker(its=replace(BUSY, success_share=share))))[2] == expected


def test_problems_come_first() -> None:
    bad = worker(state=State.NOT_READY, problems={"queue": "Connection refused", "dead letters": ""})
    lines = [one.rstrip() for one in text(shown(bad)).splitlines()]
    assert lines[0].startswith(" NOT READY   10.0.0.1:9090")
    assert lines[1:3] == [
        "10.0.0.1:9090  NOT READY  queue: Connection refused",
        "10.0.0.1:9090  NOT READY  dead letters",
    ]


def test_several_workers_have_a_column_each() -> None:
    lost = worker("10.0.0.2", State.UNREACHABLE, None, problems={"": "Connection refused"})
    view = shown(worker("10.0.0.1"), lost)
    printed = text(view)
    assert printed.startswith(" 1 OF 2 READY   2 workers")
    assert "10.0.0.2  UNREACHABLE  Connection refused" in printed
    assert line("Deliveries", view)[1:] == ["total", "10.0.0.1", "10.0.0.2"]
    assert line("delivered /s", view)[2:] == ["8,412", "8,412", "–"]


def test_if_not_all_workers_fit_those_with_problems_are_shown() -> None:
    draining, lost = worker("d", State.DRAINING), worker("u", State.UNREACHABLE, None)
    slow = worker("s", suspects=("oldest_age_seconds",))
    view = shown(worker("a"), worker("b"), slow, lost, draining)
    assert line("Deliveries", view, width=200)[1:7] == ["total", "a", "b", "s", "u", "d"]
    assert line("Deliveries", view)[1:] == ["total", "u", "d", "s"]
    assert "5 workers, 2 of them only in the total" in text(view)
    assert line("Deliveries", view, width=40)[1:] == ["total", "u"]


def test_many_problems_leave_room_for_figures() -> None:
    problems = {f"part {number}": "fails" for number in range(12)}
    printed = text(shown(worker(state=State.NOT_READY, problems=problems)))
    assert "part 7: fails" in printed
    assert "part 8: fails" not in printed
    assert "and 4 more" in printed


@pytest.mark.parametrize("width", [80, 100, 120, 200, 300])
def test_the_screen_is_no_wider_than_necessary(width: int) -> None:
    view = shown(worker(), broadcasts=(broadcast("i" * 100),))
    widths = [len(one.rstrip()) for one in text(view, width=width).splitlines()]
    assert max(widths) <= min(width, 190)
    assert line("delivered /s", view, width=width)[3] == "completed"  # the blocks are side by side


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_gets_what_fits(width: int) -> None:
    printed = text(shown(worker(), worker("b"), broadcasts=(broadcast("i" * 100),)), width=width, height=10)
    assert max(map(len, printed.splitlines())) <= width


def test_broadcasts_fill_the_remaining_screen() -> None:
    view = shown(worker(), broadcasts=tuple(broadcast(f"id-{number:02}") for number in range(40)), in_progress=64)
    for height, expected in ((24, 3), (30, 9)):
        printed = text(view, height=height)
        assert printed.count("id-") == expected
        assert "Oldest of 64 in progress" in printed
        assert len(printed.splitlines()) <= height
    assert text(view).count("id-") == 10


def test_progress_of_a_broadcast() -> None:
    view = shown(worker(), broadcasts=(broadcast("first", part="r1"), broadcast("second", all_read=False)))
    first = line("first~r1", view)
    assert first[0] == "first~r1"
    assert first[2:] == ["75", "%", "1,500", "750", "200", "0", "61"]
    assert line(" second ", view)[1:] == ["reading", "1,500", "750", "200", "0", "61"]


def test_control_characters_and_markup_in_remote_text_are_escaped() -> None:
    nasty = "\x1b[2J[red]\x07"
    bad = worker(state=State.NOT_READY, problems={"queue": nasty})
    printed = text(shown(bad, broadcasts=(broadcast("[bold]id", part=nasty),)))
    assert printed.count("\\x1b[2J[red]\\x07") == 2
    assert "[bold]id" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_suspect_figures_are_highlighted_and_zeros_are_dim() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    suspect = shown(worker(its=replace(BUSY, gone=0.0), suspects=("rate_limit",)))
    styles = {part.text.strip(): str(part.style) for part in console.render(draw(suspect, console, at=AT))}
    assert styles["1,240 / 10,000"] == "bold black on yellow"
    assert styles["0"] == "dim"
    assert styles["8,412"] == "bold"


def test_a_picture_fetches_nothing(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(draw(shown(worker()), console, at=AT))
    save_picture(console, tmp_path / "top.svg")
    svg = (tmp_path / "top.svg").read_text()
    assert "8,412" in svg
    assert "@font-face" not in svg
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", svg))


def test_the_dearest_rooms_are_below_the_broadcasts_and_cannot_control_the_terminal() -> None:
    rooms = tuple(RoomCost(f"room-{number}\x1b[31m", 1_000 - number) for number in range(9))
    broadcasts = tuple(broadcast(f"id-{number:02}") for number in range(40))
    view = replace(shown(worker(), broadcasts=broadcasts), dearest_rooms=rooms)
    printed = text(view, height=40)
    assert printed.index("id-00") < printed.index("Dearest rooms") < printed.index("room-0")
    assert printed.count("room-") == 5
    assert len(printed.splitlines()) <= 40
    assert "\x1b" not in text(view)
    assert "Dearest" not in text(shown(worker()))
