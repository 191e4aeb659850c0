"""Tables in documents that tests generate.

A run appends its results to a file, one JSON object per line. Afterwards the rows are merged into the document's table,
between two markers, and replace rows with the same first cell. So a subset of the runs updates a subset of the rows.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import msgspec

_FOLDER: Final = Path(__file__).parents[2] / ".local"


class Row(Protocol):
    def cells(self) -> Sequence[str]: ...


R = TypeVar("R", bound=Row)


class Table(Generic[R]):
    """The table `name`, whose rows have the msgspec type `row`. GATECAST_{NAME}_RESULTS names the file to append to."""

    def __init__(self, name: str, head: Sequence[str], row: type[R]) -> None:
        self._file = Path(os.environ.get(f"GATECAST_{name.upper()}_RESULTS") or _FOLDER / f"{name}.jsonl")
        self._begin = f"<!-- {name}: written by the tests -->"
        self._end = f"<!-- {name}: end -->"
        self._head = head
        self._row = row

    def record(self, row: R) -> None:
        """Append the row to the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as lines:
            lines.write(msgspec.json.encode(row) + b"\n")

    def merge_into(self, document: str, files: Iterable[Path]) -> str:
        """Return the document with these files' rows in its table. Raises ValueError if it has no such table."""
        before, begin, rest = document.partition(self._begin)
        table, end, after = rest.partition(self._end)
        if not end:
            raise ValueError(f"the document lacks the table's marker: {self._begin}")
        rows = {_first_cell(line): line for line in table.strip().splitlines()[2:]}
        for file in files:
            for line in file.read_bytes().splitlines() if file.exists() else ():
                cells = msgspec.json.decode(line, type=self._row).cells()
                rows[cells[0]] = _line(cells)
        return "\n".join(
            (before + begin, _line(self._head), _line(["---"] * len(self._head)), *rows.values(), end + after)
        )

    def main(self) -> None:
        """`python -m MODULE DOCUMENT FILE…`"""
        document = Path(sys.argv[1])
        document.write_text(self.merge_into(document.read_text(), map(Path, sys.argv[2:])))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _first_cell(line: str) -> str:
    return line.split("|")[1].strip()
