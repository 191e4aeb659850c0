"""What the runs have shown: each test records its figures, and `python -m tests.chaos.results DOCUMENT FILE…` puts them
into the document's table. GATECAST_CHAOS_RESULTS says which file is written.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.chaos.tables import Table


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


TABLE: Final = Table(
    "chaos", ("run", "members", "missing", "repeated", "allowed", "dead letters", "seconds", "what else"), Figures
)
record: Final = TABLE.record

if __name__ == "__main__":
    TABLE.main()
