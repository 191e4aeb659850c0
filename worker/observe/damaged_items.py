"""Items of the table that are malformed: counted by kind, and logged once each.

The code that reads one continues as well as it can and reports the item here, so that an operator can find and correct
it. Nothing here raises, and the memory used is bounded.
"""

from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Final, Literal

import structlog

log = structlog.get_logger()

Kind = Literal["settings", "membership", "connection", "joined_room", "progress", "stream"]
_MAX_REMEMBERED: Final = 1_000


class DamagedItems:
    """Counts and logs damaged items. `counts` are by kind."""

    def __init__(self, counts: MutableMapping[str, int]) -> None:
        self._counts = counts
        self._logged: OrderedDict[tuple[Kind, str], None] = OrderedDict()

    def report(self, kind: Kind, where: str, reason: str, *, items: int = 1) -> None:
        """`where` is the partition key, for the log; `reason` says what is wrong, without the item's contents."""
        self._counts[kind] = self._counts.get(kind, 0) + items
        known = (kind, where) in self._logged
        self._logged[kind, where] = None
        self._logged.move_to_end((kind, where))
        if len(self._logged) > _MAX_REMEMBERED:
            self._logged.popitem(last=False)
        if not known:
            log.error("item.damaged", item=kind, pk=where, reason=reason)
