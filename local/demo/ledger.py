"""The account of every delivery: what was expected of whom, what arrived, how long it took.

Expected is a receipt of every client that was in the broadcast's audience before it was published and stayed connected
until after its last receipt. A client that vanished within a second of that may have had its own on the way: it is not
expected to have received it. Times are monotonic seconds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

ON_ITS_WAY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What it came to. `latencies` are seconds from publishing to receipt, ascending."""

    broadcasts: int
    expected: int
    received: int
    duplicates: int
    strays: int
    latencies: tuple[float, ...]

    @property
    def missing(self) -> int:
        return self.expected - self.received

    def percentile(self, percent: float) -> float:
        """The latency in seconds that so many percent did not exceed, or NaN if nothing was received."""
        if not self.latencies:
            return math.nan
        return self.latencies[max(0, math.ceil(len(self.latencies) * percent / 100) - 1)]


@dataclass(slots=True)
class _Broadcast:
    audience: frozenset[int]
    published_at: float
    receipts: dict[int, float] = field(default_factory=dict)


class Ledger:
    """Broadcasts and clients are numbers."""

    def __init__(self) -> None:
        self.receipts = 0
        self.first_published_at = math.inf
        self.last_receipt_at = -math.inf
        self._duplicates = 0
        self._broadcasts: dict[int, _Broadcast] = {}
        self._open: dict[int, _Broadcast] = {}
        self._left_at: dict[int, float] = {}

    def published(self, broadcast: int, audience: Iterable[int], at: float) -> None:
        """To be called before it is published: a receipt may be quicker than the answer."""
        self._broadcasts[broadcast] = self._open[broadcast] = _Broadcast(frozenset(audience), at)
        self.first_published_at = min(self.first_published_at, at)

    def received(self, broadcast: int, client: int, at: float) -> None:
        """Raises KeyError for a broadcast that nobody published."""
        receipts = self._broadcasts[broadcast].receipts
        if client in receipts:
            self._duplicates += 1
            return
        receipts[client] = at
        self.receipts += 1
        self.last_receipt_at = max(self.last_receipt_at, at)

    def left(self, client: int, at: float) -> None:
        """The client is no longer connected; the first time counts."""
        self._left_at.setdefault(client, at)

    def due(self) -> int:
        """How many receipts there will be, if nobody leaves any more."""
        return self.receipts + self.outstanding()

    def outstanding(self) -> int:
        """How many receipts are still to come from clients that are still there."""
        count = 0
        for number, broadcast in list(self._open.items()):
            waiting = len(broadcast.audience - broadcast.receipts.keys() - self._left_at.keys())
            if not waiting:
                del self._open[number]
            count += waiting
        return count

    def tally(self) -> Tally:
        expected = received = strays = 0
        latencies: list[float] = []
        for broadcast in self._broadcasts.values():
            promised = self._promised(broadcast)
            kept = promised & broadcast.receipts.keys()
            expected += len(promised)
            received += len(kept)
            strays += len(broadcast.receipts.keys() - broadcast.audience)
            latencies += (broadcast.receipts[client] - broadcast.published_at for client in kept)
        return Tally(
            broadcasts=len(self._broadcasts),
            expected=expected,
            received=received,
            duplicates=self._duplicates,
            strays=strays,
            latencies=tuple(sorted(latencies)),
        )

    def _promised(self, broadcast: _Broadcast) -> frozenset[int]:
        settled_at = max(broadcast.receipts.values(), default=math.inf) + ON_ITS_WAY_SECONDS
        return broadcast.audience - {client for client, left_at in self._left_at.items() if left_at <= settled_at}
