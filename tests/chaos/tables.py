"""Tables that tests write into documents.

A run appends what it has found to a file, one JSON object a line; afterwards the rows are put into the document's
table, between two marks, in the place of those with the same first cell. So a part of the runs renews a part of it.
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
    """The table of that name, of rows of that msgspec type. GATECAST_{NAME}_RESULTS says which file runs write."""

    def __init__(self, name: str, head: Sequence[str], row: type[R]) -> None:
        self._file = Path(os.environ.get(f"GATECAST_{name.upper()}_RESULTS") or _FOLDER / f"{name}.jsonl")
        self._begin = f"<!-- {name}: written by the tests -->"
        self._end = f"<!-- {name}: end -->"
        self._head = head
        self._row = row

    def record(self, row: R) -> None:
        """Append to the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as lines:
            lines.write(msgspec.json.encode(row) + b"\n")

    def put_into(self, document: str, files: Iterable[Path]) -> str:
        """The document with these files' rows in its table. Raises ValueError if it has no place for one."""
        before, begin, rest = document.partition(self._begin)
        table, end, after = rest.partition(self._end)
        if not end:
            raise ValueError(f"the document has no place for the table: {self._begin}")
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
        document.write_text(self.put_into(document.read_text(), map(Path, sys.argv[2:])))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _first_cell(line: str) -> str:
    return line.split("|")[1].strip()
