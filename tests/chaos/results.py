"""What the runs have shown: each test records its figures, `python -m tests.chaos.results DOCUMENT FILE…`
puts them into its table.

A file has one JSON object a line (GATECAST_CHAOS_RESULTS says which is written). The last line of each run counts.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

_DEFAULT_FILE: Final = Path(__file__).parents[2] / ".local" / "chaos.jsonl"
_BEGIN: Final = "<!-- chaos: written by the tests -->"
_END: Final = "<!-- chaos: end -->"
_HEAD: Final = ("run", "members", "missing", "repeated", "allowed", "dead letters", "seconds", "what else")


class Figures(msgspec.Struct, kw_only=True):
    """One run. `repeated` are deliveries beyond the first of each connection; at most `allowed` of them may be."""

    run: str
    members: int
    missing: int
    repeated: int
    allowed: int
    dead_letters: int = 0
    seconds: float
    notes: str = ""

    def cells(self) -> Sequence[str]:
        numbers = (self.members, self.missing, self.repeated, self.allowed, self.dead_letters, round(self.seconds))
        return (self.run, *(f"{number:,}" for number in numbers), self.notes)


def record(figures: Figures) -> None:
    """Append to the file."""
    file = Path(os.environ.get("GATECAST_CHAOS_RESULTS") or _DEFAULT_FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(figures) + b"\n")


def with_results(document: str, files: Iterable[Path]) -> str:
    """The document, with these figures in its table: runs that are in it are replaced, the others stay."""
    before, begin, rest = document.partition(_BEGIN)
    old_table, end, after = rest.partition(_END)
    rows = {_run_of(row): row for row in old_table.splitlines() if row.startswith("| ")}
    rows = {run: row for run, row in rows.items() if run not in (_HEAD[0], "---")}
    for file in files:
        for line in file.read_bytes().splitlines() if file.exists() else ():
            figures = msgspec.json.decode(line, type=Figures)
            rows[figures.run] = _row(figures.cells())
    table = "\n".join((_row(_HEAD), _row(["---"] * len(_HEAD)), *rows.values()))
    return f"{before}{begin}\n{table}\n{end}{after}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _run_of(row: str) -> str:
    return row.split("|")[1].strip()


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(with_results(document.read_text(), map(Path, sys.argv[2:])))
