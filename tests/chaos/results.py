"""Results of the chaos runs: each test records a `RunResult` in the file that GATECAST_CHAOS_RESULTS names.

`python -m tests.chaos.results DOCUMENT FILE…` writes them into the document's table.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.chaos.endpoint import Tally
from tests.chaos.harness import Harness
from tests.chaos.tables import Table


class RunResult(msgspec.Struct, kw_only=True):
    """One run. `repeated` counts deliveries beyond the first to each connection; `allowed` is their upper bound."""

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
    "chaos", ("run", "members", "missing", "repeated", "allowed", "dead letters", "seconds", "notes"), RunResult
)
record: Final = TABLE.record


async def check_broadcast(
    harness: Harness,
    run: str,
    ids: Sequence[str],
    data: str,
    *,
    allowed: int = 0,
    dead_letters: int = 0,
    notes: str = "",
) -> Tally:
    """Record the result of one broadcast of `data` to these members, then assert it.

    Every member was reached, no other connection was, at most `allowed` deliveries were repeated, and the dead-letter
    queue holds exactly `dead_letters` messages.
    """
    tally = await harness.tally(data, ids)
    found = harness.dead_letter_depth()
    record(
        RunResult(
            run=run,
            members=len(ids),
            missing=len(tally.missing),
            repeated=tally.repeated,
            allowed=allowed,
            dead_letters=found,
            seconds=harness.elapsed_seconds,
            notes=notes,
        )
    )
    assert not tally.missing
    assert not tally.unexpected
    assert tally.repeated <= allowed
    assert found == dead_letters
    return tally


if __name__ == "__main__":
    TABLE.main()
