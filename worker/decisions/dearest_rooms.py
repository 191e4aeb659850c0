"""Which rooms cost most: the units for which API Gateway bills their posts, over the last minutes. Pure.

The memory is bounded: per interval at most `MAX_ROOMS` rooms are remembered, and then the cheaper half of them is
forgotten. So a room that is among the dearest is counted from when it became one of the dearer half.
"""

from collections import Counter, deque
from typing import Final

WINDOW_SECONDS: Final = 600
_INTERVAL_SECONDS: Final = 60
MAX_ROOMS: Final = 500


class DearestRooms:
    """The units of the last `WINDOW_SECONDS`, by room. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[int, Counter[str]]] = deque()
        """Each with its number, the latest last."""

    def spent(self, room: str, units: int, now: float) -> None:
        """Add units that a room's broadcast has cost."""
        number = int(now // _INTERVAL_SECONDS)
        if not self._intervals or self._intervals[-1][0] != number:
            self._forget(number)
            self._intervals.append((number, Counter()))
        counts = self._intervals[-1][1]
        counts[room] += units
        if len(counts) > MAX_ROOMS:
            self._intervals[-1] = (number, Counter(dict(counts.most_common(MAX_ROOMS // 2))))

    def dearest(self, limit: int, now: float) -> list[tuple[str, int]]:
        """The rooms that cost most, with their units, the dearest first."""
        self._forget(int(now // _INTERVAL_SECONDS))
        total: Counter[str] = Counter()
        for _, counts in self._intervals:
            total.update(counts)
        return total.most_common(limit)

    def _forget(self, number: int) -> None:
        while self._intervals and self._intervals[0][0] <= number - WINDOW_SECONDS // _INTERVAL_SECONDS:
            self._intervals.popleft()
