"""The record of every delivery: expected receipts, actual receipts, and latencies.

A receipt is expected from every client that was in the broadcast's audience before it was published, and stayed
connected until a second after the broadcast's last receipt. A delivery may have been in transit to a client that
disconnected earlier, so none is expected from it. Times are monotonic seconds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

IN_TRANSIT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The totals. `latencies` are seconds from publishing to receipt, ascending."""

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
        """The percentile of the latencies in seconds, or NaN if nothing was received."""
        if not self.latencies:
            return math.nan
        return self.latencies[max(0, math.ceil(len(self.latencies) * percent / 100) - 1)]


@dataclass(slots=True)
class _Broadcast:
    audience: frozenset[int]
    published_at: float
    receipts: dict[int, float] = field(default_factory=dict)


class Ledger:
    """Records broadcasts and receipts. Broadcasts and clients are identified by numbers."""

    def __init__(self) -> None:
        self.receipts = 0
        self.first_published_at = math.inf
        self.last_receipt_at = -math.inf
        self._duplicates = 0
        self._broadcasts: dict[int, _Broadcast] = {}
        self._open: dict[int, _Broadcast] = {}
        self._disconnected_at: dict[int, float] = {}

    def published(self, broadcast: int, audience: Iterable[int], at: float) -> None:
        """Must be called before publishing: a receipt may arrive before the publisher's response."""
        self._broadcasts[broadcast] = self._open[broadcast] = _Broadcast(frozenset(audience), at)
        self.first_published_at = min(self.first_published_at, at)

    def received(self, broadcast: int, client: int, at: float) -> None:
        """Raises KeyError for a broadcast that was not published."""
        receipts = self._broadcasts[broadcast].receipts
        if client in receipts:
            self._duplicates += 1
            return
        receipts[client] = at
        self.receipts += 1
        self.last_receipt_at = max(self.last_receipt_at, at)

    def disconnected(self, client: int, at: float) -> None:
        """Records that the client is no longer connected; only the first call counts."""
        self._disconnected_at.setdefault(client, at)

    def due(self) -> int:
        """How many receipts there will be if no further client disconnects."""
        return self.receipts + self.outstanding()

    def outstanding(self) -> int:
        """How many receipts are outstanding from connected clients."""
        count = 0
        for number, broadcast in list(self._open.items()):
            waiting = len(broadcast.audience - broadcast.receipts.keys() - self._disconnected_at.keys())
            if not waiting:
                del self._open[number]
            count += waiting
        return count

    def tally(self) -> Tally:
        expected = received = strays = 0
        latencies: list[float] = []
        for broadcast in self._broadcasts.values():
            expected_clients = self._expected(broadcast)
            delivered_clients = expected_clients & broadcast.receipts.keys()
            expected += len(expected_clients)
            received += len(delivered_clients)
            strays += len(broadcast.receipts.keys() - broadcast.audience)
            latencies += (broadcast.receipts[client] - broadcast.published_at for client in delivered_clients)
        return Tally(
            broadcasts=len(self._broadcasts),
            expected=expected,
            received=received,
            duplicates=self._duplicates,
            strays=strays,
            latencies=tuple(sorted(latencies)),
        )

    def _expected(self, broadcast: _Broadcast) -> frozenset[int]:
        settled_at = max(broadcast.receipts.values(), default=math.inf) + IN_TRANSIT_SECONDS
        return broadcast.audience - {
            client for client, disconnected_at in self._disconnected_at.items() if disconnected_at <= settled_at
        }
