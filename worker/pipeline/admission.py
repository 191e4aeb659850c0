"""Received messages that wait for a place, in memory. Pure.

Work without a place waits behind others of its kind, in order of arrival; freed places go to the kinds in turn. At most
`MAX_WAITING` items and `MAX_WAITING_BYTES` wait here; further messages go back to the queue.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from worker.pipeline.capacity import Capacity, Place

MAX_WAITING: Final = 500
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """An item that takes one place: a message or, on a FIFO queue, several messages of one group."""

    item: T
    kind: str
    size: int
    """Bytes."""


class Admission(Generic[T]):
    """Calls `start` for each item as soon as there is a place for its kind. `start` must not raise."""

    def __init__(self, capacity: Capacity, start: Callable[[T, Place], None]) -> None:
        self._capacity = capacity
        self._start = start
        self._waiting: dict[str, deque[Work[T]]] = {}
        self._count = 0
        self._bytes = 0
        self._closed = False
        capacity.on_free.append(self._start_waiting)

    def __len__(self) -> int:
        """The number of waiting items."""
        return self._count

    def offer(self, work: Work[T]) -> bool:
        """Start the item or let it wait. Returns False if too many wait already; then it must go back to the queue."""
        if self._closed:
            return False
        if work.kind not in self._waiting and self._capacity.has_place_for(work.kind):
            self._begin(work)
            return True
        if self._count >= MAX_WAITING or self._bytes + work.size > MAX_WAITING_BYTES:
            return False
        self._waiting.setdefault(work.kind, deque()).append(work)
        self._count += 1
        self._bytes += work.size
        return True

    def close(self) -> Iterator[T]:
        """Start nothing more. Yields the items that were waiting."""
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        self._count = self._bytes = 0
        for queue in waiting.values():
            for work in queue:
                yield work.item

    def _begin(self, work: Work[T]) -> None:
        self._start(work.item, self._capacity.reserve(work.kind))

    def _start_waiting(self) -> None:
        """Start one item per kind, in turn. One freed place admits at most one item, so one pass is enough."""
        for kind in list(self._waiting):
            if not self._capacity.free:
                return
            if self._capacity.has_place_for(kind):
                queue = self._waiting.pop(kind)
                work = queue.popleft()
                if queue:
                    self._waiting[kind] = queue  # behind the other kinds
                self._count -= 1
                self._bytes -= work.size
                self._begin(work)
