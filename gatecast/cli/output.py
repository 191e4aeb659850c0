"""What commands print: lines for people, or JSON for programs. Nothing of others can control the terminal.

Results go to the standard output, everything else to the standard error: questions, progress, errors.
"""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from gatecast.cli.failures import CommandFailed, WrongUsage
from gatecast.printable import printable

_NOT_PLAIN: Final = re.compile(r"[^ -~]")
_GAP: Final = "  "


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"


def write(line: str) -> None:
    """Prints a line of a result for people."""
    print(printable(line), flush=True)  # noqa: T201 - it is what a command does


def note(line: str) -> None:
    """Prints a line that is no result."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def write_json(value: Any) -> None:
    """Prints a value as JSON, in one line of plain ASCII. `msgspec.Raw` in it keeps its tokens."""
    print(ascii_json(msgspec.json.encode(value).decode("utf-8", "replace")), flush=True)  # noqa: T201


def ascii_json(text: str) -> str:
    """The same JSON in one line of plain ASCII."""
    return _NOT_PLAIN.sub(lambda found: " " if found[0] in "\n\r\t" else _escape(found[0]), text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, with columns that are as wide as necessary."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


def time_text(seconds: float) -> str:
    """A time since the epoch in local time, with its zone."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def confirm(question: str, *, yes: bool) -> None:
    """Asks on the terminal, unless `yes`. Raises CommandFailed after a no, WrongUsage if there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise WrongUsage(f"this needs a confirmation ({printable(question)})", "give --yes")
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandFailed("nothing was changed")
