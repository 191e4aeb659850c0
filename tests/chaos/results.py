"""What the runs have shown: each test records its figures, `python -m tests.chaos.results FILE…` makes a table of them.

A file has one JSON object a line (GATECAST_CHAOS_RESULTS says which is written). The last line of each run counts.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.sizes import SEED

_DEFAULT_FILE: Final = Path(__file__).parents[2] / ".local" / "chaos.jsonl"
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


def table(files: Iterable[Path]) -> str:
    """The figures as a Markdown table, in the order in which they were recorded."""
    lines = [line for file in files if file.exists() for line in file.read_bytes().splitlines()]
    latest = {figures.run: figures for figures in (msgspec.json.decode(line, type=Figures) for line in lines)}
    rows = (_HEAD, ["---"] * len(_HEAD), *(figures.cells() for figures in latest.values()))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


_DOCUMENT: Final = """\
# Chaos: the figures

Written by the tests: `make chaos` repeats all but the soak, which is `make soak`. Moments, connections and calls are
chosen by dice; `GATECAST_CHAOS_SEED={seed}` makes them fall as here.

A member is *missing* if none of its posts was answered with 200. *Repeated* are deliveries beyond the first of each
connection, counted where they arrive, and *allowed* is the bound that the test asserts.

{table}
"""

if __name__ == "__main__":
    sys.stdout.write(_DOCUMENT.format(seed=SEED, table=table(map(Path, sys.argv[1:]))))
